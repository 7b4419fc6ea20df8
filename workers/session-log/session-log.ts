/** Durable Object, one per session: its log, and the turns that must outlive their client's connection. */
import { type ErrorCode, QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { within } from "../deadline.ts";
import { settlePlace } from "../limits/admission.ts";
import { logError } from "../log.ts";
import { RecentMap } from "../recent-map.ts";
import { enlist } from "../session-expiry.ts";
import { indexOf } from "../stubs.ts";
import type { ResumeRequest, TurnAnswer, TurnFeed, TurnJob, TurnName } from "../turn-job.ts";
import { exportLog, unpackCommit } from "./log-image.ts";
import { LogObject } from "./log-object.ts";
import { type LogCommit, versionOf } from "./log-store.ts";
import { NextTurn, newMemory } from "./next-turn.ts";
import { isNamed, Replays } from "./replays.ts";
import { type LostTurn, RunningStore } from "./running-store.ts";
import { wireError } from "./turn-accounts.ts";
import {
  busyAnswer,
  type CourseOptions,
  type Entry,
  enterTurn,
  type OpenedTurn,
  saysOnly,
  TurnCourse,
  type TurnHost,
} from "./turn-course.ts";
import { TurnHold } from "./turn-hold.ts";
import { TurnStream } from "./turn-stream.ts";
import { answerTurn } from "./turn-wire.ts";

/** The turn that runs. */
interface Running {
  /** Names it, as its stream is named. */
  id: string;
  idempotencyKey: string | undefined;
  /** Ends it, as if its client had gone. */
  stop(): void;
  /** Of one that runs elsewhere: it is over. */
  end?(): void;
  /** Undefined for one that runs elsewhere. */
  course?: TurnCourse;
}

/** A session that is held for a turn. */
export interface SessionHold {
  hold: TurnHold;
  /** The log is the one that the Worker knows. */
  isKnown: boolean;
  /** Otherwise the log ({@link LogImage}); undefined where there is none. */
  image?: Uint8Array | undefined;
}

/**
 * Owns the exact token log of one conversation. A turn runs here, with its fetch to the engine and its stream, or in the Worker of its client
 * while the session is held for it ({@link SessionLog.hold}). The log changes only when a turn ends, in one transaction, before its terminal
 * event: a turn that fails, or an object that dies, leaves it as it was. A resumable turn whose object died is taken up by the next one, when
 * its client or the alarm asks for it.
 */
export class SessionLog extends LogObject {
  readonly #replays = new Replays(this.ctx.storage, () => Date.now());
  readonly #memory = newMemory(new NextTurn(() => Date.now()));
  readonly #lost = new RunningStore(this.ctx.storage, () => Date.now());
  /** Turns by the client's name that were ended before they came: a request that ends one may overtake the one that begins it. */
  readonly #stopped = new RecentMap<true>({
    ...{ countMax: LIMITS.stoppedTurnCountMax, ageMsMax: LIMITS.stoppedTurnMsMax },
    now: () => Date.now(),
  });
  #running: Running | undefined;
  /** Of the log that was deleted last. */
  #deletedVersion: string | undefined;
  /** While the session is being deleted. */
  #isLeaving = false;
  /** Whether this object has looked for a turn that an earlier one left. */
  #hasLooked = false;

  protected override get isBusy(): boolean {
    return this.#running !== undefined;
  }

  /** Runs one turn for the Worker: see {@link openTurn}, whose end of the wire this is. */
  override fetch(request: Request): Promise<Response> {
    return answerTurn(request, (job) => this.#turn(job));
  }

  /**
   * Resolves once an engine has admitted the turn (or nobody will) and the limiter has let it in; what follows is in the stream of frames
   * (`TurnEvent`). A reader that goes away aborts the engine's work, unless the turn is resumable; what it was given by then stays in
   * the log.
   */
  #turn(asked: TurnJob): Promise<TurnAnswer> {
    this.#takeUpLost();
    const { idempotencyKey, bodyDigest, form } = asked;
    const again =
      idempotencyKey === undefined ? undefined : this.#replays.find({ idempotencyKey, bodyDigest, form, from: 0 });
    const isStopped = idempotencyKey !== undefined && this.#stopped.get(idempotencyKey) === true;
    return enterTurn(asked, { env: this.env, next: this.#memory.next }, async (entry) => {
      if (again === "other") return saysOnly(otherAnswer());
      if (again && again !== "cut") return this.#openAgain(entry.job, again);
      if (isStopped) return saysOnly(stoppedAnswer());
      return again ? saysOnly(cutAnswer()) : this.#open(entry);
    });
  }

  /** A turn that was asked for before, under the same name. */
  #openAgain(job: TurnJob, feed: TurnFeed): OpenedTurn {
    const letOut = async (): Promise<TurnAnswer> => {
      // The turn has a place already.
      await settlePlace(this.env, job, 0);
      return { status: "streaming", ...feed };
    };
    // Whoever does not hear it does not listen, either.
    return { letOut, takeBack: () => feed.stream.cancel() };
  }

  async #open({ job, place, isReserved }: Entry): Promise<OpenedTurn> {
    if (this.#running || this.#isLeaving) return saysOnly(busyAnswer(job));
    const stream = new TurnStream({ resumable: job.resumable, isAttendedLater: true });
    const beside = () => void place.askBeside(() => stream.stop());
    return this.#course(job, stream, { beside, isReserved, done: [] }).open();
  }

  #course(
    job: TurnJob,
    stream: TurnStream,
    options: Pick<CourseOptions, "beside" | "isReserved" | "done">,
  ): TurnCourse {
    const { env } = this;
    const course: TurnCourse = new TurnCourse({
      ...{ env, job, stream, memory: this.#memory, ...options },
      host: this.#host(job, stream, (ms, act) => course.later(ms, act)),
    });
    this.#running = { id: stream.id, idempotencyKey: job.idempotencyKey, stop: () => stream.stop(), course };
    return course;
  }

  #host(job: TurnJob, stream: TurnStream, later: TurnCourse["later"]): TurnHost {
    // Written or given up: were it noted now, the next object would run it again, or its alarm end the session.
    let isSettled = false;
    const note = (numericsId: string) => {
      if (!isSettled) this.#note(job, { streamId: stream.id, numericsId });
    };
    return {
      read: async () => {
        const { id = "", forkFrom } = job.session ?? {};
        if (forkFrom && !this.open().meta()) await this.adoptPrefix(id, job.namespace, forkFrom);
        return this.open().known();
      },
      commit: (commit) => {
        isSettled = true;
        return this.#write(commit, stream);
      },
      giveUp: () => {
        isSettled = true;
        return this.#giveUp(job);
      },
      progress: (ids) => this.#lost.progress(ids),
      begun: (numericsId) => {
        this.#replays.begin(stream, job, numericsId);
        if (isNotable(job)) later(LIMITS.runningNoteMs, () => note(numericsId));
      },
      ended: (isSaid) => {
        if (isSaid) this.#keepReplay(job, stream);
        this.#running = undefined;
      },
    };
  }

  #keepReplay(job: TurnJob, stream: TurnStream): void {
    try {
      this.#replays.end(stream);
      // Nothing else ends what is left of a session that has no log.
      if (job.resumable && !this.open().meta()) this.#setAlarm(LIMITS.replayKeepMs);
    } catch (thrown) {
      // Without it the turn is only not there for clients that come back after the object's death.
      logError(job.requestId, thrown);
    }
  }

  /**
   * The rest of the session's last turn, running or ended, for a client that lost its connection. A turn that has ended is there for
   * `LIMITS.replayKeepMs`; one that ran when the object was lost is taken up again.
   * @returns undefined for a turn that is not resumable, not the last one, or does not hold that event any more
   */
  async resume(request: ResumeRequest): Promise<TurnFeed | undefined> {
    this.#takeUpLost();
    return this.#replays.resume(request);
  }

  /**
   * Ends the turn that runs, as a client does that goes away. One that has not come yet does not run either, if it comes under the name that its
   * client gave it within `LIMITS.stoppedTurnMsMax`.
   * @returns false when none runs, or another one
   */
  async stopTurn(name: TurnName): Promise<boolean> {
    this.#takeUpLost();
    const running = this.#running;
    if (!running || !isNamed(name, running.id, running.idempotencyKey)) {
      if (name.idempotencyKey !== undefined) this.#stopped.put(name.idempotencyKey, true);
      return false;
    }
    running.stop();
    return true;
  }

  /**
   * Keeps the session for a turn that runs in a Worker, until that is written, {@link release} is called, or what is returned is disposed of, which
   * happens also when that Worker is gone. Asked again, because its answer was lost, it keeps the session under what it returns now.
   * @param version of the log as that Worker knows it (`versionOf`); another one is answered with the log
   * @returns "busy" when another turn has it, or it is being deleted; "long" for a log that is too long to leave: its turns run here
   */
  async hold(turnId: string, version: string | undefined): Promise<SessionHold | "busy" | "long"> {
    this.#takeUpLost();
    if (this.#isLeaving || (this.#running && this.#running.id !== turnId)) return "busy";
    const now = versionOf(this.open().meta());
    const isKnown = now === version && now !== "";
    const image = isKnown ? undefined : exportLog(this.open(), undefined);
    if (image && image.byteLength > LIMITS.logImageBytesMax) return "long";
    const hold: TurnHold = new TurnHold(() => {
      if (this.#running === running) this.#running = undefined;
    });
    const running: Running = {
      ...{ id: turnId, idempotencyKey: undefined },
      stop: () => hold.stop(),
      end: () => hold.end(),
    };
    this.#running = running;
    return { hold, isKnown, image };
  }

  /**
   * Writes a turn that ran in a Worker, also when the session was not held for it or is not any more. Asked again, because its answer was lost, it
   * writes nothing and gives the same answer.
   * @param version of the log that it goes on from
   * @param commit as `packCommit` makes it
   * @returns false when the log has changed, or the session is another turn's
   */
  async write(turnId: string, version: string | undefined, commit: Uint8Array): Promise<boolean> {
    this.#takeUpLost();
    const change = unpackCommit(commit);
    const now = versionOf(this.open().meta());
    if (now && now === change.meta.version) return true;
    // Asked again, of a turn that was written and deleted meanwhile.
    if (this.#deletedVersion !== undefined && this.#deletedVersion === change.meta.version) return true;
    if (this.#isLeaving || (this.#running && this.#running.id !== turnId)) return false;
    if (now !== version) return false;
    this.#replays.supersede();
    await this.#write(change);
    this.#release(turnId);
    return true;
  }

  /** The turn for which the session is held came to nothing. */
  async release(turnId: string): Promise<void> {
    this.#release(turnId);
  }

  #release(turnId: string): void {
    if (this.#running?.id !== turnId) return;
    this.#running.end?.();
    this.#running = undefined;
  }

  /**
   * Deletes the session and its index entries, and through engines what is stored of it, and what they hold. Those that do not answer now, or are not
   * there, do so when they come back.
   * @returns false when there was none; "busy" while a turn runs, or it is being deleted already
   */
  async remove(): Promise<boolean | "busy"> {
    this.#takeUpLost();
    if (this.#running || this.#isLeaving) return "busy";
    const meta = this.open().meta();
    if (!meta) return false;
    this.#isLeaving = true;
    try {
      await within(LIMITS.indexMsMax, indexOf(this.env, meta.namespace).forget(meta.id));
      // Noted before the log goes: a deletion that ends half-way can be repeated.
      await this.endStored(meta);
      this.#deletedVersion = meta.version;
      this.#replays.clear();
      await this.wipe();
    } finally {
      this.#isLeaving = false;
    }
    return true;
  }

  /**
   * Asked by a list that has the session: deletes it where nobody has used it for `LIMITS.sessionIdleMsMax`, else has it listed anew. Of a session that
   * is not there nothing is written, and one that is listed no more has an alarm of its own.
   * @throws when it is to be asked again: somebody else does not answer
   */
  async expire(): Promise<void> {
    this.#takeUpLost();
    const meta = this.open().meta();
    if (!meta?.isListed) return;
    const usedMs = this.#running ? Date.now() : (meta.usedMs ?? 0);
    if (Date.now() - usedMs < LIMITS.sessionIdleMsMax) {
      await enlist(this.env, { namespace: meta.namespace, objectId: this.objectId, usedMs });
    } else if ((await this.remove()) === "busy") {
      throw new QuireError("session_busy", "This session is being deleted.");
    }
  }

  /** While a turn runs: looks after it, and takes it up when its object was lost. Otherwise ends a session that no list has. */
  override async alarm(): Promise<void> {
    this.#takeUpLost();
    if (!this.#running) {
      await this.#expireAlone();
      return;
    }
    await this.ctx.storage.setAlarm(Date.now() + LIMITS.runningAlarmMs);
    // A turn that nobody asks for lives as long as the handler does.
    await this.#running?.course?.over;
  }

  async #expireAlone(): Promise<void> {
    const { storage } = this.ctx;
    const meta = this.open().meta();
    // A log of before, and what is there without a log, have no other alarm than the one that ends them.
    const usedMs = meta?.usedMs ?? 0;
    if (Date.now() - usedMs < LIMITS.sessionIdleMsMax) {
      await this.restAlarm(usedMs);
      return;
    }
    // An alarm that fails is repeated a few times only: whoever does not answer now is asked again then.
    await storage.setAlarm(Date.now() + LIMITS.expiryRetryMs);
    try {
      if (!(await this.remove())) await this.wipe();
    } catch (thrown) {
      logError(`expire ${this.objectId}`, thrown);
    }
  }

  /** Goes on with the turn that ran when an earlier object was lost, if there is one. Its client comes back for it, or nobody listens. */
  #takeUpLost(): void {
    if (this.#hasLooked) return;
    this.#hasLooked = true;
    const lost = this.#lost.take();
    if (!lost) return;
    const { job, streamId, numericsId, ids } = lost;
    const stream = new TurnStream({ resumable: true, revived: true, streamId });
    const course = this.#course(job, stream, { beside: undefined, isReserved: false, done: ids });
    this.#replays.begin(stream, job, numericsId);
    course.takeUp(this.#mayTakeUp(lost) ? undefined : new QuireError("engine_failed", "The turn was lost."));
  }

  #mayTakeUp({ attempt, startedMs, turnCount }: LostTurn): boolean {
    const isThere = (this.open().meta()?.turnCount ?? 0) === turnCount;
    return isThere && attempt <= LIMITS.runningAttemptCountMax && Date.now() - startedMs < LIMITS.turnMsMax;
  }

  /**
   * Writes a turn down that has to be taken up should this object be lost, once it has run for a moment: most are over sooner, and the first
   * token waits for no disk.
   */
  #note(job: TurnJob, facts: { streamId: string; numericsId: string }): void {
    const startedMs = Date.now() - LIMITS.runningNoteMs;
    this.#lost.begin({ job, ...facts, startedMs, turnCount: this.open().meta()?.turnCount ?? 0 });
    this.#setAlarm(LIMITS.runningAlarmMs);
  }

  /** Nobody waits for it: a storage that fails takes the object with it. */
  #setAlarm(ms: number): void {
    this.ctx.storage.setAlarm(Date.now() + ms, { allowUnconfirmed: true }).catch(() => undefined);
  }

  /** One write: a turn that is in the log is not taken up again, nor run again under its name. */
  async #write(commit: LogCommit, stream?: TurnStream): Promise<void> {
    this.open().commit(commit);
    this.#lost.clear();
    if (stream) this.#replays.written(stream);
    await this.restAlarm();
  }

  /** After a turn that failed: the log is as it was, and a session that only this turn would have made is not there. */
  async #giveUp(job: TurnJob): Promise<void> {
    const isNoted = this.#lost.isNoted;
    this.#lost.clear();
    if (job.session?.implicit && job.session.expectChain === undefined) {
      await this.wipe();
      return;
    }
    if (!isNoted) return;
    if (this.open().meta()) await this.restAlarm();
    // What is left of a session that has no turn is the error, for a client that comes back.
    else await this.ctx.storage.setAlarm(Date.now() + LIMITS.replayKeepMs);
  }
}

function stoppedAnswer(): TurnAnswer {
  return { status: "refused", error: wireError(new QuireError("cancelled", "The turn was ended before it began.")) };
}

/** To be run again it would have to be in the log twice. */
function cutAnswer(): TurnAnswer {
  const message = "The turn of this Idempotency-Key has begun before, and its beginning is not held any more.";
  return refusedKey("stream_not_found", message);
}

/** Two requests of one name: either answer would be the wrong one for somebody. */
function otherAnswer(): TurnAnswer {
  const message =
    "This Idempotency-Key named a request with another body, of the last turn of this session. Use a new key for a new request.";
  return refusedKey("invalid_request", message);
}

function refusedKey(code: ErrorCode, message: string): TurnAnswer {
  return { status: "refused", error: wireError(new QuireError(code, message, { param: "Idempotency-Key" })) };
}

/** Whether a turn can be taken up by another object. Logprobs are not written; a turn with several choices has no one order. */
function isNotable(job: TurnJob): boolean {
  return job.resumable && job.choiceCount === 1 && job.topLogprobs === undefined;
}
