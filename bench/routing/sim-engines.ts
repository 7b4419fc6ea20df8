/**
 * A thousand engines in arrays: each computes one prompt after the other, decodes many replies beside it, and keeps the KV of what it has computed
 * until the room is needed (least recently used first). What is not there is read from the page store, as Quire resumes a session.
 */
import { ROUTE_STRIDE_TOKENS } from "../../protocol/prefix-filter.ts";
import { EventQueue } from "./event-queue.ts";
import type { SimSession, SimTurn } from "./workload.ts";

/** An engine: an 8B model with int8 KV on one accelerator of 80 GB. */
export const ENGINE = {
  prefillMsPerToken: 0.1,
  decodeMsPerToken: 20,
  /** Replies beside which a prompt takes twice its time. */
  slowdownCount: 32,
  poolTokens: 600_000,
  kvBytesPerToken: 64 * 1024,
  storeLatencyMs: 60,
  storeBytesPerMs: 1_000_000,
  /** Summaries are read for all tokens, pages for those that a query selects. */
  summaryShare: 1 / 16,
  selectedTokens: 2_048,
  heartbeatMs: 1_000,
} as const;

/** What became of a turn. */
export interface Served {
  firstTokenMs: number;
  endMs: number;
  promptTokens: number;
  /** Of them on the engine's device. */
  heldTokens: number;
}

/** Something that an engine holds: a shared prefix, or what a session has behind its own. */
interface Held {
  tokens: number;
  sinceMs: number;
}

/** Prefixes and sessions have one space of keys. */
const prefixKey = (id: number): number => -1 - id;

/** See the head of this file. What a router sees of load is up to a heartbeat old; what it has sent since, it knows. */
export class SimEngines {
  readonly count: number;
  /** As the last heartbeat told, with the turns that were sent since. */
  readonly seenRunning: Int32Array;
  readonly seenWaitingTokens: Float64Array;
  readonly turnCounts: Int32Array;
  /** Time that all engines spent on prompts. */
  busyMs = 0;
  /** Engines on whose device a prefix is. */
  readonly #holders = new Map<number, Set<number>>();
  readonly #busyUntilMs: Float64Array;
  /** Turns that wait or run, and those of them that decode. */
  readonly #running: Int32Array;
  readonly #decoding: Int32Array;
  readonly #starts = new EventQueue();
  readonly #ends = new EventQueue();
  readonly #held: Map<number, Held>[];
  readonly #heldTokens: Int32Array;
  #beatMs = 0;

  constructor(count: number) {
    this.count = count;
    this.seenRunning = new Int32Array(count);
    this.seenWaitingTokens = new Float64Array(count);
    this.turnCounts = new Int32Array(count);
    this.#busyUntilMs = new Float64Array(count);
    this.#running = new Int32Array(count);
    this.#decoding = new Int32Array(count);
    this.#heldTokens = new Int32Array(count);
    this.#held = Array.from({ length: count }, () => new Map());
  }

