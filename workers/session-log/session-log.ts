/** Durable Object, one per session (and one, short-lived and without storage, per request that has none). */
import { assert } from "../../protocol/assert.ts";
import { QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { within } from "../deadline.ts";
import { fleetOf } from "../fleet.ts";
import { askPlace, holdPlace, settlePlace } from "../limits/admission.ts";
import { AskedPlace, NextPlace, nextRequest } from "../limits/place.ts";
import { logError } from "../log.ts";
import { isolateAssets, type ModelAssets } from "../model-assets.ts";
import { indexOf } from "../stubs.ts";
import type { ResumeRequest, TurnAnswer, TurnEvent, TurnFeed, TurnJob, TurnName } from "../turn-job.ts";
import { LogObject } from "./log-object.ts";
import type { LogCommit } from "./log-store.ts";
import { pickEngine } from "./pick-engine.ts";
import { Placement } from "./placement.ts";
import { type PreparedTurn, prepareTurn, SessionMoved } from "./prepare.ts";
import { RenderMemory } from "./render-memory.ts";
import { followTurn, isNamed, Replays } from "./replays.ts";
import { PromptRouter } from "./routed-prompt.ts";
import { type LostTurn, RunningStore } from "./running-store.ts";
import { cutSpans } from "./spans.ts";
import { spentTokens, usageOf, wireError } from "./turn-accounts.ts";
import { buildCommit, indexRows } from "./turn-commit.ts";
import { type ChoiceResult, TurnRunner } from "./turn-runner.ts";
import { TurnStream } from "./turn-stream.ts";
import { answerTurn } from "./turn-wire.ts";

/** When others hear of a turn that went on without asking them: most first tokens are out by then, and load and places are known anew each second. */
const SOON_MS = 20;

/**
 * Owns the exact token log of one conversation, the fetch to the engine, and the stream of the running turn. The log changes only when
 * a turn ends, in one transaction, before its terminal event: a turn that fails, or an object that dies, leaves it as it was. A resumable
 * turn whose object died is taken up by the next one, when its client or the alarm asks for it.
 */
export class SessionLog extends LogObject {
  readonly #replays = new Replays(this.ctx.storage, () => Date.now());
  readonly #router = new PromptRouter();
  readonly #memory = new RenderMemory();
  readonly #lost = new RunningStore(this.ctx.storage, () => Date.now());
  readonly #placement = new Placement(() => Date.now());
  readonly #nextPlace = new NextPlace(() => Date.now());
  #turnEndedMs: number | undefined;
  #busy = false;
  /** The turn that runs: its stream, its end, and what is to be done while it runs. */
  #running:
    | {
        stream: TurnStream;
        idempotencyKey: string | undefined;
        over?: Promise<void>;
        timers: ReturnType<typeof setTimeout>[];
      }
    | undefined;
  /** Whether this object has looked for a turn that an earlier one left. */
  #hasLooked = false;

  protected override get isBusy(): boolean {
    return this.#busy;
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
  async #turn(asked: TurnJob): Promise<TurnAnswer> {
    const reserved = asked.place && this.#nextPlace.take(asked.place);
    const leaseId = reserved?.request.leaseId;
    const job = leaseId === undefined ? asked : { ...asked, leaseId };
    const { idempotencyKey, form } = job;
    if (job.session) this.#takeUpLost();
    const again = idempotencyKey === undefined ? undefined : this.#replays.resume({ idempotencyKey, form, from: 0 });
    if (this.#busy && !again && job.session?.implicit)
      return { status: "moved", admission: reserved?.admission, leaseId };
    const place = new AskedPlace(async () => {
      return reserved?.admission ?? (job.place && askPlace(this.env, job.namespace, job.place));
    });
    const opened = again ? this.#openAgain(job, again) : await this.#openTurn(job, place, reserved !== undefined);
    const admission = await place.ask();
    if (admission?.refusedBy !== undefined) {
      await opened.takeBack();
      return { status: "limited", admission };
    }
    return { ...(await opened.letOut()), admission, leaseId };
  }

  /** A turn that was asked for before, under the same name. */
  #openAgain(job: TurnJob, feed: TurnFeed): OpenedTurn {
    const letOut = async (): Promise<TurnAnswer> => {
      // The turn has a place already.
      await settlePlace(this.env, job, 0);
      return { status: "streaming", ...feed };
    };
    return { letOut, takeBack: async () => undefined };
  }

  /** Gets a turn to an engine. Of one that does not get there nothing is left. Never rejects. */
  async #openTurn(job: TurnJob, place: AskedPlace, isReserved: boolean): Promise<OpenedTurn> {
    if (this.#busy) {
      const busy = new QuireError("session_busy", "This session is working on another turn.", { retryAfterMs: 1_000 });
      return saysOnly({ status: "refused", error: wireError(busy) });
    }
    this.#busy = true;
    const stream = new TurnStream({ resumable: job.resumable });
    this.#running = { stream, idempotencyKey: job.idempotencyKey, timers: [] };
    // A place that nobody holds is given back in time: turns that are over sooner need not hold theirs.
    this.#later(isReserved ? SOON_MS : LIMITS.leaseUnheldMsMax / 3, () => void holdPlace(this.env, job));
    const held = Promise.withResolvers<undefined>();
    const starting = this.#start(job, { stream, done: [], onHeld: () => held.resolve(undefined), place });
    try {
      const turn = await Promise.race([starting, held.promise]);
      const takeBack = async () => {
        stream.stop();
        void starting.then(({ runner }) => runner.dispose()).catch(() => undefined);
        await this.#leave(job, stream);
      };
      return { letOut: async () => this.#letOut(job, stream, turn ?? starting), takeBack };
    } catch (thrown) {
      await this.#leave(job, stream);
      return saysOnly(
        thrown instanceof SessionMoved ? { status: "moved" } : { status: "refused", error: wireError(thrown) },
      );
    }
  }

  /** @param turn a promise while its engine is still on its way */
  #letOut(job: TurnJob, stream: TurnStream, turn: RunningTurn | Promise<RunningTurn>): TurnAnswer {
    // Nobody knows the numerics of an engine that is being started.
    const numericsId = turn instanceof Promise ? "starting" : (turn.numericsId ?? "starting");
    this.#replays.begin(stream, job, numericsId);
    this.#noteLater(job, { streamId: stream.id, numericsId });
    assert(this.#running?.stream === stream, "the turn runs");
    // Not awaited: the object outlives the request, and the stream carries whatever happens. Begun before anybody follows the stream, so that
    // a first token that is there leaves in one piece with what goes before it.
    this.#running.over = this.#finish(job, turn, stream);
    const feed = followTurn({ stream, head: job.head, numericsId }, { from: 0, form: job.form });
    assert(feed !== undefined, "a new stream is held from its start");
    return { status: "streaming", ...feed };
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
   * Ends the turn that runs, as a client does that goes away.
   * @returns false when none runs, or another one
   */
  async stopTurn(name: TurnName): Promise<boolean> {
    this.#takeUpLost();
    const running = this.#running;
    if (!running || !isNamed(name, running.stream.id, running.idempotencyKey)) return false;
    running.stream.stop();
    return true;
  }

  /**
   * Deletes the session and its index entries, and through an engine what is stored of it. Where no engine answers, that goes
   * when the page store collects what nobody used.
   * @returns false when there was none; "busy" while a turn runs
   */
  async remove(): Promise<boolean | "busy"> {
    this.#takeUpLost();
    if (this.#busy) return "busy";
    const meta = this.open().meta();
    if (!meta) return false;
    await indexOf(this.env, meta.namespace).forget(meta.id);
    this.#replays.clear();
    await this.wipe();
    await this.deleteStored(meta).catch((thrown: unknown) => logError(`delete ${meta.id}`, thrown));
    return true;
  }

  /** While a turn runs: looks after it, and takes it up when its object was lost. Otherwise nobody used the session for long, and it goes. */
  override async alarm(): Promise<void> {
    this.#takeUpLost();
    if (!this.#busy) {
      if (!(await this.remove())) await this.wipe();
      return;
    }
    await this.ctx.storage.setAlarm(Date.now() + LIMITS.runningAlarmMs);
    // A turn that nobody asks for lives as long as the handler does.
    await this.#running?.over;
  }

  /** Goes on with the turn that ran when an earlier object was lost, if there is one. Its client comes back for it, or nobody listens. */
  #takeUpLost(): void {
    if (this.#hasLooked) return;
    this.#hasLooked = true;
    const lost = this.#lost.take();
    if (!lost) return;
    const { job, streamId, numericsId, ids } = lost;
    const stream = new TurnStream({ resumable: true, revived: true, streamId });
    this.#busy = true;
    this.#running = { stream, idempotencyKey: job.idempotencyKey, timers: [] };
    this.#replays.begin(stream, job, numericsId);
    const starting = this.#mayTakeUp(lost)
      ? this.#start(job, { stream, done: ids, onHeld: () => undefined, place: undefined })
      : Promise.reject(new QuireError("engine_failed", "The turn was lost."));
    this.#running.over = this.#finish(job, starting, stream);
  }

  #mayTakeUp({ attempt, startedMs, turnCount }: LostTurn): boolean {
    const isThere = (this.open().meta()?.turnCount ?? 0) === turnCount;
    return isThere && attempt <= LIMITS.runningAttemptCountMax && Date.now() - startedMs < LIMITS.turnMsMax;
  }

  /**
   * Writes a turn down that has to be taken up should this object be lost, once it has run for a moment: most are over sooner, and the first
   * token waits for no disk. Logprobs are not written; a turn with several choices has no one order.
   */
  #noteLater(job: TurnJob, facts: { streamId: string; numericsId: string }): void {
    if (!job.resumable || !job.session || job.choiceCount > 1 || job.topLogprobs !== undefined) return;
    const startedMs = Date.now();
    this.#later(LIMITS.runningNoteMs, () => {
      this.#lost.begin({ job, ...facts, startedMs, turnCount: this.open().meta()?.turnCount ?? 0 });
      const alarmMs = Date.now() + LIMITS.runningAlarmMs;
      this.ctx.storage.setAlarm(alarmMs, { allowUnconfirmed: true }).catch(() => undefined);
    });
  }

  /** A turn that went to an engine without asking counts there like any other; nobody waits for it, its first token least of all. */
  #assignLater(job: TurnJob, engineId: string, newTokens: number): void {
    this.#later(SOON_MS, () => {
      fleetOf(this.env, job.namespace)
        .assign(engineId, Math.max(1, newTokens))
        .catch(() => undefined);
    });
  }

  /** Ends a turn that nobody was told of. */
  async #leave(job: TurnJob, stream: TurnStream): Promise<void> {
    await this.#giveUp(job);
    this.#rest();
    await stream.close();
  }

  /** Calls `act` if the turn still runs then. */
  #later(ms: number, act: () => void): void {
    this.#running?.timers.push(setTimeout(act, ms));
  }

  /** The session is free for its next turn. */
  #rest(): void {
    for (const timer of this.#running?.timers ?? []) clearTimeout(timer);
    this.#running = undefined;
    this.#busy = false;
  }

  async #start(job: TurnJob, { stream, done, onHeld, place }: TurnStart): Promise<RunningTurn> {
    const assets = await isolateAssets.get(this.env.PAGES, job.model);
    const store = job.session ? this.open() : undefined;
    const fork = job.session?.forkFrom;
    if (job.session && fork && !store?.meta()) await this.adoptPrefix(job.session.id, job.namespace, fork);
    const prepared = await prepareTurn(job, store, assets, this.#memory);
    const meta = store?.meta();
    // A prompt that is all log (a turn asked for again) still has a last token to run.
    const turnStart = Math.min(prepared.keepTokens, prepared.tokens.length - 1);
    const spans = cutSpans(prepared.spans, turnStart);
    const { tokens } = prepared;
    const turnAgeMs = this.#turnEndedMs === undefined ? undefined : Date.now() - this.#turnEndedMs;
    const { namespace, model } = job;
    const runner = new TurnRunner({
      job,
      tokens: prepared.tokens,
      turnStart,
      spans,
      parentId: meta?.parentId,
      assets,
      stickyEngineId: meta?.engineId,
      pick: async ({ hasBegun, ...wanted }) => {
        const known = wanted.excludeIds.length === 0 ? this.#placement.take() : undefined;
        if (known) {
          this.#assignLater(job, known.engineId, tokens.length - turnStart);
          return { ...known, isRemembered: true };
        }
        const prompt = this.#router.describe({ namespace, tokens, turnStart, spans, turnAgeMs });
        const picking = pickEngine({
          ...{ env: this.env, namespace, hasBegun, gone: stream.gone, onHeld },
          request: { model, ...wanted, prompt },
        });
        void place?.ask();
        return picking;
      },
      isAlive: async (engineId) => {
        const found = fleetOf(this.env, job.namespace).find({ model: job.model, engineId });
        return (await within(LIMITS.engineHeartbeatMs, found))?.engineId === engineId;
      },
      engineKey: this.env.QUIRE_ENGINE_KEY,
      fetch: (input, init) => {
        const sent = fetch(input, init);
        // Behind the call: the limiter answers while the engine works.
        void place?.ask();
        return sent;
      },
      stream,
      done,
      onProgress: (ids) => this.#lost.progress(ids),
    });
    try {
      const numericsId = await runner.start();
      const isQuick = turnAgeMs !== undefined && turnAgeMs < LIMITS.placementMsMax;
      return { runner, prepared, assets, numericsId, spans, isQuick };
    } catch (thrown) {
      runner.dispose();
      throw thrown;
    }
  }

  /** Runs the turn to its end, writes the log, and only then says so. Never rejects. */
  async #finish(job: TurnJob, turn: RunningTurn | Promise<RunningTurn>, stream: TurnStream): Promise<void> {
    const settled =
      turn instanceof Promise
        ? turn.then((started) => this.#settle(job, started, stream))
        : this.#settle(job, turn, stream);
    const last = await settled.catch(async (thrown: unknown): Promise<TurnEvent[]> => {
      await this.#giveUp(job).catch((cause: unknown) => logError(job.requestId, cause));
      logError(job.requestId, thrown);
      await settlePlace(this.env, job, 0);
      return [{ type: "error", error: wireError(thrown) }];
    });
    for (const event of last) stream.send(event);
    try {
      this.#replays.end(stream);
    } catch (thrown) {
      // Without it the turn is only not there for clients that come back after the object's death.
      logError(job.requestId, thrown);
    }
    this.#rest();
    this.#turnEndedMs = Date.now();
    await stream.close();
  }

  /** @returns the last events of a turn that is in the log. @throws what ended a turn that is not */
  async #settle(job: TurnJob, turn: RunningTurn, stream: TurnStream): Promise<TurnEvent[]> {
    const results = await turn.runner.run();
    const [first] = results;
    const isGone = stream.gone.aborted;
    const isEmpty = isGone && first?.reply.kept().ids.length === 0;
    if (isEmpty) await this.#giveUp(job);
    if (turn.runner.engine && !isGone) this.#placement.keep(turn.runner.engine);
    const commit = job.session && first && !isEmpty ? await this.#commit(job, job.session, turn, first) : undefined;
    // A client that was told the end may begin its next turn.
    await Promise.all([
      commit && this.#enter(job, commit),
      this.#settlePlace(job, turn, spentTokens(turn.prepared, results)),
    ]);
    if (isGone) {
      return [{ type: "error", error: { code: "cancelled", message: "The turn was ended: nobody listened to it." } }];
    }
    const finishes = results.map(({ reason }, choice): TurnEvent => ({ type: "finish", choice, reason }));
    return [...finishes, { type: "usage", usage: usageOf(job, turn, results) }, { type: "end" }];
  }

  /** A session whose turns follow upon each other is given the next one's place along. */
  async #settlePlace(job: TurnJob, { isQuick }: RunningTurn, tokens: number): Promise<void> {
    const next = isQuick && job.place ? nextRequest(job.place) : undefined;
    const admission = await settlePlace(this.env, job, tokens, next);
    if (next && admission) this.#nextPlace.keep({ request: next, admission });
  }

  /** Writes the turn. */
  async #commit(
    job: TurnJob,
    session: NonNullable<TurnJob["session"]>,
    turn: RunningTurn,
    choice: ChoiceResult,
  ): Promise<LogCommit> {
    const { prepared, assets, spans, runner } = turn;
    const store = this.open();
    const commit = await buildCommit({
      job,
      session,
      prepared,
      assets,
      kept: choice.reply.kept(),
      spans,
      newSpans: choice.spans,
      engineId: runner.engine?.engineId,
      old: store.meta(),
      nowMs: Date.now(),
      memory: this.#memory,
    });
    // One write: a turn that is in the log is not taken up again.
    store.commit(commit);
    this.#lost.clear();
    await this.ctx.storage.setAlarm(Date.now() + LIMITS.sessionIdleMsMax);
    return commit;
  }

  /** Without the index a turn is only slower, so this may fail. */
  async #enter(job: TurnJob, commit: LogCommit): Promise<void> {
    const rows = indexRows(commit);
    if (rows.length === 0) return;
    const entered = indexOf(this.env, job.namespace).put(rows);
    await within(LIMITS.indexMsMax, entered).catch((cause: unknown) => logError(job.requestId, cause));
  }

  /** After a turn that failed: the log is as it was, and a session that only this turn would have made is not there. */
  async #giveUp(job: TurnJob): Promise<void> {
    if (job.session?.implicit && job.session.expectChain === undefined) {
      await this.wipe();
      return;
    }
    if (!this.#lost.isNoted) return;
    this.#lost.clear();
    // What is left of a session that has no turn is the error, for a client that comes back.
    const keepMs = this.open().meta() ? LIMITS.sessionIdleMsMax : LIMITS.replayKeepMs;
    await this.ctx.storage.setAlarm(Date.now() + keepMs);
  }
}

/** How a turn begins. */
interface TurnStart {
  stream: TurnStream;
  /** Ids of its reply that were generated before its object was lost. */
  done: readonly number[];
  /** Called when the turn has waited for an engine for `LIMITS.holdHeadersMs` and waits on. */
  onHeld: () => void;
  /** Asked for once somebody else is at work; undefined for a turn that has its place. */
  place: AskedPlace | undefined;
}

/** A turn that is at an engine, or that nobody will run. */
interface OpenedTurn {
  /** What the Worker hears once the limiter has let it in. */
  letOut(): Promise<TurnAnswer>;
  /** Leaves nothing of it. */
  takeBack(): Promise<void>;
}

function saysOnly(answer: TurnAnswer): OpenedTurn {
  return { letOut: async () => answer, takeBack: async () => undefined };
}

interface RunningTurn {
  runner: TurnRunner;
  prepared: PreparedTurn;
  assets: ModelAssets;
  /** Undefined for a reply that was complete when its object was lost. */
  numericsId: string | undefined;
  /** Spans in front of the turn. */
  spans: ReturnType<typeof cutSpans>;
  /** It followed upon the one before at once. */
  isQuick: boolean;
}
