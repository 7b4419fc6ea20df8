/** One turn from its job to its last events, wherever it runs: in its session's object, or in the Worker that its client is connected to. */
import { QuireError } from "../../protocol/errors.ts";
import type { Span } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { within } from "../deadline.ts";
import type { Env } from "../env.ts";
import { fleetOf } from "../fleet.ts";
import type { PickedEngine } from "../fleet-table.ts";
import { askPlace, holdPlace, settlePlace } from "../limits/admission.ts";
import { AskedPlace, keepPlace, nextRequest } from "../limits/place.ts";
import { logError } from "../log.ts";
import { isolateAssets, type ModelAssets } from "../model-assets.ts";
import { tryEnlist } from "../session-expiry.ts";
import { indexOf, sessionOf } from "../stubs.ts";
import type { TurnAnswer, TurnEvent, TurnJob } from "../turn-job.ts";
import { bornMsOf, type KnownLog, type LogCommit } from "./log-store.ts";
import type { NextTurn, TurnMemory } from "./next-turn.ts";
import { pickEngine } from "./pick-engine.ts";
import { type PreparedTurn, prepareTurn, SessionMoved } from "./prepare.ts";
import { followTurn } from "./replays.ts";
import { cutSpans } from "./spans.ts";
import { spentTokens, usageOf, wireError } from "./turn-accounts.ts";
import { buildCommit, indexRows } from "./turn-commit.ts";
import { type ChoiceResult, type EngineForTurn, TurnRunner } from "./turn-runner.ts";
import type { TurnStream } from "./turn-stream.ts";

/** When others hear of a turn that went on without asking them: most first tokens are out by then, and load and places are known anew each second. */
export const SOON_MS = 20;

/** Where a turn runs, and the log of its session there. */
export interface TurnHost {
  /** The log; undefined where the session has none yet. Not asked for a turn without a session. */
  read(): Promise<KnownLog | undefined>;
  /** Writes the turn, all of it or nothing. @throws when the log is not as it was read */
  commit(commit: LogCommit): Promise<void>;
  /** The turn runs, or waits for an engine: from now on it may be ended by whoever listens to it. */
  attend?(): void;
  /** The turn comes to nothing: leaves no trace of it. */
  giveUp(): Promise<void>;
  /** Ids of the first choice so far. */
  progress(ids: readonly number[]): void;
  /** The turn is let out: clients may follow it. */
  begun(numericsId: string): void;
  /** Everything is said, or was taken back. */
  ended(isSaid: boolean): void;
}

/** What a turn is run with. */
export interface CourseOptions {
  env: Env;
  job: TurnJob;
  stream: TurnStream;
  host: TurnHost;
  memory: TurnMemory;
  /** Called, more than once, when somebody else is at work: what is asked then is answered beside it. Undefined where there is nothing to ask. */
  beside: (() => void) | undefined;
  /** Its place was reserved when the last turn ended. */
  isReserved: boolean;
  /** Ids of its reply that were generated before its object was lost. */
  done: readonly number[];
}

/** A turn that is at an engine, or that nobody will run. */
export interface OpenedTurn {
  /** What the Worker hears once the limiter has let it in. */
  letOut(): TurnAnswer | Promise<TurnAnswer>;
  /** Leaves nothing of it. */
  takeBack(): Promise<void>;
}

/** A turn of which there is nothing but what is said to it. */
export function saysOnly(answer: TurnAnswer): OpenedTurn {
  return { letOut: () => answer, takeBack: async () => undefined };
}

/** What a turn is told whose session works on another one. */
export function busyAnswer({ session }: TurnJob): TurnAnswer {
  if (session?.implicit) return { status: "moved" };
  const busy = new QuireError("session_busy", "This session is working on another turn.", { retryAfterMs: 1_000 });
  return { status: "refused", error: wireError(busy) };
}

/** A turn that is let in, or will be. */
export interface Entry {
  /** With the place that was reserved, where there is one. */
  job: TurnJob;
  place: AskedPlace;
  isReserved: boolean;
}

/**
 * Opens a turn, and lets it out when the limiter has let it in.
 * @param next may have a place for it
 */
