/**
 * `model: "auto"` in the Worker: the prompt's features go to the prompt router, and its choice comes back within a few milliseconds, or the turn
 * goes on as if nobody had been asked. Nothing of a prompt is kept or logged here.
 */
import { assert } from "../../protocol/assert.ts";
import { QuireError, toQuireError } from "../../protocol/errors.ts";
import { AUTO_SELECTION, type SelectionRequest } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { parseRequestedSelection } from "../../protocol/selection.ts";
import type { ChatMessage } from "../../tokenizer/contract.ts";
import { within } from "../deadline.ts";
import { logError } from "../log.ts";
import type { RoutingOutcome } from "../routing-counts.ts";
import type { PromptRouterService } from "./contract.ts";
import { promptFeatures } from "./features.ts";

/** The name that a request gives in the place of a model's. */
export const AUTO_MODEL = "auto";

/** What was chosen for a prompt. */
export interface RoutedPrompt {
  model: string;
  selection: Pick<SelectionRequest, "policy" | "budgetTokens">;
}

/** How the router of an isolate has been doing: after several failures in a row it rests, so that a broken one costs nobody its deadline. */
export class RouterHealth {
  readonly #now: () => number;
  #failureCount = 0;
  #restUntilMs = 0;

  constructor(now: () => number) {
    this.#now = now;
  }

  get isResting(): boolean {
    return this.#now() < this.#restUntilMs;
  }

  succeeded(): void {
    this.#failureCount = 0;
  }

  failed(): void {
    this.#failureCount += 1;
    if (this.#failureCount < LIMITS.promptRouterFailureCountMax) return;
    this.#failureCount = 0;
    this.#restUntilMs = this.#now() + LIMITS.promptRouterRestMs;
  }
}

/** One per isolate: whether the router works is the same for everybody. */
export const isolateRouterHealth = new RouterHealth(() => Date.now());

/**
 * What the router chooses for a whole transcript. Undefined, and a line in the log, when it fails, is late, or answers something that is no
 * choice; undefined at once while it rests. Never rejects.
 */
export async function routePrompt(
  router: PromptRouterService,
  messages: readonly ChatMessage[],
  { requestId, health, count }: { requestId: string; health: RouterHealth; count: (outcome: RoutingOutcome) => void },
): Promise<RoutedPrompt | undefined> {
  if (health.isResting) {
    count("resting");
    return undefined;
  }
  try {
    const answer: unknown = await within(LIMITS.promptRouterMsMax, router.choose(promptFeatures(messages)));
    const routed = readAnswer(answer);
    health.succeeded();
    return routed;
  } catch (thrown) {
    health.failed();
    count(toQuireError(thrown).code === "deadline_exceeded" ? "late" : "failed");
    logError(requestId, new QuireError("internal", "The prompt router did not choose.", { cause: thrown }));
    return undefined;
  }
}

/** @throws {AssertionError | QuireError} for anything but a choice. */
function readAnswer(answer: unknown): RoutedPrompt {
  assert(typeof answer === "object" && answer !== null, "the prompt router answers with a choice");
  const { model, policy, budgetTokens } = answer as Record<string, unknown>;
  assert(typeof model === "string" && model !== "" && model !== AUTO_MODEL, "a choice names a model");
  assert(typeof policy === "string", "a choice names a policy");
  const parsed = parseRequestedSelection(policy);
  assert(parsed !== AUTO_SELECTION, "a choice leaves nothing open");
  const { budgetTokensMin, budgetTokensMax, budgetTokensStep } = LIMITS;
  assert(
    typeof budgetTokens === "number" && Number.isSafeInteger(budgetTokens) && budgetTokens % budgetTokensStep === 0,
    "a choice has a budget of whole pages",
  );
  assert(budgetTokens >= budgetTokensMin && budgetTokens <= budgetTokensMax, "a choice's budget is within limits");
  return { model, selection: { policy: parsed, budgetTokens } };
}
