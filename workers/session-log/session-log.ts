/** Durable Object, one per session (and one, short-lived and without storage, per request that has none). */
import { DurableObject } from "cloudflare:workers";
import { assert } from "../../protocol/assert.ts";
import { QuireError, toQuireError } from "../../protocol/errors.ts";
import type { SessionStatus } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { within } from "../deadline.ts";
import type { Env } from "../env.ts";
import { fleetOf } from "../fleet.ts";
import { holdPlace, settlePlace } from "../limits/admission.ts";
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
  TurnUsage,
  WireError,
} from "../turn-job.ts";
import { exportLog, imageTokens, type LogImage } from "./log-image.ts";
import { LogStore, type SessionMeta } from "./log-store.ts";
import { pickEngine } from "./pick-engine.ts";
import { type PreparedTurn, prepareTurn, SessionMoved } from "./prepare.ts";
import { isNamed, Replays } from "./replays.ts";
import { PromptRouter } from "./routed-prompt.ts";
import { cutSpans } from "./spans.ts";
import { deleteStored, type StoredSession, storedStatus } from "./stored-session.ts";
import { buildCommit, indexRows } from "./turn-commit.ts";
import { type ChoiceResult, TurnRunner } from "./turn-runner.ts";
import { TurnStream } from "./turn-stream.ts";
import { unpackValue } from "./wire.ts";

/**
 * Owns the exact token log of one conversation, the fetch to the engine, and the stream of the running turn. The log changes only when
 * a turn ends, in one transaction, before its terminal event: a turn that fails, or an object that dies, leaves it as it was.
 */
export class SessionLog extends DurableObject<Env> {
  readonly #replays = new Replays(this.ctx.storage, () => Date.now());
  readonly #router = new PromptRouter();
  #store: LogStore | undefined;
  #turnEndedMs: number | undefined;
  #busy = false;
  /** Stream of the turn that runs. */
  #running: { stream: TurnStream; idempotencyKey: string | undefined } | undefined;

  /**
   * Runs one turn. Resolves once an engine has admitted it (or nobody will); what follows is in the stream of frames
   * (`TurnEvent`). A reader that goes away aborts the engine's work, unless the turn is resumable; what it was given by then stays in
   * the log.
   * @param packed a {@link TurnJob} as one frame
   */
  async turn(packed: Uint8Array): Promise<TurnAnswer> {
    const job = unpackValue<TurnJob>(packed);
    const { idempotencyKey } = job;
    const again = idempotencyKey === undefined ? undefined : this.#replays.resume({ idempotencyKey, from: 0 });
    if (again) {
      // The turn has a place already.
      await settlePlace(this.env, job, 0);
      return { status: "streaming", ...again };
    }
    if (this.#busy) {
      if (job.session?.implicit) return { status: "moved" };
      const busy = new QuireError("session_busy", "This session is working on another turn.", { retryAfterMs: 1_000 });
      return { status: "refused", error: wireError(busy) };
    }
    this.#busy = true;
    const stream = new TurnStream({ resumable: job.resumable });
    this.#running = { stream, idempotencyKey };
    const held = Promise.withResolvers<undefined>();
    const starting = this.#start(job, stream, () => held.resolve(undefined));
    try {
      const turn = await Promise.race([starting, held.promise]);
      // An engine is still on its way: nobody knows its numerics yet.
      const numericsId = turn?.numericsId ?? "starting";
      const { head } = job;
      this.#replays.begin(stream, job, numericsId);
      const readable = stream.subscribe(0);
      assert(readable !== undefined, "a new stream is held from its start");
      // Not awaited: the object outlives the request, and the stream carries whatever happens.
      void holdPlace(this.env, job);
      void this.#finish(job, starting, stream);
      return { status: "streaming", streamId: stream.id, first: 0, numericsId, head, stream: readable };
    } catch (thrown) {
      await this.#giveUp(job);
      this.#running = undefined;
      this.#busy = false;
      await stream.close();
      if (thrown instanceof SessionMoved) return { status: "moved" };
      return { status: "refused", error: wireError(thrown) };
    }
  }

  /**
   * The rest of the session's last turn, running or ended, for a client that lost its connection. A turn that has ended is there for
   * `LIMITS.replayKeepMs`, also when the object has started again since; one that runs ends with the object.
   * @returns undefined for a turn that is not resumable, not the last one, or does not hold that event any more
   */
  async resume(request: ResumeRequest): Promise<TurnFeed | undefined> {
    return this.#replays.resume(request);
  }

