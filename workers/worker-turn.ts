/**
 * Turns that run in the Worker that their client is connected to, with no object between the client and the engine: those without a session,
 * and first turns of sessions that were named here, which nobody else can know of. The session's object is told a moment later, and writes
 * the log before the turn's last event.
 */
import { waitUntil } from "cloudflare:workers";
import { QuireError } from "../protocol/errors.ts";
import type { Env } from "./env.ts";
import { logError } from "./log.ts";
import { RecentMap } from "./recent-map.ts";
import type { LogCommit } from "./session-log/log-store.ts";
import { NextTurn, newMemory } from "./session-log/next-turn.ts";
import { enterTurn, SOON_MS, TurnCourse, type TurnHost } from "./session-log/turn-course.ts";
import { TurnStream } from "./session-log/turn-stream.ts";
import { sessionOf } from "./stubs.ts";
import type { TurnAnswer, TurnJob } from "./turn-job.ts";

/** The Worker that a turn runs in. */
export interface WorkerTurnContext {
  env: Env;
  /** Aborted when the client is gone, where the platform tells. */
  signal: AbortSignal;
}

/** Tenants and models whose last turn an isolate remembers. */
const NEXT_TURN_COUNT_MAX = 1_024;

/**
 * What turns of a tenant with one model leave to its next one, by isolate. Each leaves one engine and one place to one other: a turn goes where
 * one has just ended, so that no engine has more of them than the fleet gave it.
 */
const isolateNextTurns = new RecentMap<NextTurn>({
  countMax: NEXT_TURN_COUNT_MAX,
  ageMsMax: Number.POSITIVE_INFINITY,
  now: () => 0,
});

function nextTurnOf({ namespace, model }: TurnJob): NextTurn {
  const name = `${namespace} ${model}`;
  const known = isolateNextTurns.get(name);
  if (known) return known;
  const next = new NextTurn(() => Date.now());
  isolateNextTurns.put(name, next);
  return next;
}

/**
 * Runs a turn that is not resumable, and whose session, if it has one, is new. Resolves as a session does (`SessionLog.fetch`): once an engine
 * has admitted the turn, or nobody will.
 */
export function runInWorker(asked: TurnJob, context: WorkerTurnContext): Promise<TurnAnswer> {
  const { env, signal } = context;
  const next = nextTurnOf(asked);
  return enterTurn(asked, { env, next }, ({ job, place, isReserved }) => {
    const stream = new TurnStream({ resumable: false });
    const over = Promise.withResolvers<void>();
    // The Worker stays for it when the client has gone: what that was given is written yet.
    waitUntil(over.promise);
    signal.addEventListener("abort", () => stream.stop());
    const log = job.session && new NewLog(env, { job, session: job.session, stream });
    const host: TurnHost = {
      read: async () => undefined,
      commit: async (commit) => log?.begin(commit),
      giveUp: async () => undefined,
      progress: () => undefined,
      begun: () => log && course.later(SOON_MS, () => void log.hold()),
      ended: () => {
        log?.release();
        over.resolve();
      },
    };
    const course: TurnCourse = new TurnCourse({
      ...{ env, job, stream, host, place, isReserved, done: [] },
      memory: newMemory(next),
    });
    return course.open();
  });
}

/** The log of a session that begins with this turn. */
class NewLog {
  readonly #env: Env;
  readonly #turn: { job: TurnJob; session: { id: string }; stream: TurnStream };
  #hold: Disposable | undefined;
  #isOver = false;

  constructor(env: Env, turn: { job: TurnJob; session: { id: string }; stream: TurnStream }) {
    this.#env = env;
    this.#turn = turn;
  }

  /** Tells the session that a turn of it runs, so that no other does, and that it can be asked to end. Never rejects. */
  async hold(): Promise<void> {
    const { job, stream } = this.#turn;
    try {
      const hold = await this.#session().hold(stream.id);
      if (hold === undefined) return;
      if (this.#isOver) {
        hold[Symbol.dispose]();
        return;
      }
      this.#hold = hold;
      if (await hold.stopped()) stream.stop();
    } catch (thrown) {
      // Its object was lost: the turn goes on, and is written if nobody else has begun the session by then.
      logError(job.requestId, thrown);
    }
  }

  /** Writes the turn. @throws {QuireError} `session_busy` when another one has begun the session */
  async begin(commit: LogCommit): Promise<void> {
    if (await this.#session().begin(this.#turn.stream.id, commit)) return;
    throw new QuireError("session_busy", "Another turn has begun this session.", { retryAfterMs: 1_000 });
  }

  release(): void {
    this.#isOver = true;
    this.#hold?.[Symbol.dispose]();
    this.#hold = undefined;
  }

  /** Anew each time: a stub stays with an object that was lost. */
  #session() {
    const { job, session } = this.#turn;
    return sessionOf(this.#env, job.namespace, session.id);
  }
}
