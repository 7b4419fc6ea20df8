/** One generation at an engine: POST a frame, read frames until the terminal event. */
import { isErrorCode, QuireError } from "../../protocol/errors.ts";
import { encodeFrame } from "../../protocol/frames.ts";
import {
  type CancelRequest,
  ENGINE_PATHS,
  type EngineEvent,
  type GenerateRequest,
  PROTOCOL_VERSION,
} from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { engineHeaders } from "../auth/engine-headers.ts";
import type { PickedEngine } from "../fleet-table.ts";
import { AnswerBatches } from "./answer-batches.ts";

const FRAMES_TYPE = "application/x-quire-frames";
/**
 * A first token that comes so soon leaves in one piece with the headers; later ones come when nobody minds that those waited. A call that is not
 * admitted by then is watched.
 */
const SLOW_MS = 2;

/** What a call needs. */
export interface EngineCallOptions {
  engine: PickedEngine;
  request: GenerateRequest;
  engineKey: string;
  /** Ends a call that is not admitted yet; an admitted one is for {@link EngineCall.drop}. */
  signal: AbortSignal;
  /** Likewise; an admitted one is for {@link EngineCall.cancel}. */
  admission?: AbortSignal | undefined;
  fetch: typeof fetch;
  /** Called where the engine takes longer than `SLOW_MS` to admit it. */
  onSlow?: () => void;
}

/** An admitted generation. */
export interface EngineCall {
  readonly numericsId: string;
  readonly engineId: string;
  /** What came with the admission or right behind it: it need not be waited for. For {@link laterEvent}, like what follows. */
  readonly first: readonly unknown[];
  /**
   * What follows, as it comes; undefined at the end.
   * @throws {QuireError} `engine_failed` for a stream that is cut or not understood.
   */
  next(): Promise<readonly unknown[] | undefined>;
  /** Nobody reads the rest: {@link next} is not called any more. Never rejects. */
  close(): Promise<void>;
  /**
   * Asks the engine to end now, once; its `done` still arrives. Closes the connection when it does not within `LIMITS.cancelMsMax`, and at
   * once when the engine cannot be asked. Never rejects.
   */
  cancel(): Promise<void>;
  /** Closes the connection to an engine that is not there any more: {@link next} throws `engine_failed`. */
  drop(): void;
}

/** What an engine says of a generation that it has admitted. */
export type CallEvent = Exclude<EngineEvent, { type: "admitted" | "failed" }>;

/** An event behind `admitted`. @throws {QuireError} the engine's own error for `failed`; `engine_failed` for what is not understood. */
export function laterEvent(value: unknown): CallEvent {
  const event = checkEvent(value);
  if (event.type === "failed") throw failure(event);
  if (event.type === "admitted") throw engineFailed("admitted twice");
  return event;
}

/** For an answer that ended without `done`. */
export function brokenOff(): QuireError {
  return engineFailed("the engine's answer has no end");
}

/**
 * Sends a generation to an engine and waits until it is admitted.
 * @throws {QuireError} `engine_failed` when the engine cannot be reached or understood, `deadline_exceeded` when it says nothing for
 * `LIMITS.admissionMsMax`, otherwise what the engine answered.
 */
export async function openEngineCall(options: EngineCallOptions): Promise<EngineCall> {
  const closing = new AbortController();
  const { numericsId, first, batches } = await admit(options, closing);
  let cancelled: Promise<void> | undefined;
  return {
    numericsId,
    engineId: options.engine.engineId,
    first,
    next: () => batches.next(),
    close: () => batches.close(),
    cancel: () => {
      cancelled ??= cancelCall(options, closing);
      return cancelled;
    },
    drop: () => closing.abort(),
  };
}

interface Admitted {
  numericsId: string;
  /** What came with it, or right behind it. */
  first: readonly unknown[];
  batches: AnswerBatches;
}

async function admit(options: EngineCallOptions, closing: AbortController): Promise<Admitted> {
  const watch = new AdmissionWatch(options, closing);
  try {
    const response = await post(options, ENGINE_PATHS.generate, options.request, closing.signal);
    const batches = answerOf(response);
    const [head, ...rest] = (await batches?.next()) ?? [];
    if (!batches || head === undefined) throw statusError(response.status);
    const first = checkEvent(head);
    if (first.type === "failed") throw failure(first);
    if (first.type !== "admitted") throw engineFailed(`the first event is ${first.type}`);
    if (options.signal.aborted) throw engineFailed("the call was ended");
    watch.end();
    return {
      numericsId: first.numericsId,
      first: rest.length > 0 ? rest : await batches.nextBefore(watch.slow),
      batches,
    };
  } catch (thrown) {
    closing.abort();
    if (options.admission?.aborted) throw new QuireError("cancelled", "The client left before its turn began.");
    if (watch.isLate)
      throw new QuireError("deadline_exceeded", "The engine did not answer in time.", { cause: thrown });
    if (thrown instanceof QuireError) throw thrown;
    throw engineFailed("the engine cannot be reached", thrown);
  } finally {
    watch.stop();
  }
}

