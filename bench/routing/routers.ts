/** Ways to choose an engine for a turn. */
import { type Candidate, cheapest, type EngineCost, turnCostMs } from "../../workers/fleet/cost.ts";
import { seededRandom } from "../random.ts";
import { ENGINE, fetchMs, type SimEngines } from "./sim-engines.ts";
import type { SimSession, SimTurn } from "./workload.ts";

/** Chooses; may remember. */
export type Router = (session: SimSession, turn: SimTurn, nowMs: number) => number;

/** How far a router looks among engines that hold a prefix, and among those that hold nothing. */
const HOLDER_COUNT_MAX = 32;
/** A turn's pages are believed to be where it ran until a heartbeat can have told. */
const LAG_MS = 3_000;

/** The routers by name; the last is Quire's. */
export const ROUTERS: Readonly<Record<string, (engines: SimEngines, seed: number) => Router>> = {
  "round-robin": (engines) => {
    let next = -1;
    return () => {
      next = (next + 1) % engines.count;
      return next;
    };
  },
  "least-loaded": (engines) => () => leastLoaded(engines),
  "consistent-hashing": (engines, seed) => {
    const ring = new HashRing(engines.count, seed);
    return ({ id }) => ring.find(id, 1);
  },
  // What a text router can see: sessions that begin alike go to one place.
  "text-prefix-hashing": (engines, seed) => {
    const ring = new HashRing(engines.count, seed);
    return ({ prefixId }) => ring.find(prefixId, 2);
  },
  quire: (engines) => (session, turn, nowMs) => quire(engines, session, turn, nowMs),
};

/** The cost function of the fleet, over the engines that come into question: where a beginning is, where the session was, and the freest. */
function quire(engines: SimEngines, session: SimSession, turn: SimTurn, nowMs: number): number {
  const candidates: Candidate<number>[] = [];
  const seen = new Set<number>();
  const consider = (engine: number): void => {
    if (engine < 0 || seen.has(engine)) return;
    seen.add(engine);
    const load = engines.seenRunning[engine] as number;
    candidates.push({ engine, load, costMs: costAt(engines, engine, session, turn, nowMs) });
  };
  consider(session.engine);
  for (const engine of engines.holdersOf(session)) {
    if (seen.size > HOLDER_COUNT_MAX) break;
    consider(engine);
  }
  let sum = 0;
  let free = 0;
  let least = Number.POSITIVE_INFINITY;
  for (let engine = 0; engine < engines.count; engine++) {
    const running = engines.seenRunning[engine] as number;
    sum += running;
    const waiting = (engines.seenWaitingTokens[engine] as number) + running * 16;
    if (waiting < least) [free, least] = [engine, waiting];
  }
  consider(free);
  return cheapest(candidates, sum / engines.count)?.engine ?? 0;
}

/** One object for all: the hot path makes none. */
const cost: EngineCost = {
  waitMs: 0,
  runningCount: 0,
  prefillMsPerToken: ENGINE.prefillMsPerToken,
  hostMsPerToken: 0,
  storeLatencyMs: 0,
  storeMsPerToken: 0,
};

function costAt(engines: SimEngines, engine: number, session: SimSession, turn: SimTurn, nowMs: number): number {
  const { loggedTokens, prefixTokens } = session;
  const promptTokens = Math.max(loggedTokens, prefixTokens) + turn.newTokens;
  const isFresh = session.engine === engine && nowMs - session.endedMs < LAG_MS;
  const deviceTokens = isFresh ? loggedTokens : engines.toldTokens(engine, session);
  const fetched = Math.max(0, loggedTokens - deviceTokens);
  cost.runningCount = engines.seenRunning[engine] as number;
  cost.waitMs = (engines.seenWaitingTokens[engine] as number) * ENGINE.prefillMsPerToken;
  cost.storeLatencyMs = ENGINE.storeLatencyMs;
  cost.storeMsPerToken = fetched === 0 ? 0 : (fetchMs(fetched) - ENGINE.storeLatencyMs) / fetched;
  return turnCostMs(cost, { promptTokens, deviceTokens, hostTokens: 0, storedTokens: loggedTokens });
}

function leastLoaded(engines: SimEngines): number {
  let best = 0;
  for (let engine = 1; engine < engines.count; engine++) {
    const difference = (engines.seenRunning[engine] as number) - (engines.seenRunning[best] as number);
    if (difference > 0) continue;
    const waiting = (engines.seenWaitingTokens[engine] as number) - (engines.seenWaitingTokens[best] as number);
    if (difference < 0 || waiting < 0) best = engine;
  }
  return best;
}

/** Consistent hashing: each engine has many places on a ring, and a key belongs to the next one. */
class HashRing {
  readonly #places: { at: number; engine: number }[] = [];
  readonly #seed: number;

  constructor(count: number, seed: number) {
    this.#seed = seed;
    for (let engine = 0; engine < count; engine++) {
      const random = seededRandom(seed, engine + 0x4000_0000);
      for (let place = 0; place < 100; place++) this.#places.push({ at: random(), engine });
    }
    this.#places.sort((a, b) => a.at - b.at);
  }

  /** The engine of a key; `kind` keeps keys of different kinds apart. */
  find(key: number, kind: number): number {
    const at = seededRandom(this.#seed + kind, key)();
    let [low, high] = [0, this.#places.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#places[middle]?.at ?? 1) < at) low = middle + 1;
      else high = middle;
    }
    return this.#places[low % this.#places.length]?.engine ?? 0;
  }
}
