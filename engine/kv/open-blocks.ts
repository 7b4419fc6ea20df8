/**
 * Open slots: who holds one, and the idle tails between turns. A tail is the unsealed end of a finished turn (f32, up to 63 tokens);
 * the next turn of the session (or any sequence of the namespace with the same tokens before it) takes it over. Tails give way, oldest
 * first, when a step needs slots: whatever was acknowledged is in the page store or can be computed again.
 */
import { assert } from "../../protocol/assert.ts";
import type { FreeList } from "./free-list.ts";

/** A partly filled block. */
export interface OpenBlock {
  slot: number;
  tokenCount: number;
}

/** An idle tail: what its tokens are and how they were attended. */
export interface IdleTail {
  slot: number;
  /** The session whose turn left it. */
  owner: string | undefined;
  ids: Uint32Array;
  /** Provenance of its first tokens. */
  describe: Describe;
}

/** Provenance of the first `tokenCount` tokens; undefined where a query group goes on behind them: those KV depend on what follows. */
export type Describe = (tokenCount: number) => string | undefined;

/** Owner of the open slots. */
export class OpenBlocks {
  readonly #slots: FreeList;
  /** By `namespace:chain` of the block before; insertion order is age. */
  readonly #tails = new Map<string, IdleTail>();

  constructor(slots: FreeList) {
    this.#slots = slots;
  }

  /** Slots that can be had now. */
  get availableCount(): number {
    return this.#slots.freeCount + this.#tails.size;
  }

  get idleCount(): number {
    return this.#tails.size;
  }

  get takenCount(): number {
    return this.#slots.count - this.#slots.freeCount - this.#tails.size;
  }

  /** @throws {AssertionError} when all are held by sequences: check `availableCount` first. */
  take(): number {
    if (this.#slots.freeCount === 0) this.#evictOldest();
    return this.#slots.take();
  }

  give(slot: number): void {
    this.#slots.give(slot);
  }

  /** Keeps a tail; an older one under the same key gives way. */
  park(key: string, tail: IdleTail): void {
    const old = this.#tails.get(key);
    if (old) {
      this.#tails.delete(key);
      this.#slots.give(old.slot);
    }
    this.#tails.set(key, tail);
  }

  /**
   * Takes over the tail after `key` as far as its tokens and their provenance agree; undefined when not even the first does.
   * @param limit at most this many tokens are taken over
   */
  claim(key: string, ids: Uint32Array, describe: Describe, limit: number): OpenBlock | undefined {
    const tail = this.#tails.get(key);
    if (!tail) return undefined;
    const tokenCount = agreement(tail, ids, describe, limit);
    if (tokenCount === 0) return undefined;
    this.#tails.delete(key);
    return { slot: tail.slot, tokenCount };
  }

  /** A session was deleted: frees the idle tails that its turns left. */
  forgetOwner(sessionKey: string): void {
    for (const [key, { owner, slot }] of this.#tails) {
      if (owner !== sessionKey) continue;
      this.#tails.delete(key);
      this.#slots.give(slot);
    }
  }

  /** Frees every idle tail (tests; shutdown). */
  evictIdle(): void {
    while (this.#tails.size > 0) this.#evictOldest();
  }

  #evictOldest(): void {
    const oldest = this.#tails.entries().next().value;
    assert(oldest, "every open slot is held by a sequence");
    this.#tails.delete(oldest[0]);
    this.#slots.give(oldest[1].slot);
  }
}

/** How many leading tokens of a tail have the same ids and provenance as `ids`, and depend on no others than these. */
export function agreement(
  tail: Pick<IdleTail, "ids" | "describe">,
  ids: Uint32Array,
  describe: Describe,
  limit: number,
): number {
  const most = Math.min(tail.ids.length, ids.length, limit);
  let count = 0;
  while (count < most && tail.ids[count] === ids[count]) count += 1;
  for (; count > 0; count--) {
    const own = describe(count);
    if (own !== undefined && own === tail.describe(count)) break;
  }
  return count;
}