  /** Replies that end by now end; heartbeats that are due are heard. */
  advance(nowMs: number): void {
    while (this.#starts.nextMs <= nowMs) this.#add(this.#decoding, this.#starts.pop(), 1);
    while (this.#ends.nextMs <= nowMs) {
      const engine = this.#ends.pop();
      this.#add(this.#running, engine, -1);
      this.#add(this.#decoding, engine, -1);
    }
    if (nowMs - this.#beatMs < ENGINE.heartbeatMs) return;
    this.#beatMs = nowMs;
    for (let engine = 0; engine < this.count; engine++) {
      this.seenRunning[engine] = this.#running[engine] as number;
      const waitMs = Math.max(0, (this.#busyUntilMs[engine] as number) - nowMs);
      this.seenWaitingTokens[engine] = waitMs / ENGINE.prefillMsPerToken;
    }
  }

  /** Tokens of a session's next prompt that the engine holds now. */
  heldTokens(engine: number, session: SimSession): number {
    return this.#reach(engine, session, Number.POSITIVE_INFINITY);
  }

  /** The same as the last heartbeat told it, in whole routing points. */
  toldTokens(engine: number, session: SimSession): number {
    return Math.floor(this.#reach(engine, session, this.#beatMs) / ROUTE_STRIDE_TOKENS) * ROUTE_STRIDE_TOKENS;
  }

  /** Runs a turn. */
  serve(engine: number, session: SimSession, turn: SimTurn, nowMs: number): Served {
    const before = Math.max(session.prefixTokens, session.loggedTokens);
    const promptTokens = before + turn.newTokens;
    const heldTokens = this.heldTokens(engine, session);
    const storedTokens = Math.max(heldTokens, session.loggedTokens);
    const slowdown = 1 + (this.#decoding[engine] as number) / ENGINE.slowdownCount;
    const computeMs = (promptTokens - storedTokens) * ENGINE.prefillMsPerToken * slowdown;
    // What is fetched is fetched while the turn waits, and nobody waits for another's pages.
    const freeMs = Math.max(this.#busyUntilMs[engine] as number, nowMs);
    const startMs = Math.max(freeMs, nowMs + fetchMs(storedTokens - heldTokens));
    const firstMs = startMs + computeMs + ENGINE.decodeMsPerToken;
    const endMs = firstMs + turn.replyTokens * ENGINE.decodeMsPerToken;
    this.#busyUntilMs[engine] = freeMs + computeMs;
    this.busyMs += computeMs;
    this.#starts.push(firstMs, engine);
    this.#ends.push(endMs, engine);
    this.#add(this.#running, engine, 1);
    this.#add(this.seenRunning, engine, 1);
    this.#add(this.seenWaitingTokens, engine, promptTokens - storedTokens);
    this.#add(this.turnCounts, engine, 1);
    this.#hold(engine, prefixKey(session.prefixId), session.prefixTokens, nowMs);
    this.#hold(engine, session.id, promptTokens + turn.replyTokens - session.prefixTokens, nowMs);
    return { firstTokenMs: firstMs - nowMs, endMs, promptTokens, heldTokens };
  }

  #add(counts: Int32Array | Float64Array, engine: number, count: number): void {
    counts[engine] = (counts[engine] as number) + count;
  }

  #reach(engine: number, session: SimSession, beforeMs: number): number {
    const held = this.#held[engine] as Map<number, Held>;
    const prefix = held.get(prefixKey(session.prefixId));
    if (prefix === undefined || prefix.sinceMs > beforeMs) return 0;
    const own = held.get(session.id);
    return prefix.tokens + (own === undefined || own.sinceMs > beforeMs ? 0 : own.tokens);
  }

  #hold(engine: number, key: number, tokens: number, nowMs: number): void {
    const held = this.#held[engine] as Map<number, Held>;
    const known = held.get(key);
    if (known) {
      // To the end: the first is the least recently used.
      held.delete(key);
      this.#heldTokens[engine] = (this.#heldTokens[engine] as number) - known.tokens;
    } else if (key < 0) {
      const holders = this.#holders.get(key) ?? new Set();
      this.#holders.set(key, holders.add(engine));
    }
    held.set(key, { tokens, sinceMs: known?.sinceMs ?? nowMs });
    this.#heldTokens[engine] = (this.#heldTokens[engine] as number) + tokens;
    for (const [oldest, { tokens: freed }] of held) {
      if ((this.#heldTokens[engine] as number) <= ENGINE.poolTokens) break;
      held.delete(oldest);
      this.#heldTokens[engine] = (this.#heldTokens[engine] as number) - freed;
      if (oldest < 0) this.#holders.get(oldest)?.delete(engine);
    }
  }

  /** Engines that hold a session's prefix. */
  holdersOf({ prefixId }: SimSession): ReadonlySet<number> {
    return this.#holders.get(prefixKey(prefixId)) ?? NOBODY;
  }
}

const NOBODY: ReadonlySet<number> = new Set();

/** Milliseconds to read what a resumed turn needs of so many tokens: summaries of all, and the pages that it selects. */
export function fetchMs(tokens: number): number {
  if (tokens === 0) return 0;
  const read = tokens * ENGINE.summaryShare + Math.min(tokens, ENGINE.selectedTokens);
  return ENGINE.storeLatencyMs + (read * ENGINE.kvBytesPerToken) / ENGINE.storeBytesPerMs;
}
