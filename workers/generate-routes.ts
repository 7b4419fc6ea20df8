/** POST /v1/chat/completions and POST /v1/completions. */
import { contentDigestHex } from "../protocol/digest.ts";
import { QuireError, toQuireError } from "../protocol/errors.ts";
import type { SelectionRequest } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";
import { authenticate, type Tenant } from "./auth/authenticate.ts";
import { parseJsonObject, readBytes } from "./body.ts";
import { chainHashes, chainStart } from "./chain.ts";
import { within } from "./deadline.ts";
import type { Env } from "./env.ts";
import { invalid } from "./fields.ts";
import { isolateModelNames, unknownModel } from "./fleet/model-names.ts";
import { fleetOf, type ResolvedModel } from "./fleet.ts";
import { type Caller, inPlace, settlePlace } from "./limits/admission.ts";
import type { Place } from "./limits/place.ts";
import { AUTO_MODEL, isolateRouterHealth } from "./prompt-router/auto-model.ts";
import { chooseModel } from "./prompt-router/choose-model.ts";
import { jsonAnswer, streamAnswer } from "./respond.ts";
import { selectionDefaults } from "./selection-defaults.ts";
import { readIdempotencyKey, SESSION_HEADER } from "./session-id.ts";
import { askAgain, modelOfSession } from "./stubs.ts";
import { startTurn } from "./turn-events.ts";
import type { TurnOptions } from "./turn-job.ts";
import { namesSelection, type ResponseOptions } from "./validate.ts";
import { type ChatRequest, type ValidationContext, validateChat } from "./validate-chat.ts";
import { validateCompletion } from "./validate-completion.ts";

/** Answers a chat request. @throws {QuireError} for whatever is known before the first header. */
export async function chatCompletions(request: Request, env: Env, requestId: string): Promise<Response> {
  const tenant = await authenticate(request, env, "generate");
  const caller = { request, env, tenant };
  return inPlace(
    caller,
    () => readBytes(request),
    async (bytes, place) => {
      const body = parseJsonObject(bytes);
      const chat = validateChat(body, validationContext(request, env));
      const { model, selection } = knownModel(chat) ?? (await choose(chat, body, { env, tenant, requestId }));
      return inSessionsModel(model, { ...caller, response: chat }, async (model) => {
        const chain = await chainHashes(chainStart(model), chat.messages);
        const options = { ...chat.turn, selection, input: { kind: "chat" as const, messages: chat.messages, chain } };
        return answerTurn({ ...caller, requestId, place, model, bytes, response: chat, options, kind: "chat" });
      });
    },
  );
}

/** What there is to choose where a client names a model that was there a moment ago; undefined where that has to be found out. */
function knownModel({ model: name, turn }: ChatRequest): { model: string; selection: SelectionRequest } | undefined {
  const model = name === undefined || name === AUTO_MODEL ? undefined : isolateModelNames.get(name);
  return model === undefined ? undefined : { model, selection: turn.selection };
}

function choose(
  chat: ChatRequest,
  body: Record<string, unknown>,
  { env, tenant, requestId }: { env: Env; tenant: Tenant; requestId: string },
): Promise<{ model: string; selection: SelectionRequest }> {
  return chooseModel(chat, {
    env,
    namespace: tenant.namespace,
    requestId,
    namesSelection: namesSelection(body),
    health: isolateRouterHealth,
    // Nobody waits for this.
    count: (outcome) =>
      void fleetOf(env, tenant.namespace)
        .countRouting(outcome)
        .catch(() => undefined),
    resolve: (name) => resolveModel(env, tenant.namespace, name),
  });
}

