/**
 * Room for sequences that grow. A request is admitted with blocks for its prompt; each further block is reserved when a token is about to fill it.
 * Where none is left, the sequence of lowest priority that was admitted last is suspended: its sealed blocks may leave the device (and stay in host
 * memory until it goes on), its open block is saved, and it goes on later, bit for bit, before anybody else is admitted. One that was suspended
 * often goes on with all that it can come to need, and is not suspended again.
 */
import { BLOCK_TOKENS, type KvPool, NOT_RESIDENT } from "../../kernels/contract.ts";
import type { BlockCache } from "../kv/block-cache.ts";
import type { OpenBlocks } from "../kv/open-blocks.ts";
import type { EngineObserver } from "../observer.ts";
import type { Residency } from "../sequence/residency.ts";
import type { SavedOpen, Sequence } from "../sequence/sequence.ts";
import type { Clock } from "../settings.ts";
import type { Tenants } from "./tenants.ts";

/** A sequence that was suspended so often is not suspended again. */
const PREEMPTIONS_MAX = 4;
/** Blocks beyond those that it has with which a suspended sequence goes on, so that it comes some way before it is in need again. */
const RESTORE_AHEAD_BLOCKS = 4;

/** What it works with; all of it stays the engine's. */
export interface PreemptionOptions {
  pool: KvPool;
  cache: BlockCache;
  opens: OpenBlocks;
  tenants: Tenants;
  residency: Residency;
  /** The running ones, suspended ones among them. */
  active: ReadonlySet<Sequence>;
  clock: Clock;
  observer: EngineObserver;
  /** Drops a step that waits for blocks: it is planned again. */
  dropStep(sequence: Sequence): void;
}

/** Preemption of one engine. Everything here happens between two steps. */
export class Preemption {
  readonly #options: PreemptionOptions;
  #admittedCount = 0;

  constructor(options: PreemptionOptions) {
    this.#options = options;
  }

  /** Sequences that wait to go on. */
  get suspendedCount(): number {
    return this.#suspended().length;
  }

  /** Whether a request would find what it starts with, now that nobody waits to go on. */
  hasRoomFor({ workingSet, startBlocks }: Sequence): boolean {
    const { reservations } = this.#options.cache;
    return this.suspendedCount === 0 && reservations.hasRoomFor(workingSet ?? reservations.partsOf(startBlocks));
  }

  /** Sets aside what a request starts with. False when there is not enough. */
  admit(sequence: Sequence): boolean {
    const { cache } = this.#options;
    const { workingSet, startBlocks } = sequence;
    if (!(workingSet ? cache.reservations.reserveParts(workingSet) : cache.reservations.reserve(startBlocks)))
      return false;
    sequence.reservedCount = sequence.startBlocks;
    sequence.admittedOrder = ++this.#admittedCount;
    return true;
  }

  /** Before a step is planned: whoever is about to fill a block gets a place for it, or it or another is suspended. */
  secure(): void {
    const short = [...this.#options.active].filter((one) => one.phase === "running" && one.shortBlocks > 0);
    for (const sequence of short.sort(byRank)) {
      while (sequence.phase === "running" && !this.#reserve(sequence, sequence.shortBlocks)) {
        const victim = this.#victim();
        if (!victim) return;
        this.#suspend(victim);
      }
    }
  }

  /** Lets suspended ones go on, first the one of highest rank, while there is room. Returns the first that still has to wait. */
  restore(): Sequence | undefined {
    return this.#suspended()
      .sort(byRank)
      .find((sequence) => !this.#restore(sequence));
  }

  #suspended(): Sequence[] {
    return [...this.#options.active].filter(({ phase }) => phase === "preempted");
  }

  #reserve(sequence: Sequence, blocks: number): boolean {
    const { cache, tenants } = this.#options;
    if (!cache.reservations.reserve(blocks)) return false;
    sequence.reservedCount += blocks;
    tenants.reserve(sequence.namespace, blocks);
    return true;
  }

  /**
   * Lowest rank of those that may be suspended: none whose memory is being copied for the store, or that has said its last (it gives back what it has), or
   * that has set aside all that it needs of a context larger than the pool.
   */
  #victim(): Sequence | undefined {
    const isStuck = this.#isStuck();
    const may = [...this.#options.active].filter(
      (one) =>
        one.phase === "running" &&
        (one.finishReason === undefined || isStuck) &&
        one.error === undefined &&
        !one.abortRequested &&
        one.copying.size === 0 &&
        one.workingSet === undefined &&
        one.preemptedCount < PREEMPTIONS_MAX,
    );
    return may.sort(byRank).at(-1);
  }