/** Ends a call that is not admitted in time, or is not wanted any more. Most are admitted before there is anything to watch. */
class AdmissionWatch {
  readonly #options: EngineCallOptions;
  readonly #closing: AbortController;
  readonly #slow = Promise.withResolvers<undefined>();
  readonly #soon: ReturnType<typeof setTimeout>;
  #deadline: ReturnType<typeof setTimeout> | undefined;
  #isOver = false;
  isLate = false;

  constructor(options: EngineCallOptions, closing: AbortController) {
    this.#options = options;
    this.#closing = closing;
    this.#leaveIfOver();
    this.#soon = setTimeout(() => this.#begin(), SLOW_MS);
  }

  /** Settles `SLOW_MS` behind the beginning, unless stopped. */
  get slow(): Promise<undefined> {
    return this.#slow.promise;
  }

  /** The call is admitted. */
  end(): void {
    this.#isOver = true;
    if (this.#deadline === undefined) return;
    const { signal, admission } = this.#options;
    clearTimeout(this.#deadline);
    signal.removeEventListener("abort", this.#leaveIfOver);
    admission?.removeEventListener("abort", this.#leaveIfOver);
  }

  stop(): void {
    this.end();
    clearTimeout(this.#soon);
  }

  #begin(): void {
    this.#slow.resolve(undefined);
    if (this.#isOver) return;
    const { signal, admission, onSlow } = this.#options;
    this.#deadline = setTimeout(() => {
      this.isLate = true;
      this.#closing.abort();
    }, LIMITS.admissionMsMax);
    signal.addEventListener("abort", this.#leaveIfOver);
    admission?.addEventListener("abort", this.#leaveIfOver);
    this.#leaveIfOver();
    onSlow?.();
  }

  readonly #leaveIfOver = (): void => {
    const { signal, admission } = this.#options;
    if (signal.aborted || admission?.aborted) this.#closing.abort();
  };
}

async function post(
  { engine, engineKey, fetch }: EngineCallOptions,
  path: string,
  message: GenerateRequest | CancelRequest,
  signal: AbortSignal,
): Promise<Response> {
  const body = encodeFrame(message);
  const headers = await engineHeaders({ engineKey, engineId: engine.engineId, path, body });
  return fetch(`${engine.url}${path}`, { method: "POST", headers, body, signal });
}

async function cancelCall(options: EngineCallOptions, closing: AbortController): Promise<void> {
  const timer = setTimeout(() => closing.abort(), LIMITS.cancelMsMax);
  const cancel: CancelRequest = { version: PROTOCOL_VERSION, requestId: options.request.requestId };
  try {
    const answer = await post(options, ENGINE_PATHS.cancel, cancel, closing.signal);
    await answer.body?.cancel();
    if (!answer.ok) closing.abort();
  } catch {
    clearTimeout(timer);
    closing.abort();
  }
}

/** Undefined for an answer that says nothing but its status. */
function answerOf(response: Response): AnswerBatches | undefined {
  if (!response.body) return undefined;
  // A refusal may come as a frame under any status; a body that is not frames is not ours.
  if (response.ok || (response.headers.get("content-type") ?? "").startsWith(FRAMES_TYPE)) {
    return new AnswerBatches(response.body, (cause) => engineFailed("the connection to the engine was lost", cause));
  }
  void response.body.cancel().catch(() => undefined);
  return undefined;
}

/** An engine is ours but may be of another version: what does not look like an event ends the call. */
function checkEvent(value: unknown): EngineEvent {
  if (typeof value === "object" && value !== null && "type" in value) {
    const event = value as EngineEvent;
    if (event.type === "admitted" && typeof event.numericsId === "string") return event;
    if (event.type === "tokens" && event.ids instanceof Uint8Array && event.ids.byteLength % 4 === 0) return event;
    if (event.type === "done" && Array.isArray(event.spans) && typeof event.usage === "object") return event;
    if (event.type === "failed") return event;
  }
  throw engineFailed("an event is malformed");
}

function failure(event: Extract<EngineEvent, { type: "failed" }>): QuireError {
  const code = isErrorCode(event.code) ? event.code : "engine_failed";
  return new QuireError(code, event.message, { param: event.param, retryAfterMs: event.retryAfterMs });
}

function statusError(status: number): QuireError {
  if (status === 429) return new QuireError("queue_full", "The engine's queue is full.", { retryAfterMs: 1_000 });
  if (status === 401)
    return engineFailed("the engine answered 401: its key is another one, or the clocks differ by more than 30 s");
  return engineFailed(`the engine answered ${status} and nothing else`);
}

function engineFailed(what: string, cause?: unknown): QuireError {
  return new QuireError("engine_failed", "The engine failed while it worked on this request.", {
    cause: new QuireError("engine_failed", what, { cause }),
  });
}
