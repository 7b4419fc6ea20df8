/** A session as the Worker has it in which a turn of it runs. */
import { QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { within } from "../deadline.ts";
import type { Env } from "../env.ts";
import { logError } from "../log.ts";
import { knownLog, packCommit } from "../session-log/log-image.ts";
import { type KnownLog, type LogCommit, versionOf } from "../session-log/log-store.ts";
import type { TurnHold } from "../session-log/turn-hold.ts";
import { askAgain, sessionOf } from "../stubs.ts";
import type { TurnJob } from "../turn-job.ts";
import { guessOf, isolateSessions, type KnownSession, unknownSession } from "./known-sessions.ts";

/** What the session's object says to a turn: that the log is what the turn goes on from; another one; or that the turn cannot run here. */
export type Verdict = "same" | "changed" | "busy" | "long";

/** For one turn. It may begin with what is known here of the log, and lets nothing out before {@link confirm} has said that it is so. */
export class HeldSession {
  readonly known: KnownSession;
  readonly #env: Env;
  readonly #turnId: string;
  readonly #namespace: string;
  readonly #id: string;
  /** Made here, a moment ago: nobody else knows its name, so there is nothing to ask. */
  readonly #isNew: boolean;
  #log: KnownLog | undefined;
  #asked: Promise<Verdict> | undefined;
  #held: (Disposable & { hold: Pick<TurnHold, "stopped"> }) | undefined;
  #isOver = false;

  constructor(env: Env, { job, turnId, isNew }: { job: TurnJob; turnId: string; isNew: boolean }) {
    const id = job.session?.id ?? "";
    this.#env = env;
    this.#turnId = turnId;
    this.#namespace = job.namespace;
    this.#id = id;
    this.#isNew = isNew;
    this.known = (isNew ? undefined : isolateSessions.take(job.namespace, id)) ?? unknownSession(() => Date.now());
    this.#log = guessOf(this.known);
    if (isNew) this.#asked = Promise.resolve("same");
  }

  /** The log: as it is known here, or as the object has it. @throws {QuireError} `session_busy` for a session that cannot be asked about */
  async read(): Promise<KnownLog | undefined> {
    if (this.#log !== undefined || this.#isNew) return this.#log;
    const verdict = await this.confirm();
    if (verdict === "busy" || verdict === "long") throw new QuireError("session_busy", "The session is not here.");
    return this.#log;
  }

  /**
   * Asks the object, and the next one where that was lost; the session is this turn's from then on, unless another one has it. Rejects when none
   * answers within `LIMITS.sessionMsMax`.
   */
  confirm(): Promise<Verdict> {
    this.#asked ??= within(
      LIMITS.sessionMsMax,
      askAgain(() => this.#ask()),
    );
    return this.#asked;
  }

  /** The log that was found changed is the one to go on from. */
  accept(): void {
    this.#asked = Promise.resolve("same");
  }

  /**
   * Calls `stop` when somebody asks for the end of the turn. The object of a new session hears of the turn only now, and one that was lost, with
   * whom it was held for, again: the turn goes on all the same, and is written if the log is then as it was. Never rejects.
   */
  async listen(stop: () => void): Promise<void> {
    for (let attempt = 0; attempt < LIMITS.runningAttemptCountMax && !this.#isOver; attempt++) {
      try {
        if (!this.#held) await this.#hold();
        let isStopped: boolean | undefined;
        while (this.#held && isStopped === undefined) isStopped = await this.#held.hold.stopped();
        if (isStopped) stop();
        return;
      } catch (thrown) {
        logError(this.#turnId, thrown);
        this.#drop();
      }
    }
  }

  /**
   * Writes the turn. An object that does not answer, within `LIMITS.sessionMsMax`, is asked once more: one that was lost may have written it.
   * @throws {QuireError} `session_busy` when the log has changed; otherwise what became of the second time
   */
  async write(commit: LogCommit): Promise<void> {
    const version = versionOf(this.#log?.meta);
    const packed = packCommit(commit);
    const ask = () => within(LIMITS.sessionMsMax, this.#session().write(this.#turnId, version, packed));
    const isWritten = await ask().catch((thrown: unknown) => {
      logError(this.#turnId, thrown);
      return ask();
    });
    if (!isWritten) {
      throw new QuireError("session_busy", "Another turn of this session came first.", { retryAfterMs: 1_000 });
    }
    isolateSessions.put(this.known, commit);
  }

  /** The turn came to nothing: the session is free for another. Never rejects. */
  async release(): Promise<void> {
    const isHeld = this.#held !== undefined;
    this.end();
    if (!isHeld) return;
    await this.#session()
      .release(this.#turnId)
      .catch((thrown: unknown) => logError(this.#turnId, thrown));
  }

  /** The turn is over, and written or released. */
  end(): void {
    this.#isOver = true;
    this.#drop();
  }

  #drop(): void {
    this.#held?.[Symbol.dispose]();
    this.#held = undefined;
  }

  /** Has the session held for the turn, which may be over when the answer comes. */
  async #hold() {
    const answer = await this.#session().hold(this.#turnId, versionOf(this.#log?.meta));
    if (answer === "busy" || answer === "long") return answer;
    this.#held = answer;
    if (this.#isOver) await this.release();
    return answer;
  }

  async #ask(): Promise<Verdict> {
    const answer = await this.#hold();
    if (answer === "busy" || answer === "long") return answer;
    if (answer.isKnown) return "same";
    const hadGuess = this.#log !== undefined;
    this.#log = answer.image && knownLog(answer.image);
    if (this.#log) this.known.log.keep(this.#log.log);
    return hadGuess ? "changed" : "same";
  }

  /** Anew each time: a stub stays with an object that was lost. */
  #session() {
    return sessionOf(this.#env, this.#namespace, this.#id);
  }
}