export async function enterTurn(
  asked: TurnJob,
  { env, next }: { env: Env; next: NextTurn },
  open: (entry: Entry) => Promise<OpenedTurn>,
): Promise<TurnAnswer> {
  const reserved = asked.place && next.place.take(asked.place);
  const leaseId = reserved?.request.leaseId;
  const job = leaseId === undefined ? asked : { ...asked, leaseId };
  const place = new AskedPlace(() => {
    return reserved ? Promise.resolve(reserved.admission) : job.place && askPlace(env, job.namespace, job.place);
  });
  let opened: OpenedTurn;
  try {
    opened = await open({ job, place, isReserved: reserved !== undefined });
  } catch (thrown) {
    // Of the place that was reserved nobody else knows.
    await settlePlace(env, { namespace: job.namespace, leaseId }, 0);
    throw thrown;
  }
  const admission = reserved?.admission ?? (await place.ask());
  if (admission?.refusedBy !== undefined) {
    await opened.takeBack();
    return { status: "limited", admission };
  }
  return { ...(await opened.letOut()), admission, leaseId };
}

interface RunningTurn {
  runner: TurnRunner;
  known: KnownLog | undefined;
  prepared: PreparedTurn;
  assets: ModelAssets;
  /** Undefined for a reply that was complete when its object was lost. */
  numericsId: string | undefined;
  /** Spans in front of the turn. */
  spans: Span[];
  /** It followed upon the one before at once. */
  isQuick: boolean;
}

/** Runs once: {@link open}, or {@link takeUp} for a turn whose clients were told of it already. */
export class TurnCourse {
  readonly #options: CourseOptions;
  readonly #timers: ReturnType<typeof setTimeout>[] = [];
  readonly #startedMs = Date.now();
  #isAttended = false;
  #isTakenUp = false;
  /** No timer is left of it. */
  #isRested = false;
  /** The fleet has to be told: the turn went there without asking. */
  #untold: { engineId: string; newTokens: number } | undefined;
  #over: Promise<void> | undefined;
  /** Whether a list has its session; undefined: it was not asked. */
  #listed: Promise<boolean> | undefined;

  constructor(options: CourseOptions) {
    this.#options = options;
  }

  /** Settles when the turn is over; undefined before it was let out. Never rejects. */
  get over(): Promise<void> | undefined {
    return this.#over;
  }

  /** Calls `act` if the turn still runs then. */
  later(ms: number, act: () => void): void {
    if (!this.#isRested) this.#timers.push(setTimeout(act, ms));
  }

  /** Gets the turn to an engine, or lets it wait for one. Of a turn that does not get there nothing is left. Never rejects. */
  async open(): Promise<OpenedTurn> {
    const { stream } = this.#options;
    const held = Promise.withResolvers<undefined>();
    const starting = this.#start(() => held.resolve(undefined));
    try {
      const turn = await Promise.race([starting, held.promise]);
      const takeBack = async () => {
        stream.stop();
        void starting.then(({ runner }) => runner.dispose()).catch(() => undefined);
        await this.#leave();
      };
      return { letOut: () => this.#letOut(turn ?? starting), takeBack };
    } catch (thrown) {
      await this.#leave();
      return saysOnly(
        thrown instanceof SessionMoved ? { status: "moved" } : { status: "refused", error: wireError(thrown) },
      );
    }
  }

  /** Goes on with a turn that was let out by an object that is lost. @param refusal why it cannot */
  takeUp(refusal: Error | undefined): void {
    this.#isTakenUp = true;
    this.#attend();
    this.#over = this.#finish(refusal ? Promise.reject(refusal) : this.#start(() => undefined));
  }

  /** @param turn a promise while its engine is still on its way */
  #letOut(turn: RunningTurn | Promise<RunningTurn>): TurnAnswer {
    const { job, stream, host } = this.#options;
    // Nobody knows the numerics of an engine that is being started.
    const numericsId = turn instanceof Promise ? "starting" : (turn.numericsId ?? "starting");
    host.begun(numericsId);
    // Said before anybody follows the stream, so that a first token that is there leaves in one piece with what goes before it; what else there is to
    // do waits until that has left.
    if (!(turn instanceof Promise)) turn.runner.sayFirst();
    // Not awaited: the stream carries whatever happens.
    this.#over = new Promise((resolve) => setTimeout(() => resolve(this.#finish(turn)), 0));
    const feed = followTurn({ stream, head: job.head, numericsId }, { from: 0, form: job.form });
    if (!feed) throw new Error("a new stream is held from its start");
    return { status: "streaming", ...feed };
  }

  /** Ends a turn that nobody was told of. */
  async #leave(): Promise<void> {
    const { host, stream } = this.#options;
    await host.giveUp();
    this.#rest(false);
    await stream.close();
  }

