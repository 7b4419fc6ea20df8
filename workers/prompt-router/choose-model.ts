/** Which model answers a chat request and how it selects: what the request names, or with `auto` what the prompt router chooses. */
import type { SelectionRequest } from "../../protocol/generate.ts";
import type { Env } from "../env.ts";
import type { RoutingOutcome } from "../routing-counts.ts";
import { modelOfSession } from "../stubs.ts";
import type { ChatRequest } from "../validate-chat.ts";
import { AUTO_MODEL, type RouterHealth, routePrompt } from "./auto-model.ts";

/** The alias of any model (`workers/fleet.ts`). */
const DEFAULT_MODEL = "default";

/** What a choice is made with. */
export interface ChoiceContext {
  env: Env;
  namespace: string;
  requestId: string;
  /** The request says itself how to select: then only the model is chosen. */
  namesSelection: boolean;
  health: RouterHealth;
  /** Told what became of each prompt that the router was there for (`GET /metrics`). */
  count(outcome: RoutingOutcome): void;
  /** The id of a named model; rejects for one that is not there. */
  resolve(name: string | undefined): Promise<string>;
}

/**
 * The model's id and the turn's selection.
 * @throws {QuireError} for a model that is not there; with `auto` and a prompt router, only where there is no model at all.
 */
export async function chooseModel(
  chat: Pick<ChatRequest, "model" | "sessionId" | "messages" | "turn">,
  context: ChoiceContext,
): Promise<{ model: string; selection: SelectionRequest }> {
  const { env, resolve } = context;
  const { selection } = chat.turn;
  const unrouted = async (name: string | undefined) => ({ model: await resolve(name), selection });
  if (chat.model !== AUTO_MODEL || env.PROMPT_ROUTER === undefined) return unrouted(chat.model);
  // A request in a session holds only what is new of it: whoever judged that would take a long conversation for a short one.
  if (chat.sessionId !== undefined) {
    return unrouted((await modelOfSession(env, context.namespace, chat.sessionId)) ?? DEFAULT_MODEL);
  }
  const routed = await routePrompt(env.PROMPT_ROUTER, chat.messages, context);
  const model = routed && (await resolve(routed.model).catch(() => undefined));
  if (routed !== undefined) context.count(model === undefined ? "unserved" : "chosen");
  // A budget that was learnt from one model says nothing about another.
  if (model === undefined || routed === undefined) return unrouted(DEFAULT_MODEL);
  return { model, selection: context.namesSelection ? selection : { ...selection, ...routed.selection } };
}