  /** Everybody has said its last and lacks a block for that: nobody gives anything back. */
  #isStuck(): boolean {
    const holders = [...this.#options.active].filter(({ phase }) => phase !== "preempted");
    return holders.every((one) => one.phase === "running" && one.finishReason !== undefined && one.shortBlocks > 0);
  }

  #suspend(sequence: Sequence): void {
    const { cache, clock, dropStep, observer, opens, pool, tenants } = this.#options;
    dropStep(sequence);
    sequence.phase = "preempted";
    sequence.preemptedCount += 1;
    for (const [index, { slot, tokenCount }] of sequence.opens) {
      const hostBytes = (pool.openSlotBytes / BLOCK_TOKENS) * tokenCount;
      if (cache.chargeHost(hostBytes)) sequence.savedOpens.set(index, savedOpen(pool, slot, { tokenCount, hostBytes }));
      opens.give(slot);
    }
    sequence.opens.clear();
    sequence.park(cache);
    cache.reservations.unreserve(sequence.reservedCount);
    tenants.reserve(sequence.namespace, -sequence.reservedCount);
    sequence.reservedCount = 0;
    observer.preempted(sequence, clock.nowMs());
  }

  #restore(sequence: Sequence): boolean {
    const { cache, clock, observer, opens, pool, residency } = this.#options;
    const { blocksMax, tokenCount, savedOpens, preemptedCount } = sequence;
    const needed = Math.floor(tokenCount / BLOCK_TOKENS) + RESTORE_AHEAD_BLOCKS;
    const wanted = preemptedCount < PREEMPTIONS_MAX ? Math.min(blocksMax, needed) : blocksMax;
    if (!isHere(sequence) || opens.availableCount < savedOpens.size || !this.#reserve(sequence, wanted)) return false;
    sequence.unpark(cache);
    for (const [index, saved] of savedOpens) {
      if (!saved.bytes) continue;
      const slot = opens.take();
      pool.writeOpen(slot, saved.tokenCount, saved.bytes);
      sequence.opens.set(index, { slot, tokenCount: saved.tokenCount });
    }
    sequence.forgetSaved(cache);
    observer.restored(sequence, clock.nowMs());
    residency.promote(sequence);
    return true;
  }
}

/** Higher priority first, then whoever was admitted earlier. */
function byRank(a: Sequence, b: Sequence): number {
  return b.priority - a.priority || a.admittedOrder - b.admittedOrder;
}

/** What of it went to host memory has arrived there. */
function isHere({ blocks, savedOpens }: Sequence): boolean {
  const isReady = blocks.every(
    (block) => !block || block.summarySlot !== NOT_RESIDENT || block.host?.isReady !== false,
  );
  return isReady && [...savedOpens.values()].every(({ isPending }) => !isPending);
}

/** A read has the bytes of the moment of its call: the slot may be given to others at once. */
function savedOpen(
  pool: KvPool,
  slot: number,
  { tokenCount, hostBytes }: { tokenCount: number; hostBytes: number },
): SavedOpen {
  const saved: SavedOpen = { tokenCount, hostBytes, bytes: undefined, isPending: true };
  const arrived = (bytes: Uint8Array | undefined) => {
    saved.bytes = bytes;
    saved.isPending = false;
  };
  // What could not be read is computed again.
  pool.readOpen(slot, tokenCount).then(arrived, () => arrived(undefined));
  return saved;
}
