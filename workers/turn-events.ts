/** The Worker's end of a turn: finding its session, starting it, and reading its events. */

import { QuireError } from "../protocol/errors.ts";
import { FrameDecoder } from "../protocol/frames.ts";
import { LIMITS } from "../protocol/limits.ts";
import type { ChatMessage } from "../tokenizer/contract.ts";
import { within } from "./deadline.ts";
import type { Env } from "./env.ts";
import type { Place } from "./limits/place.ts";
import { newSessionId } from "./session-id.ts";
import { openTurn } from "./session-log/turn-wire.ts";
import { indexOf, sessionOf } from "./stubs.ts";
import type { IndexRow } from "./tenant-index.ts";
import {
  type AnswerForm,
  type AnswerHead,
  type ForkPoint,
  readError,
  type TurnAnswer,
  type TurnEvent,
  type TurnFeed,
  type TurnJob,
  type TurnOptions,
} from "./turn-job.ts";
import { isolateSessions } from "./worker-turn/known-sessions.ts";
import { runInWorker, type WorkerTurnContext } from "./worker-turn/run-in-worker.ts";

/** A turn that an engine has admitted. */
export interface StartedTurn extends TurnFeed {
  sessionId: string | undefined;
  /** It runs in this Worker: its stream does not break off, whatever becomes of its session's object. */
  isHere: boolean;
}

/** A turn and its caller. */
export interface TurnRequest {
  requestId: string;
  model: string;
  namespace: string;
  place: Place;
  sessionId: string | undefined;
  options: TurnOptions;
  head: AnswerHead;
  form: AnswerForm;
  resumable: boolean;
  idempotencyKey: string | undefined;
  /** See {@link TurnJob}. */
  bodyDigest: string | undefined;
}

/**
 * Starts a turn in its session: the one it names, or the one whose log its transcript continues, or a fork of that, or a new one.
 * Raw text without a session is not logged. The turn runs in this Worker, unless it must outlive it.
 * @throws {QuireError} what the client has to hear instead of a stream.
 */
export async function startTurn(context: WorkerTurnContext, request: TurnRequest): Promise<StartedTurn> {
  const { options, sessionId, place, ...rest } = request;
  const { namespace } = request;
  const { input } = options;
  const turn = new PlacedTurn(context, { ...options, ...rest }, place);
  if (sessionId !== undefined) return turn.run({ id: sessionId, implicit: false });
  if (input.kind !== "chat") return turn.run(undefined);
  const near = isolateSessions.find(namespace, input.chain);
  const goneOn = near && (await turn.goOn(near));
  if (goneOn) return goneOn;
  const known = isWorthLookup(input.messages) ? await lookUp(context.env, namespace, input.chain) : undefined;
  if (!known) return turn.run({ id: newSessionId(), implicit: true }, { isNew: true });
  const { chain, messageCount, named } = known;
  const continued = !named && messageCount < input.messages.length && (await turn.goOn(known));
  if (continued) return continued;
  const forkFrom: ForkPoint = { sessionId: known.sessionId, messageCount, chain };
  return turn.run({ id: newSessionId(), implicit: true, forkFrom });
}

/** What an equal prompt of this length would save is less than asking takes. */
const LOOKUP_CHARS_MIN = 1_024;

/** A transcript without a reply is the first of its session, unless somebody asked the same before; then a fork spares a long one its prefill. */
function isWorthLookup(messages: readonly ChatMessage[]): boolean {
  if (messages.some(({ role }) => role === "assistant")) return true;
  return messages.reduce((sum, { content }) => sum + content.length, 0) >= LOOKUP_CHARS_MIN;
}

/** Without the index a turn is only slower: it must not fail or wait for it. */
async function lookUp(env: Env, namespace: string, chain: string[]): Promise<IndexRow | undefined> {
  const asked = indexOf(env, namespace).resolve(chain);
  return within(LIMITS.indexMsMax, asked).catch(() => undefined);
}

type Session = NonNullable<TurnJob["session"]>;

/** A turn that looks for the session that takes it. */
class PlacedTurn {
  readonly #context: WorkerTurnContext;
  readonly #job: TurnJob;
  readonly #place: Place;

  constructor(context: WorkerTurnContext, job: TurnJob, place: Place) {
    this.#context = context;
    this.#job = job;
    this.#place = place;
  }

  /** Goes on with the session of a transcript; undefined when that has moved on since. */
  goOn({ sessionId, chain }: IndexRow): Promise<StartedTurn | undefined> {
    return this.#try({ id: sessionId, implicit: true, expectChain: chain }, false);
  }

  /** @throws {QuireError} for a turn that its session does not take */
  async run(session: Session | undefined, { isNew = false } = {}): Promise<StartedTurn> {
    const started = await this.#try(session, isNew);
    if (started) return started;
    throw new QuireError("session_busy", "This session is working on another turn.", { retryAfterMs: 1_000 });
  }

  async #try(session: Session | undefined, isNew: boolean): Promise<StartedTurn | undefined> {
    let isHere = !this.#job.resumable && session?.forkFrom === undefined;
    let answer: TurnAnswer | undefined;
    if (isHere) answer = this.#heard(await runInWorker(this.#asked(session), this.#context, { isNew }));
    if (session && (answer === undefined || answer.status === "long")) {
      isHere = false;
      const stub = sessionOf(this.#context.env, this.#job.namespace, session.id);
      answer = this.#heard(await openTurn(stub, this.#asked(session)));
    }
    if (answer?.status === "streaming") return { ...answer, sessionId: session?.id, isHere };
    if (answer?.status === "refused") throw readError(answer.error);
    return undefined;
  }

  /** The turn for whom is to run it, and with it the question for its place, until one has asked. */
  #asked(session: Session | undefined): TurnJob {
    const place = this.#place;
    const asked = place.admission ? undefined : place.handOver();
    return { ...this.#job, ...(session && { session }), leaseId: place.leaseId, place: asked };
  }

  #heard(answer: TurnAnswer): TurnAnswer {
    const { status, admission, leaseId } = answer;
    // A turn that failed is told why, whatever the limiter said; a place that it was given is there for another try.
    const isMoot = status === "refused" && admission?.refusedBy !== undefined;
    this.#place.answered(isMoot ? undefined : admission, leaseId);
    return answer;
  }
}

/**
 * Events of a turn that come as frames, up to and including `end` or `error`. Leaving the loop early, or cancelling `reader`, tells the session that nobody
 * listens.
 * @throws {QuireError} `engine_failed` for a stream that breaks off.
 */
export async function* turnEvents(reader: ReadableStreamDefaultReader<Uint8Array>): AsyncGenerator<TurnEvent> {
  const decoder = new FrameDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      for (const event of decoder.push(value) as TurnEvent[]) {
        yield event;
        if (event.type === "end" || event.type === "error") return;
      }
    }
  } catch (thrown) {
    if (thrown instanceof QuireError) throw thrown;
    throw new QuireError("engine_failed", "The connection to the session was lost.", { cause: thrown });
  } finally {
    await reader.cancel().catch(() => undefined);
  }
  throw new QuireError("engine_failed", "The reply broke off.");
}
