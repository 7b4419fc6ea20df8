/** The Worker's end of a turn: finding its session, starting it, and reading its events. */

import { QuireError } from "../protocol/errors.ts";
import { FrameDecoder } from "../protocol/frames.ts";
import { LIMITS } from "../protocol/limits.ts";
import { within } from "./deadline.ts";
import type { Place } from "./limits/place.ts";
import { newSessionId } from "./session-id.ts";
import type { SessionLog } from "./session-log/session-log.ts";
import { openTurn } from "./session-log/turn-wire.ts";
import { indexOf, sessionOf } from "./stubs.ts";
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
import { runInWorker, type WorkerTurnContext } from "./worker-turn.ts";

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
}

/**
 * Starts a turn in its session: the one it names, or the one whose log its transcript continues, or a fork of that, or a new one.
 * Raw text without a session is not logged. What nobody else can know of runs here, the rest in its session's object.
 * @throws {QuireError} what the client has to hear instead of a stream.
 */
export async function startTurn(context: WorkerTurnContext, request: TurnRequest): Promise<StartedTurn> {
  const { options, sessionId, place, ...rest } = request;
  const { env } = context;
  const { namespace } = request;
  const job: TurnJob = { ...options, ...rest };
  const { input } = options;
  const runIn = async (session: NonNullable<TurnJob["session"]>) =>
    started(await askSession(sessionOf(env, namespace, session.id), { ...job, session }, place), session.id, false);
  const runHere = async (asked: TurnJob) =>
    started(await ask(asked, place, (placed) => runInWorker(placed, context)), asked.session?.id, true);
  if (sessionId !== undefined) return runIn({ id: sessionId, implicit: false });
  if (input.kind !== "chat") return runHere(job);
  // Without the index a turn is only slower: it must not fail or wait for it.
  const known = await within(LIMITS.indexMsMax, indexOf(env, namespace).resolve(input.chain)).catch(() => undefined);
  if (!known) {
    const session = { id: newSessionId(), implicit: true };
    return job.resumable ? runIn(session) : runHere({ ...job, session });
  }
  const { chain, messageCount, named } = known;
  if (!named && messageCount < input.messages.length) {
    const session = { id: known.sessionId, implicit: true, expectChain: chain };
    const answer = await askSession(sessionOf(env, namespace, session.id), { ...job, session }, place);
    if (answer.status !== "moved") return started(answer, session.id, false);
  }
  const forkFrom: ForkPoint = { sessionId: known.sessionId, messageCount, chain };
  return runIn({ id: newSessionId(), implicit: true, forkFrom });
}

function askSession(session: DurableObjectStub<SessionLog>, job: TurnJob, place: Place): Promise<TurnAnswer> {
  return ask(job, place, (asked) => openTurn(session, asked));
}

/** Gives a turn to whom runs it, and with it the question for its place, until one has asked. */
async function ask(job: TurnJob, place: Place, run: (asked: TurnJob) => Promise<TurnAnswer>): Promise<TurnAnswer> {
  const asked = place.admission ? undefined : place.handOver();
  const answer = await run({ ...job, leaseId: place.leaseId, place: asked });
  // A turn that failed is told why, whatever the limiter said.
  if (answer.status === "refused") place.answered(undefined, answer.leaseId);
  else place.answered(answer.admission, answer.leaseId);
  return answer;
}

function started(answer: TurnAnswer, sessionId: string | undefined, isHere: boolean): StartedTurn {
  if (answer.status === "streaming") return { ...answer, sessionId, isHere };
  if (answer.status === "refused") throw readError(answer.error);
  throw new QuireError("session_busy", "This session is working on another turn.", { retryAfterMs: 1_000 });
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