/** Answers a completion request. @throws {QuireError} for whatever is known before the first header. */
export async function completions(request: Request, env: Env, requestId: string): Promise<Response> {
  const tenant = await authenticate(request, env, "generate");
  const caller = { request, env, tenant };
  return inPlace(
    caller,
    () => readBytes(request),
    async (bytes, place) => {
      const completion = validateCompletion(parseJsonObject(bytes), validationContext(request, env));
      const model = await resolveModel(env, tenant.namespace, completion.model);
      const { turn: options } = completion;
      return inSessionsModel(model, { ...caller, response: completion }, (model) =>
        answerTurn({ ...caller, requestId, place, model, bytes, response: completion, options, kind: "text" }),
      );
    },
  );
}

/**
 * Runs a turn with the model that its request's name stands for. Where that name leaves the model open and the session has another one than is there
 * first, it is run with the session's.
 */
async function inSessionsModel(
  model: string,
  { env, tenant, response }: Pick<TurnToAnswer, "env" | "tenant" | "response">,
  run: (model: string) => Promise<Response>,
): Promise<Response> {
  try {
    return await run(model);
  } catch (thrown) {
    const { model: name, sessionId } = response;
    const isOpen = name !== model && sessionId !== undefined && toQuireError(thrown).param === "model";
    const own = isOpen ? await modelOfSession(env, tenant.namespace, sessionId) : undefined;
    if (own === undefined || own === model) throw thrown;
    return run(await resolveModel(env, tenant.namespace, own));
  }
}

interface TurnToAnswer extends Caller {
  requestId: string;
  place: Place;
  model: string;
  /** The body. */
  bytes: Uint8Array;
  response: ResponseOptions;
  options: TurnOptions;
  kind: "chat" | "text";
}

async function answerTurn(turn: TurnToAnswer): Promise<Response> {
  const { request, env, requestId, tenant, place, model, bytes, response, options, kind } = turn;
  const { namespace } = tenant;
  const { sessionId: named, includeUsage, resumable } = response;
  const id = `${kind === "chat" ? "chatcmpl" : "cmpl"}-${crypto.randomUUID()}`;
  const head = { kind, id, createdS: Math.floor(Date.now() / 1000), model, includeUsage };
  const idempotencyKey = resumable ? readIdempotencyKey(request.headers) : undefined;
  const context = { env, signal: request.signal };
  const feed = await startTurn(context, {
    requestId,
    model,
    namespace,
    place,
    sessionId: named,
    options,
    head,
    form: response.stream ? "sse" : "frames",
    resumable,
    idempotencyKey,
    bodyDigest: idempotencyKey === undefined ? undefined : await contentDigestHex(bytes),
  });
  const answer = { feed, choiceCount: options.choiceCount, resumable, signal: request.signal };
  // What a session cannot settle any more, its place included, is settled here.
  const onBroken = () => settlePlace(env, { namespace, leaseId: place.leaseId }, 0);
  const out = response.stream ? streamAnswer(answer, onBroken) : await jsonAnswer(answer);
  if (feed.sessionId !== undefined) out.headers.set(SESSION_HEADER, feed.sessionId);
  return out;
}

function validationContext(request: Request, env: Env): ValidationContext {
  return {
    headers: request.headers,
    selectionDefaults: selectionDefaults(env),
    randomSeed: () => crypto.getRandomValues(new Uint32Array(1))[0] ?? 0,
  };
}

async function resolveModel(env: Env, namespace: string, name: string | undefined): Promise<string> {
  if (name === undefined || name === "") throw invalid("model", "Missing required parameter: 'model'.");
  const remembered = isolateModelNames.get(name);
  if (remembered !== undefined) return remembered;
  const ask = () => within<ResolvedModel>(LIMITS.engineExpiryMs, fleetOf(env, namespace).resolveModel(name));
  const resolved = await askAgain(ask);
  if (resolved.status === "known") {
    isolateModelNames.put(name, resolved.id);
    return resolved.id;
  }
  if (resolved.status === "unknown") {
    throw unknownModel(name);
  }
  throw new QuireError("no_engine", "No engine is available for this model now. Try again soon.", {
    retryAfterMs: LIMITS.engineExpiryMs,
  });
}