  /**
   * Ends the turn that runs, as a client does that goes away.
   * @returns false when none runs, or another one
   */
  async stopTurn(name: TurnName): Promise<boolean> {
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
    if (this.#busy) return "busy";
    const meta = this.#open().meta();
    if (!meta) return false;
    await indexOf(this.env, meta.namespace).forget(meta.id);
    this.#replays.clear();
    await this.#wipe();
    await this.#deleteStored(meta).catch((thrown: unknown) => logError(`delete ${meta.id}`, thrown));
    return true;
  }

  /** A session that nobody used for long goes. */
  override async alarm(): Promise<void> {
    if (this.#busy) {
      await this.ctx.storage.setAlarm(Date.now() + LIMITS.turnMsMax);
      return;
    }
    await this.remove();
  }

  /** @param onHeld called when the turn has waited for an engine for `LIMITS.holdHeadersMs` and waits on */
  async #start(job: TurnJob, stream: TurnStream, onHeld: () => void): Promise<RunningTurn> {
    const assets = await isolateAssets.get(this.env.PAGES, job.model);
    const store = job.session ? this.#open() : undefined;
    const fork = job.session?.forkFrom;
    if (job.session && fork && !store?.meta()) await this.#adoptPrefix(job.session.id, job.namespace, fork);
    const prepared = await prepareTurn(job, store, assets);
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
      pick: (stickyEngineId, excludeIds) => {
        const request = { model: job.model, stickyEngineId, excludeIds, prompt };
        return pickEngine({ env: this.env, namespace: job.namespace, request, gone: stream.gone, onHeld });
      },
      isAlive: async (engineId) => {
        const found = fleetOf(this.env, job.namespace).find({ model: job.model, engineId });
        return (await within(LIMITS.engineHeartbeatMs, found))?.engineId === engineId;
      },
      engineKey: this.env.QUIRE_ENGINE_KEY,
      fetch: (input, init) => fetch(input, init),
      stream,
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
  async #finish(job: TurnJob, starting: Promise<RunningTurn>, stream: TurnStream): Promise<void> {
    const settled = starting.then((turn) => this.#settle(job, turn, stream));
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
    this.#running = undefined;
    this.#busy = false;
    this.#turnEndedMs = Date.now();
    await stream.close();
  }

  /** @returns the last events of a turn that is in the log. @throws what ended a turn that is not */
  async #settle(job: TurnJob, turn: RunningTurn, stream: TurnStream): Promise<TurnEvent[]> {
    const results = await turn.runner.run();
    const [first] = results;
    const isGone = stream.gone.aborted;
    if (job.session && first) {
      const isEmpty = isGone && first.reply.kept().ids.length === 0;
      if (isEmpty) await this.#giveUp(job);
      else await this.#commit(job, turn, first);
    }
    // A client that was told the end may begin its next turn.
    await settlePlace(this.env, job, spentTokens(turn.prepared, results));
    if (isGone) {
      return [{ type: "error", error: { code: "cancelled", message: "The turn was ended: nobody listened to it." } }];
    }
    const finishes = results.map(({ reason }, choice): TurnEvent => ({ type: "finish", choice, reason }));
    return [...finishes, { type: "usage", usage: usageOf(job, turn, results) }, { type: "end" }];
  }

  /** Writes the turn, and enters its transcripts: without the index a turn is only slower, so it may fail. */
  async #commit(job: TurnJob, turn: RunningTurn, choice: ChoiceResult): Promise<void> {
    const { session } = job;
    if (!session) return;
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
      engineId: runner.engineId,
      old: store.meta(),
      nowMs: Date.now(),
    });
    store.commit(commit);
    await this.ctx.storage.setAlarm(Date.now() + LIMITS.sessionIdleMsMax);
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
    if (job.session?.implicit && job.session.expectChain === undefined) await this.#wipe();
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

interface RunningTurn {
  runner: TurnRunner;
  prepared: PreparedTurn;
  assets: ModelAssets;
  numericsId: string;
  /** Spans in front of the turn. */
  spans: ReturnType<typeof cutSpans>;
}

function usageOf(job: TurnJob, { prepared, runner }: RunningTurn, results: readonly ChoiceResult[]): TurnUsage {
  return {
    engineIds: [...runner.engineIds],
    promptTokens: prepared.tokens.length,
    completionTokens: results.reduce((sum, { reply }) => sum + reply.generatedCount, 0),
    sessionId: job.session?.id,
    engine: results[0]?.usage,
  };
}

/** What a turn is counted for: tokens that its log did not hold, and tokens that were generated. Luck with caches changes nothing. */
function spentTokens(prepared: PreparedTurn, results: readonly ChoiceResult[]): number {
  const generated = results.reduce((sum, { reply }) => sum + reply.generatedCount, 0);
  return prepared.tokens.length - prepared.keepTokens + generated;
}

function wireError(thrown: unknown): WireError {
  const { code, message, param, retryAfterMs } = toQuireError(thrown);
  return { code, message, param, retryAfterMs };
}
