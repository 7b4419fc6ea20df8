/**
 * Turns that run in the Worker that their client is connected to. Their session's object is asked beside the engine: before it has said that the
 * session is this turn's, and its log what the turn goes on from, nothing of it is let out; and it has written the log before the turn's last
 * event. Nobody is asked for text without a session, nor for the first turn of a session that was named here.
 */
import { waitUntil } from "cloudflare:workers";
import type { Env } from "../env.ts";
import { RecentMap } from "../recent-map.ts";
import { NextTurn, newMemory, type TurnMemory } from "../session-log/next-turn.ts";
import {
  busyAnswer,
  type Entry,
  enterTurn,
  type OpenedTurn,
  SOON_MS,
  saysOnly,
  TurnCourse,
  type TurnHost,
} from "../session-log/turn-course.ts";
import { newStreamId, TurnStream } from "../session-log/turn-stream.ts";
import type { TurnAnswer, TurnJob } from "../turn-job.ts";
import { HeldSession } from "./held-session.ts";

/** The Worker that a turn runs in. */
export interface WorkerTurnContext {
  env: Env;
  /** Aborted when the client is gone, where the platform tells. */
  signal: AbortSignal;
}

/** A turn as it runs here. */
interface HereTurn extends WorkerTurnContext {
  turnId: string;
  /** Undefined for text without one. */
  session: HeldSession | undefined;
  /** Its session was named a moment ago, here. */
  isNew: boolean;
  memory: TurnMemory;
  /** Called when all is said. */
  onEnded: () => void;
}

/** Tenants and models whose last turn an isolate remembers. */
const NEXT_TURN_COUNT_MAX = 1_024;

/**
 * What turns without a session to go on with leave to the next one of their tenant and model, by isolate. Each leaves one engine and one place to
 * one other: a turn goes where one has just ended, so that no engine has more of them than the fleet gave it.
 */
const isolateNextTurns = new RecentMap<NextTurn>({ countMax: NEXT_TURN_COUNT_MAX });

function nextTurnOf({ namespace, model }: TurnJob): NextTurn {
  const name = `${namespace} ${model}`;
  const known = isolateNextTurns.get(name);
  if (known) return known;
  const next = new NextTurn(() => Date.now());
  isolateNextTurns.put(name, next);
  return next;
}

/**
 * Runs a turn that is not resumable. Resolves as a session does (`SessionLog.fetch`): once an engine has admitted the turn and its session is its
 * own, or nobody will run it here.
 * @param isNew its session was named a moment ago, here
 */
export async function runInWorker(
  asked: TurnJob,
  context: WorkerTurnContext,
  { isNew }: { isNew: boolean },
): Promise<TurnAnswer> {
  const { env } = context;
  const turnId = newStreamId();
  const session = asked.session && new HeldSession(env, { job: asked, turnId, isNew });
  const own = session?.known.memory;
  const memory = own && !isNew ? own : { ...(own ?? newMemory(nextTurnOf(asked))), next: nextTurnOf(asked) };
  const over = Promise.withResolvers<void>();
  // The Worker stays for it when the client has gone: what that was given is still to be written.
  waitUntil(over.promise);
  const turn: HereTurn = { ...context, turnId, session, isNew, memory, onEnded: over.resolve };
  let answer: TurnAnswer | undefined;
  try {
    answer = await enterTurn(asked, { env, next: memory.next }, (entry) => openConfirmed(turn, entry));
    return answer;
  } finally {
    if (answer?.status !== "streaming") {
      await session?.release();
      over.resolve();
    }
  }
}

/** Opens the turn on what is known here of the log, and again on what the object has where that is another one. */
async function openConfirmed(turn: HereTurn, entry: Entry): Promise<OpenedTurn> {
  const { session, isNew } = turn;
  const opened = await openCourse(turn, entry);
  if (!session || isNew) return opened;
  const verdict = await session.confirm().catch(async (thrown: unknown) => {
    await opened.takeBack();
    throw thrown;
  });
  if (verdict === "same") return opened;
  await opened.takeBack();
  if (verdict === "long") return saysOnly({ status: "long" });
  if (verdict === "busy") return saysOnly(busyAnswer(entry.job));
  session.accept();
  return openCourse(turn, entry);
}

function openCourse(turn: HereTurn, { job, place, isReserved }: Entry): Promise<OpenedTurn> {
  const { env, signal, turnId, session, isNew, memory, onEnded } = turn;
  const stream = new TurnStream({ resumable: false, streamId: turnId, isAttendedLater: true });
  const stop = () => stream.stop();
  const leave = () => stream.leave();
  if (signal.aborted) leave();
  let isLetOut = false;
  let isAttended = false;
  const listenSoon = () => {
    if (session && isLetOut && isAttended) course.later(SOON_MS, () => void session.listen(stop));
  };
  const host: TurnHost = {
    read: () => session?.read() ?? Promise.resolve(undefined),
    attend: () => {
      isAttended = true;
      signal.addEventListener("abort", leave);
      if (signal.aborted) leave();
      listenSoon();
    },
    commit: async (commit) => session?.write(commit),
    // Before that it may have to be opened again.
    giveUp: async () => (isLetOut ? session?.release() : undefined),
    progress: () => undefined,
    begun: () => {
      isLetOut = true;
      listenSoon();
    },
    ended: (isSaid) => {
      if (!isSaid) return;
      session?.end();
      onEnded();
    },
  };
  // A turn that will come to nothing, or begins with the wrong log, waits for no engine.
  const ask = (): void => {
    void place.askBeside(stop);
    session?.confirm().then((verdict) => (verdict === "same" ? undefined : stop()), stop);
  };
  const beside = isReserved && (isNew || !session) ? undefined : ask;
  const course: TurnCourse = new TurnCourse({ env, job, stream, host, memory, beside, isReserved, done: [] });
  return course.open();
}