  /** What a turn needs that runs or waits, and not to get there: a first token that comes at once does not wait for it. */
  #attend(): void {
    if (this.#isAttended || this.#isRested) return;
    this.#isAttended = true;
    const { env, job, host, stream, isReserved } = this.#options;
    stream.attend();
    keepPlace(
      () => void holdPlace(env, job),
      (ms, act) => this.later(ms, act),
      isReserved || this.#isTakenUp ? SOON_MS : undefined,
    );
    host.attend?.();
    if (this.#untold) this.#assignLater(this.#untold);
  }

  #rest(isSaid: boolean): void {
    this.#isRested = true;
    for (const timer of this.#timers) clearTimeout(timer);
    this.#options.host.ended(isSaid);
  }

  async #start(onHeld: () => void): Promise<RunningTurn> {
    const { env, job, host, memory, stream, done } = this.#options;
    const assets = isolateAssets.known(job.model) ?? (await isolateAssets.get(env.PAGES, job.model));
    const known = job.session && (await host.read());
    const prepared = await prepareTurn(job, known, assets, memory.render);
    // A prompt that is all log (a turn asked for again) still has a last token to run.
    const turnStart = Math.min(prepared.keepTokens, prepared.tokens.length - 1);
    const spans = cutSpans(prepared.spans, turnStart);
    const { turnAgeMs } = memory.next;
    const runner = new TurnRunner({
      job,
      tokens: prepared.tokens,
      otherPrompts: prepared.otherPrompts,
      turnStart,
      spans,
      parentId: known?.meta.parentId,
      bornMs: this.#bornMs(known),
      assets,
      stickyEngineId: known?.meta.engineId,
      known: this.#remembered(prepared.tokens.length - turnStart),
      pick: (wanted) => this.#pick(wanted, { prepared, turnStart, spans, turnAgeMs, onHeld }),
      isAlive: async (engineId) => {
        const found = fleetOf(env, job.namespace).find({ model: job.model, engineId });
        return (await within(LIMITS.engineHeartbeatMs, found))?.engineId === engineId;
      },
      engineKey: env.QUIRE_ENGINE_KEY,
      fetch: (input, init) => fetch(input, init),
      beside: this.#options.beside,
      onRunning: () => this.#attend(),
      stream,
      done,
      onProgress: (ids) => host.progress(ids),
    });
    try {
      const numericsId = await runner.start();
      const isQuick = turnAgeMs !== undefined && turnAgeMs < LIMITS.placementMsMax;
      return { runner, known, prepared, assets, numericsId, spans, isQuick };
    } catch (thrown) {
      runner.dispose();
      throw thrown;
    }
  }

