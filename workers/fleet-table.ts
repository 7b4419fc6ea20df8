/** The engines that are alive, and which of them takes the next turn. No I/O: time is passed in. */
import type { EngineHeartbeat } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";
import { PrefixFilter, ROUTE_STRIDE_TOKENS } from "../protocol/prefix-filter.ts";
import { type Candidate, cheapest, computeMs, type EngineCost, turnCostMs } from "./fleet/cost.ts";

/** What a turn needs to know of its engine. */
export interface PickedEngine {
  engineId: string;
  url: string;
  contextTokensMax: number;
  /** Chosen without the fleet, which may know better by now ({@link FleetTable.assign}). */
  isRemembered?: boolean;
}

/** What is known of a prompt before it runs. */
export interface RoutedPrompt {
  /** All of it, and what of it earlier turns of the session left: in the page store, and where they ran. */
  tokenCount: number;
  loggedTokens: number;
  /** Keys of its prefixes, packed (`prefix-filter.ts`): number i ends behind `256 (i + 1)` tokens. */
  prefixKeys: Uint32Array;
  /** Since the session's last turn ended, where that is known. */
  turnAgeMs?: number | undefined;
}

/** What to look for. */
export interface PickRequest {
  model: string;
  /** The engine that served this session last. */
  stickyEngineId?: string | undefined;
  /** Engines that just failed this request. */
  excludeIds: string[];
  /** Absent: only load counts. */
  prompt?: RoutedPrompt | undefined;
}

/** What is assumed where no engine of the model has measured it. */
const PREFILL_MS_PER_TOKEN = 0.5;
/** Manifest, summaries, pages: three reads, one after the other; and for each token of a prefix its share of the last two, at 200 MB/s. */
const STORE_LATENCY_MS = 150;
const STORE_BYTES_PER_MS = 200_000;
const STORE_SHARE = 0.25;
const KV_BYTES_PER_TOKEN = 32 * 1024;
/** What a turn takes beside its prompt. */
const TURN_MS = 20;
/** Where nothing is known of a prompt. */
const PROMPT_TOKENS = 256;
/** A heartbeat tells what an engine held a moment ago: turns that ended since are not in it. */
const FILTER_LAG_MS = 3_000;

interface EngineRecord {
  /** Since when nothing runs or waits there, and nothing was sent. */
  idleSinceMs: number | undefined;
  /** Let go: it takes no more turns and will end. */
  released: boolean;
  heartbeat: EngineHeartbeat;
  filter: PrefixFilter | undefined;
  seenMs: number;
  /** Turns sent here that no heartbeat has counted yet. */
  assignedCount: number;
  /** What they have to compute. */
  assignedTokens: number;
}

/** Engines by their last heartbeat; one that was silent for `LIMITS.engineExpiryMs` is gone. */
export class FleetTable {
  readonly #engines = new Map<string, EngineRecord>();

