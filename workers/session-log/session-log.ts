/** Durable Object, one per session (and one, short-lived and without storage, per request that has none). */
import { DurableObject } from "cloudflare:workers";
import { assert } from "../../protocol/assert.ts";
import { QuireError } from "../../protocol/errors.ts";
import type { SessionStatus } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { within } from "../deadline.ts";
import type { Env } from "../env.ts";
import { fleetOf } from "../fleet.ts";
import { askPlace, holdPlace, settlePlace } from "../limits/admission.ts";
import { logError } from "../log.ts";
import { isolateAssets, type ModelAssets } from "../model-assets.ts";
import { indexOf, sessionOf } from "../stubs.ts";
import type {
  ForkPoint,
  ResumeRequest,
  SessionInfo,
  TurnAnswer,
  TurnEvent,
  TurnFeed,
  TurnJob,
  TurnName,
} from "../turn-job.ts";
import { exportLog, imageTokens, type LogImage } from "./log-image.ts";
import { type LogCommit, LogStore, type SessionMeta } from "./log-store.ts";
import { pickEngine } from "./pick-engine.ts";
import { Placement } from "./placement.ts";
import { type PreparedTurn, prepareTurn, SessionMoved } from "./prepare.ts";
import { RenderMemory } from "./render-memory.ts";
import { followTurn, isNamed, Replays } from "./replays.ts";
import { PromptRouter } from "./routed-prompt.ts";
import { type LostTurn, RunningStore } from "./running-store.ts";
import { cutSpans } from "./spans.ts";
import { deleteStored, type StoredSession, storedStatus } from "./stored-session.ts";
import { spentTokens, usageOf, wireError } from "./turn-accounts.ts";
import { buildCommit, indexRows } from "./turn-commit.ts";
import { type ChoiceResult, TurnRunner } from "./turn-runner.ts";
import { TurnStream } from "./turn-stream.ts";
import { unpackValue } from "./wire.ts";

/**
 * Owns the exact token log of one conversation, the fetch to the engine, and the stream of the running turn. The log changes only when
 * a turn ends, in one transaction, before its terminal event: a turn that fails, or an object that dies, leaves it as it was. A resumable
 * turn whose object died is taken up by the next one, when its client or the alarm asks for it.
 */
export class SessionLog extends DurableObject<Env> {
  readonly #replays = new Replays(this.ctx.storage, () => Date.now());
  readonly #router = new PromptRouter();
  readonly #memory = new RenderMemory();
  readonly #lost = new RunningStore(this.ctx.storage, () => Date.now());
  readonly #placement = new Placement(() => Date.now());
  #store: LogStore | undefined;
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

