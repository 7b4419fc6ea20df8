/**
 * What a turn would cost at an engine, in milliseconds until its first token, and the choice that follows. Pure: the simulation of a thousand
 * engines (`npm run bench -- routing`) runs this very code.
 */

/** An engine as a turn meets it. */
export interface EngineCost {
  /** Until a new prompt's turn would come: work that waits there. */
  waitMs: number;
  /** Sequences that decode there: a prompt shares every step with them. */
  runningCount: number;
  /** Measured by the engine, for one more prompt token. */
  prefillMsPerToken: number;
  /** From its host memory to its device. */
  hostMsPerToken: number;
  /** From the page store: for the first byte, and for each token of the prefix. */
  storeLatencyMs: number;
  storeMsPerToken: number;
}

/** Where the KV of a prompt's tokens is, seen from one engine; each counts from the first token on. */
export interface PromptPlace {
  promptTokens: number;
  /** Resident on its device, in its host memory, and in the page store: a longer reach includes the shorter one. */
  deviceTokens: number;
  hostTokens: number;
  storedTokens: number;
}

/** Sequences at which a step takes twice its time. */
const BATCH_DOUBLING = 24;

/** Milliseconds until the first token: waiting, fetching, and computing what nobody has. */
export function turnCostMs(engine: EngineCost, place: PromptPlace): number {
  const device = Math.min(place.deviceTokens, place.promptTokens);
  const host = Math.min(Math.max(place.hostTokens, device), place.promptTokens);
  const stored = Math.min(Math.max(place.storedTokens, host), place.promptTokens);
  const fetched = stored - host;
  const fetchMs = fetched === 0 ? 0 : engine.storeLatencyMs + fetched * engine.storeMsPerToken;
  // A prompt that is all there still has a last token to run.
  const computed = Math.max(1, place.promptTokens - stored);
  return engine.waitMs + (host - device) * engine.hostMsPerToken + fetchMs + computeMs(engine, computed);
}

/** Milliseconds of an engine's time that a turn takes from others: computing, not waiting. */
export function computeMs(engine: Pick<EngineCost, "runningCount" | "prefillMsPerToken">, tokenCount: number): number {
  return tokenCount * engine.prefillMsPerToken * (1 + engine.runningCount / BATCH_DOUBLING);
}

/** A candidate with its cost. */
export interface Candidate<T> {
  engine: T;
  costMs: number;
  /** Turns that wait or run there. */
  load: number;
}

/** How far an engine's load may lie above the mean before it takes no more turns, whatever it holds. */
const IMBALANCE_FACTOR = 2;
const IMBALANCE_SLACK = 4;

/** The largest load at which an engine is still chosen for what it holds. */
export function loadBound(meanLoad: number): number {
  return meanLoad * IMBALANCE_FACTOR + IMBALANCE_SLACK;
}

/**
 * The cheapest candidate whose load is within bounds of the mean (all of them, where none is); among equals the one with the lower load, then the
 * first. Undefined without candidates.
 */
export function cheapest<T>(candidates: readonly Candidate<T>[], meanLoad: number): Candidate<T> | undefined {
  const bound = loadBound(meanLoad);
  let best: Candidate<T> | undefined;
  for (const candidate of candidates) {
    if (best === undefined || isBetter(candidate, best, bound)) best = candidate;
  }
  return best;
}

function isBetter<T>(a: Candidate<T>, b: Candidate<T>, bound: number): boolean {
  const aWithin = a.load <= bound;
  if (aWithin !== b.load <= bound) return aWithin;
  if (a.costMs !== b.costMs) return a.costMs < b.costMs;
  return a.load < b.load;
}