  /** Enters or renews an engine. */
  heartbeat(heartbeat: EngineHeartbeat, nowMs: number): void {
    this.#expire(nowMs);
    const { residentPrefixes } = heartbeat;
    const filter = residentPrefixes ? PrefixFilter.decode(residentPrefixes, LIMITS.prefixFilterBytesMax) : undefined;
    const known = this.#engines.get(heartbeat.engineId);
    const isBusy = heartbeat.runningCount + heartbeat.queuedCount > 0 || (known?.assignedCount ?? 0) > 0;
    this.#engines.set(heartbeat.engineId, {
      heartbeat,
      filter,
      seenMs: nowMs,
      assignedCount: 0,
      assignedTokens: 0,
      idleSinceMs: isBusy ? undefined : (known?.idleSinceMs ?? nowMs),
      released: known?.released ?? false,
    });
  }

  /** For how long an engine has had nothing to do; 0 for one that works or is not known. */
  idleMs(engineId: string, nowMs: number): number {
    const since = this.#engines.get(engineId)?.idleSinceMs;
    return since === undefined ? 0 : nowMs - since;
  }

  /** Sends an engine no more turns: it was let go. */
  release(engineId: string): void {
    const engine = this.#engines.get(engineId);
    if (engine) engine.released = true;
  }

  /** Ids of the models that live engines serve: first those that take turns, in the order in which their first engine came. */
  models(nowMs: number): string[] {
    this.#expire(nowMs);
    const heartbeats = [...this.#engines.values()].map(({ heartbeat }) => heartbeat);
    const taking = heartbeats.filter(({ draining }) => !draining);
    return [...new Set([...taking, ...heartbeats].map(({ model }) => model))];
  }

  /** Picks the engine that costs the turn least and counts the turn against it; undefined when none is left. */
  pick(request: PickRequest, nowMs: number): PickedEngine | undefined {
    this.#expire(nowMs);
    const engines = [...this.#engines.values()].filter(
      ({ heartbeat, released }) =>
        heartbeat.model === request.model &&
        !heartbeat.draining &&
        !released &&
        !request.excludeIds.includes(heartbeat.engineId),
    );
    engines.sort(compareLoad);
    const usualMs = usualPrefillMs(engines);
    const candidates = engines.map((engine) => candidate(engine, request, usualMs));
    const meanLoad = candidates.reduce((sum, { load }) => sum + load, 0) / Math.max(1, candidates.length);
    const best = cheapest(candidates, meanLoad);
    if (!best) return undefined;
    const { engine, missingTokens } = best.engine;
    assignTo(engine, missingTokens);
    return describe(engine);
  }

  /** Counts a turn against an engine that it went to by itself. */
  assign(engineId: string, missingTokens: number): void {
    const engine = this.#engines.get(engineId);
    if (engine) assignTo(engine, missingTokens);
  }

  /** The engine of that id while it lives, draining or not; otherwise the best other one of the model. Counts nothing. */
  find({ model, engineId }: { model: string; engineId?: string | undefined }, nowMs: number): PickedEngine | undefined {
    this.#expire(nowMs);
    const candidates = [...this.#engines.values()].filter(({ heartbeat }) => heartbeat.model === model);
    const known = candidates.find(({ heartbeat }) => heartbeat.engineId === engineId);
    const taking = candidates.filter(({ heartbeat }) => !heartbeat.draining).sort(compareLoad);
    const found = known ?? taking[0] ?? candidates[0];
    return found && describe(found);
  }

  /** Every engine of a model that is there. */
  all(model: string, nowMs: number): PickedEngine[] {
    this.#expire(nowMs);
    return [...this.#engines.values()].filter(({ heartbeat }) => heartbeat.model === model).map(describe);
  }

  /** Whether an engine is there. */
  has(engineId: string, nowMs: number): boolean {
    this.#expire(nowMs);
    return this.#engines.has(engineId);
  }

  #expire(nowMs: number): void {
    for (const [id, engine] of this.#engines) {
      if (nowMs - engine.seenMs > LIMITS.engineExpiryMs) this.#engines.delete(id);
    }
  }
}

/** An engine, and how much the turn would have to compute there. */
interface Bid {
  engine: EngineRecord;
  missingTokens: number;
}

function assignTo(engine: EngineRecord, missingTokens: number): void {
  engine.assignedCount += 1;
  engine.assignedTokens += missingTokens;
  engine.idleSinceMs = undefined;
}

/** Milliseconds per prompt token of those that have measured it: one that has just started is taken to be no faster. */
function usualPrefillMs(engines: readonly EngineRecord[]): number {
  const measured = engines.flatMap(({ heartbeat }) => heartbeat.prefillMsPerToken ?? []);
  if (measured.length === 0) return PREFILL_MS_PER_TOKEN;
  return measured.reduce((sum, value) => sum + value, 0) / measured.length;
}

function candidate(engine: EngineRecord, request: PickRequest, usualMs: number): Candidate<Bid> {
  const { heartbeat } = engine;
  const { prompt } = request;
  const isSticky = heartbeat.engineId === request.stickyEngineId;
  const deviceTokens = prompt ? heldTokens(engine, prompt, isSticky) : 0;
  const promptTokens = prompt?.tokenCount ?? PROMPT_TOKENS;
  const storedTokens = prompt?.loggedTokens ?? 0;
  const place = { promptTokens, deviceTokens, hostTokens: deviceTokens, storedTokens };
  const missingTokens = Math.max(1, promptTokens - Math.max(deviceTokens, storedTokens));
  return {
    engine: { engine, missingTokens },
    costMs: turnCostMs(costOf(engine, usualMs), place),
    load: loadOf(engine),
  };
}

function costOf({ heartbeat, assignedCount, assignedTokens }: EngineRecord, usualMs: number): EngineCost {
  const { queuedCount, runningCount, waitingTokens = queuedCount * PROMPT_TOKENS } = heartbeat;
  const prefillMsPerToken = heartbeat.prefillMsPerToken ?? usualMs;
  const bytesPerToken = heartbeat.kvBytesPerToken ?? KV_BYTES_PER_TOKEN;
  const waiting = computeMs({ runningCount, prefillMsPerToken }, waitingTokens + assignedTokens);
  return {
    waitMs: waiting + (queuedCount + assignedCount) * TURN_MS,
    runningCount,
    prefillMsPerToken,
    hostMsPerToken: 0,
    storeLatencyMs: STORE_LATENCY_MS,
    storeMsPerToken: (bytesPerToken * STORE_SHARE) / STORE_BYTES_PER_MS,
  };
}

/** How much of a prompt an engine holds; what its filter does not tell yet is believed of the engine that served the session last. */
function heldTokens({ filter }: EngineRecord, prompt: RoutedPrompt, isSticky: boolean): number {
  const { loggedTokens, prefixKeys, tokenCount, turnAgeMs = Number.POSITIVE_INFINITY } = prompt;
  if (!filter) return isSticky ? loggedTokens : 0;
  const found = Math.min(filter.prefixCount(prefixKeys) * ROUTE_STRIDE_TOKENS, tokenCount);
  if (!isSticky) return found;
  // A session's tail lies behind the last point, and is there when what comes before it is.
  const isTail = loggedTokens - found < 2 * ROUTE_STRIDE_TOKENS;
  return isTail || turnAgeMs < FILTER_LAG_MS ? Math.max(found, loggedTokens) : found;
}

function describe({ heartbeat }: EngineRecord): PickedEngine {
  const { engineId, url, contextTokensMax } = heartbeat;
  return { engineId, url, contextTokensMax };
}

function loadOf({ heartbeat, assignedCount }: EngineRecord): number {
  return heartbeat.queuedCount + assignedCount + heartbeat.runningCount;
}

/** Least loaded first; among equals the one with more free blocks, then the lower id. */
function compareLoad(a: EngineRecord, b: EngineRecord): number {
  const load = loadOf(a) - loadOf(b);
  if (load !== 0) return load;
  const free = b.heartbeat.freeBlockCount - a.heartbeat.freeBlockCount;
  if (free !== 0) return free;
  return a.heartbeat.engineId < b.heartbeat.engineId ? -1 : 1;
}