  /**
   * Runs one turn. Resolves once an engine has admitted it (or nobody will); what follows is in the stream of frames
   * (`TurnEvent`). A reader that goes away aborts the engine's work, unless the turn is resumable; what it was given by then stays in
   * the log.
   * @param packed a {@link TurnJob} as one frame
   */
  async turn(packed: Uint8Array): Promise<TurnAnswer> {
    const job = unpackValue<TurnJob>(packed);
    const { idempotencyKey, form } = job;
    if (job.session) this.#takeUpLost();
    const again = idempotencyKey === undefined ? undefined : this.#replays.resume({ idempotencyKey, form, from: 0 });
    if (this.#busy && !again && job.session?.implicit) return { status: "moved" };
    // The limiter answers while the turn is prepared and its engine called.
    const asking = job.place ? askPlace(this.env, job.namespace, job.place) : undefined;
    if (again) {
      const admission = await asking;
      if (admission?.refusedBy !== undefined) return { status: "limited", admission };
      // The turn has a place already.
      await settlePlace(this.env, job, 0);
      return { status: "streaming", admission, ...again };
    }
    if (this.#busy) {
      const admission = await asking;
      if (admission?.refusedBy !== undefined) return { status: "limited", admission };
      const busy = new QuireError("session_busy", "This session is working on another turn.", { retryAfterMs: 1_000 });
      return { status: "refused", error: wireError(busy) };
    }
    this.#busy = true;
    const stream = new TurnStream({ resumable: job.resumable });
    this.#running = { stream, idempotencyKey, timers: [] };
    const held = Promise.withResolvers<undefined>();
    const starting = this.#start(job, { stream, done: [], onHeld: () => held.resolve(undefined) });
    try {
      const turn = await Promise.race([starting, held.promise]);
      const admission = await asking;
      if (admission?.refusedBy !== undefined) {
        stream.stop();
        void starting.then(({ runner }) => runner.dispose()).catch(() => undefined);
        await this.#leave(job, stream);
        return { status: "limited", admission };
      }
      // An engine is still on its way: nobody knows its numerics yet.
      const numericsId = turn?.numericsId ?? "starting";
      this.#replays.begin(stream, job, numericsId);
      this.#noteLater(job, { streamId: stream.id, numericsId });
      this.#holdLater(job);
      // Not awaited: the object outlives the request, and the stream carries whatever happens. Begun before anybody follows the stream, so that
      // a first token that is there leaves in one piece with what goes before it.
      this.#running.over = this.#finish(job, turn ?? starting, stream);
      const feed = followTurn({ stream, head: job.head, numericsId }, { from: 0, form });
      assert(feed !== undefined, "a new stream is held from its start");
      return { status: "streaming", admission, ...feed };
    } catch (thrown) {
      await this.#leave(job, stream);
      const admission = await asking;
      if (admission?.refusedBy !== undefined) return { status: "limited", admission };
      if (thrown instanceof SessionMoved) return { status: "moved", admission };
      return { status: "refused", error: wireError(thrown) };
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

  /** Undefined for a session that does not exist. */
  async info(): Promise<SessionInfo | undefined> {
    const store = this.#open();
    const meta = store.meta();
    if (!meta) return undefined;
    return {
      id: meta.id,
      model: meta.model,
      createdS: meta.createdS,
      tokens: store.tokenCount(),
      turns: meta.turnCount,
      parentId: meta.parentId,
      messages: store.outline(),
    };
  }

  /**
   * How much of the session is durable, as the engine that served it last knows, or else another one of its model; pending also while
   * a turn runs. Undefined for a session that does not exist, and when no engine says so within `LIMITS.statusMsMax`.
   */
  async stored(): Promise<SessionStatus | undefined> {
    const meta = this.#open().meta();
    if (!meta) return undefined;
    const asked = this.#storedSession(meta).then((session) => session && storedStatus(session));
    const status = await within(LIMITS.statusMsMax, asked).catch(() => undefined);
    return status && { ...status, pending: status.pending || this.#busy };
  }

  /** The log as one frame ({@link LogImage}), up to a message or whole; undefined when it does not exist or has changed. */
  async image(point?: ForkPoint): Promise<Uint8Array | undefined> {
    return exportLog(this.#open(), point);
  }

  /**
   * Becomes a fork of another session of the same tenant, with its whole log.
   * @returns false when there is no such session
   */
  async adopt(options: { id: string; parentId: string; namespace: string }): Promise<boolean> {
    const parent = sessionOf(this.env, options.namespace, options.parentId);
    const packed = await parent.image();
    if (!packed) return false;
    await this.#import(unpackValue<LogImage>(packed), { ...options, named: true });
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
    const meta = this.#open().meta();
    if (!meta) return false;
    await indexOf(this.env, meta.namespace).forget(meta.id);
    this.#replays.clear();
    await this.#wipe();
    await this.#deleteStored(meta).catch((thrown: unknown) => logError(`delete ${meta.id}`, thrown));
    return true;
  }

  /** While a turn runs: looks after it, and takes it up when its object was lost. Otherwise nobody used the session for long, and it goes. */
  override async alarm(): Promise<void> {
    this.#takeUpLost();
    if (!this.#busy) {
      if (!(await this.remove())) await this.#wipe();
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
      ? this.#start(job, { stream, done: ids, onHeld: () => undefined })
      : Promise.reject(new QuireError("engine_failed", "The turn was lost."));
    this.#running.over = this.#finish(job, starting, stream);
  }

  #mayTakeUp({ attempt, startedMs, turnCount }: LostTurn): boolean {
    const isThere = (this.#open().meta()?.turnCount ?? 0) === turnCount;
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
      this.#lost.begin({ job, ...facts, startedMs, turnCount: this.#open().meta()?.turnCount ?? 0 });
      const alarmMs = Date.now() + LIMITS.runningAlarmMs;
      this.ctx.storage.setAlarm(alarmMs, { allowUnconfirmed: true }).catch(() => undefined);
    });
  }

  /** A place that nobody holds is given back after `LIMITS.leaseUnheldMsMax`: turns that are over sooner need not hold theirs. */
  #holdLater(job: TurnJob): void {
    this.#later(LIMITS.leaseUnheldMsMax / 3, () => void holdPlace(this.env, job));
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

  async #start(job: TurnJob, { stream, done, onHeld }: TurnStart): Promise<RunningTurn> {
    const assets = await isolateAssets.get(this.env.PAGES, job.model);
    const store = job.session ? this.#open() : undefined;
    const fork = job.session?.forkFrom;
    if (job.session && fork && !store?.meta()) await this.#adoptPrefix(job.session.id, job.namespace, fork);
    const prepared = await prepareTurn(job, store, assets, this.#memory);
    const meta = store?.meta();
    // A prompt that is all log (a turn asked for again) still has a last token to run.
    const turnStart = Math.min(prepared.keepTokens, prepared.tokens.length - 1);
    const spans = cutSpans(prepared.spans, turnStart);
    const { tokens } = prepared;
    const turnAgeMs = this.#turnEndedMs === undefined ? undefined : Date.now() - this.#turnEndedMs;
    const prompt = this.#router.describe({ namespace: job.namespace, tokens, turnStart, spans, turnAgeMs });
    const runner = new TurnRunner({
      job,
      tokens: prepared.tokens,
      turnStart,
      spans,
      parentId: meta?.parentId,
      assets,
      stickyEngineId: meta?.engineId,
      pick: ({ hasBegun, ...wanted }) => {
        const request = { model: job.model, ...wanted, prompt };
        const known = { request, hasBegun, placement: this.#placement, gone: stream.gone, onHeld };
        return pickEngine({ env: this.env, namespace: job.namespace, ...known });
      },
      isAlive: async (engineId) => {
        const found = fleetOf(this.env, job.namespace).find({ model: job.model, engineId });
        return (await within(LIMITS.engineHeartbeatMs, found))?.engineId === engineId;
      },
      engineKey: this.env.QUIRE_ENGINE_KEY,
      fetch: (input, init) => fetch(input, init),
      stream,
      done,
      onProgress: (ids) => this.#lost.progress(ids),
    });
    try {
      const numericsId = await runner.start();
      return { runner, prepared, assets, numericsId, spans };
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
      settlePlace(this.env, job, spentTokens(turn.prepared, results)),
    ]);
    if (isGone) {
      return [{ type: "error", error: { code: "cancelled", message: "The turn was ended: nobody listened to it." } }];
    }
    const finishes = results.map(({ reason }, choice): TurnEvent => ({ type: "finish", choice, reason }));
    return [...finishes, { type: "usage", usage: usageOf(job, turn, results) }, { type: "end" }];
  }

  /** Writes the turn. */
  async #commit(
    job: TurnJob,
    session: NonNullable<TurnJob["session"]>,
    turn: RunningTurn,
    choice: ChoiceResult,
  ): Promise<LogCommit> {
    const { prepared, assets, spans, runner } = turn;
    const store = this.#open();
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

  /** Starts as a copy of another session's beginning; when that is not to be had, as an empty session. */
  async #adoptPrefix(id: string, namespace: string, fork: ForkPoint): Promise<void> {
    const packed = await sessionOf(this.env, namespace, fork.sessionId).image(fork);
    if (!packed) return;
    await this.#import(unpackValue<LogImage>(packed), { id, parentId: fork.sessionId, namespace, named: false });
  }

  async #import(
    image: LogImage,
    options: { id: string; parentId: string; namespace: string; named: boolean },
  ): Promise<void> {
    const { id, parentId, namespace, named } = options;
    const meta: SessionMeta = {
      ...image.meta,
      id,
      parentId,
      namespace,
      named,
      createdS: Math.floor(Date.now() / 1000),
    };
    this.#open().commit({
      meta,
      keepTokens: 0,
      appendTokens: imageTokens(image),
      keepMessages: 0,
      appendMessages: image.messages,
      spans: image.spans,
    });
    await this.ctx.storage.setAlarm(Date.now() + LIMITS.sessionIdleMsMax);
  }