  /** Of a log that this turn begins: when it came. */
  #bornMs(known: KnownLog | undefined): number {
    return known ? bornMsOf(known.meta) : this.#startedMs;
  }

  #remembered(newTokens: number): PickedEngine | undefined {
    const known = this.#options.memory.next.engine.take();
    if (!known) return undefined;
    this.#untold = { engineId: known.engineId, newTokens };
    return { ...known, isRemembered: true };
  }

  #pick({ hasBegun, ...wanted }: EngineForTurn, prompt: PromptAtHand) {
    const { env, job, memory, stream, beside } = this.#options;
    const { namespace, model } = job;
    const { prepared, turnStart, spans, turnAgeMs, onHeld } = prompt;
    const { tokens } = prepared;
    const described = memory.router.describe({ namespace, tokens, turnStart, spans, turnAgeMs });
    const picking = pickEngine({
      ...{ env, namespace, hasBegun, gone: stream.gone, onHeld },
      request: { model, ...wanted, prompt: described },
    });
    this.#attend();
    beside?.();
    return picking;
  }

  /** A turn that went to an engine without asking counts there like any other; nobody waits for it, its first token least of all. */
  #assignLater({ engineId, newTokens }: { engineId: string; newTokens: number }): void {
    const { env, job } = this.#options;
    this.later(SOON_MS, () => {
      fleetOf(env, job.namespace)
        .assign(engineId, Math.max(1, newTokens))
        .catch(() => undefined);
    });
  }

  /** Runs the turn to its end, writes the log, and only then says so. Never rejects. */
  async #finish(turn: RunningTurn | Promise<RunningTurn>): Promise<void> {
    const { env, job, stream, host, memory } = this.#options;
    const settled = turn instanceof Promise ? turn.then((started) => this.#settle(started)) : this.#settle(turn);
    const last = await settled.catch(async (thrown: unknown): Promise<TurnEvent[]> => {
      await host.giveUp().catch((cause: unknown) => logError(job.requestId, cause));
      logError(job.requestId, thrown);
      await settlePlace(env, job, 0);
      return [{ type: "error", error: wireError(thrown) }];
    });
    for (const event of last) stream.send(event);
    memory.next.noteEnd();
    this.#rest(true);
    await stream.close();
  }

  /** @returns the last events of a turn that is in the log. @throws what ended a turn that is not */
  async #settle(turn: RunningTurn): Promise<TurnEvent[]> {
    const { env, job, stream, host, memory } = this.#options;
    // Beside the reply.
    if (job.session && !turn.known?.meta.isListed) this.later(SOON_MS, () => void this.#enlist(turn));
    const results = await turn.runner.run();
    const [first] = results;
    const isGone = stream.gone.aborted;
    const isEmpty = isGone && (first?.reply.kept().ids.length === 0 || isUnread(job, stream));
    if (isEmpty) await host.giveUp();
    if (turn.runner.engine && !isGone) memory.next.engine.keep(turn.runner.engine);
    const tokens = spentTokens(turn.prepared, results);
    const written = job.session && first && !isEmpty ? this.#commit(job.session, turn, first) : undefined;
    const commit = await written?.catch(async (thrown: unknown) => {
      // Its client was given all of it.
      await settlePlace(env, job, tokens);
      throw thrown;
    });
    // A client that was told the end may begin its next turn.
    await Promise.all([commit && this.#enter(commit), this.#settlePlace(turn, tokens)]);
    if (isGone) {
      return [{ type: "error", error: { code: "cancelled", message: "The turn was ended: nobody listened to it." } }];
    }
    const finishes = results.map(({ reason }, choice): TurnEvent => ({ type: "finish", choice, reason }));
    return [...finishes, { type: "usage", usage: usageOf(job, turn, results) }, { type: "end" }];
  }

  /** Turns that follow upon each other are given the next one's place along. */
  async #settlePlace({ isQuick }: RunningTurn, tokens: number): Promise<void> {
    const { env, job, memory } = this.#options;
    const next = isQuick && job.place ? nextRequest(job.place) : undefined;
    const admission = await settlePlace(env, job, tokens, next);
    if (next && admission) memory.next.place.keep({ request: next, admission });
  }

  /** Writes the turn. */
  async #commit(session: NonNullable<TurnJob["session"]>, turn: RunningTurn, choice: ChoiceResult): Promise<LogCommit> {
    const { job, host, memory } = this.#options;
    const { prepared, assets, spans, runner, known } = turn;
    const isListed = this.#enlist(turn);
    const commit = await buildCommit({
      job,
      session,
      prepared,
      assets,
      kept: choice.reply.kept(),
      spans,
      newSpans: choice.spans,
      engineId: runner.engine?.engineId,
      old: known?.meta,
      bornMs: this.#bornMs(known),
      nowMs: Date.now(),
      isListed,
      memory: memory.render,
    });
    await host.commit(commit);
    return commit;
  }

  /** Sees to it, before there is a session, that somebody ends it when nobody uses it any more. Never rejects. */
  #enlist({ known }: RunningTurn): Promise<boolean> {
    const { env, job } = this.#options;
    const { namespace, session } = job;
    const enlistNow = (): Promise<boolean> => {
      const objectId = sessionOf(env, namespace, session?.id ?? "").id.toString();
      return tryEnlist(env, { namespace, objectId, usedMs: Date.now() });
    };
    this.#listed ??= known?.meta.isListed ? Promise.resolve(true) : enlistNow();
    return this.#listed;
  }

  /** Without the index a turn is only slower, so this may fail. */
  async #enter(commit: LogCommit): Promise<void> {
    const { env, job } = this.#options;
    const rows = indexRows(commit);
    if (rows.length === 0) return;
    const entered = indexOf(env, job.namespace).put(rows);
    await within(LIMITS.indexMsMax, entered).catch((cause: unknown) => logError(job.requestId, cause));
  }
}

/** Whether its client went away with nothing: an answer in one piece is given whole or not at all, and its client, who has none, asks again. */
function isUnread({ form, resumable }: TurnJob, { isHeard }: TurnStream): boolean {
  return form === "frames" && !resumable && !isHeard;
}

/** What an engine is picked for. */
interface PromptAtHand {
  prepared: PreparedTurn;
  turnStart: number;
  spans: Span[];
  turnAgeMs: number | undefined;
  /** Called when the turn has waited for an engine for `LIMITS.holdHeadersMs` and waits on. */
  onHeld: () => void;
}
