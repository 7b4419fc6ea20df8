/** The engines that are alive, and which of them takes the next turn. No I/O: time is passed in. */
import type { EngineHeartbeat } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";

/** What a turn needs to know of its engine. */
export interface PickedEngine {
  engineId: string;
  url: string;
  contextTokensMax: number;
}

/** What to look for. */
export interface PickRequest {
  model: string;
  /** The engine that served this session last: its pool still has the pages. */
  stickyEngineId?: string | undefined;
  /** Engines that just failed this request. */
  excludeIds: string[];
}

/** How many more waiting requests the sticky engine may have than the best one: prefill is dearer than a short wait. */
const STICKY_QUEUE_SLACK = 4;

interface EngineRecord {
  heartbeat: EngineHeartbeat;
  seenMs: number;
  /** Turns sent here that no heartbeat has counted yet. */
  assignedCount: number;
}

/** Engines by their last heartbeat; one that was silent for `LIMITS.engineExpiryMs` is gone. */
export class FleetTable {
  readonly #engines = new Map<string, EngineRecord>();

  /** Enters or renews an engine. */
  heartbeat(heartbeat: EngineHeartbeat, nowMs: number): void {
    this.#expire(nowMs);
    this.#engines.set(heartbeat.engineId, { heartbeat, seenMs: nowMs, assignedCount: 0 });
  }

  /** Ids of the models that live engines serve: first those that take turns, in the order in which their first engine came. */
  models(nowMs: number): string[] {
    this.#expire(nowMs);
    const heartbeats = [...this.#engines.values()].map(({ heartbeat }) => heartbeat);
    const taking = heartbeats.filter(({ draining }) => !draining);
    return [...new Set([...taking, ...heartbeats].map(({ model }) => model))];
  }

  /** Picks an engine and counts the turn against it; undefined when none is left. */
  pick(request: PickRequest, nowMs: number): PickedEngine | undefined {
    this.#expire(nowMs);
    const candidates = [...this.#engines.values()].filter(
      ({ heartbeat }) =>
        heartbeat.model === request.model && !heartbeat.draining && !request.excludeIds.includes(heartbeat.engineId),
    );
    candidates.sort(compareLoad);
    const [best] = candidates;
    if (!best) return undefined;
    const sticky = candidates.find(({ heartbeat }) => heartbeat.engineId === request.stickyEngineId);
    const picked = sticky && waiting(sticky) <= waiting(best) + STICKY_QUEUE_SLACK ? sticky : best;
    picked.assignedCount += 1;
    return describe(picked);
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

  #expire(nowMs: number): void {
    for (const [id, engine] of this.#engines) {
      if (nowMs - engine.seenMs > LIMITS.engineExpiryMs) this.#engines.delete(id);
    }
  }
}

function describe({ heartbeat }: EngineRecord): PickedEngine {
  const { engineId, url, contextTokensMax } = heartbeat;
  return { engineId, url, contextTokensMax };
}

function waiting({ heartbeat, assignedCount }: EngineRecord): number {
  return heartbeat.queuedCount + assignedCount;
}

/** Least loaded first; among equals the one with more free blocks, then the lower id. */
function compareLoad(a: EngineRecord, b: EngineRecord): number {
  const load = waiting(a) + a.heartbeat.runningCount - waiting(b) - b.heartbeat.runningCount;
  if (load !== 0) return load;
  const free = b.heartbeat.freeBlockCount - a.heartbeat.freeBlockCount;
  if (free !== 0) return free;
  return a.heartbeat.engineId < b.heartbeat.engineId ? -1 : 1;
}