  /** After a turn that failed: the log is as it was, and a session that only this turn would have made is not there. */
  async #giveUp(job: TurnJob): Promise<void> {
    if (job.session?.implicit && job.session.expectChain === undefined) {
      await this.#wipe();
      return;
    }
    if (!this.#lost.isNoted) return;
    this.#lost.clear();
    // What is left of a session that has no turn is the error, for a client that comes back.
    const keepMs = this.#open().meta() ? LIMITS.sessionIdleMsMax : LIMITS.replayKeepMs;
    await this.ctx.storage.setAlarm(Date.now() + keepMs);
  }

  async #deleteStored(meta: SessionMeta): Promise<void> {
    const session = await this.#storedSession(meta);
    if (session) await deleteStored(session);
  }

  async #storedSession({ model, engineId, namespace, id }: SessionMeta): Promise<StoredSession | undefined> {
    const engine = await fleetOf(this.env, namespace).find({ model, engineId });
    const engineKey = this.env.QUIRE_ENGINE_KEY;
    return engine && { engine, engineKey, namespace, sessionId: id, fetch: (input, init) => fetch(input, init) };
  }

  async #wipe(): Promise<void> {
    this.#store = undefined;
    await this.ctx.storage.deleteAlarm();
    await this.ctx.storage.deleteAll();
  }

  /** Opened on first use: an object without a session writes nothing. */
  #open(): LogStore {
    this.#store ??= new LogStore(this.ctx.storage);
    return this.#store;
  }
}

/** How a turn begins. */
interface TurnStart {
  stream: TurnStream;
  /** Ids of its reply that were generated before its object was lost. */
  done: readonly number[];
  /** Called when the turn has waited for an engine for `LIMITS.holdHeadersMs` and waits on. */
  onHeld: () => void;
}

interface RunningTurn {
  runner: TurnRunner;
  prepared: PreparedTurn;
  assets: ModelAssets;
  /** Undefined for a reply that was complete when its object was lost. */
  numericsId: string | undefined;
  /** Spans in front of the turn. */
  spans: ReturnType<typeof cutSpans>;
}
