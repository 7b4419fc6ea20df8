/**
 * Logical blocks and who owns them. A logical block is 64 sealed tokens of all layers: a device block per layer (or none yet), a
 * summary slot, and where its bytes are stored. Sequences hold references; a published block is found by its chain by any sequence of
 * the same namespace; one without references stays until its room is needed (least recently released first).
 */
import { NOT_RESIDENT, type SummaryKind } from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import type { FreeList } from "./free-list.ts";
import type { StoredSegment } from "./stored-segment.ts";

/** 64 sealed tokens of one sequence position; shared by every sequence whose chain runs through it. Fields are the cache's to change. */
export class LogicalBlock {
  /** `namespace:chain`, set when it is published. */
  key: string | undefined;
  /** Logical block index: tokens `[64 index, 64 index + 64)`. */
  readonly index: number;
  /** Device block of each layer, or NOT_RESIDENT. */
  readonly deviceBlocks: Int32Array;
  summarySlot: number = NOT_RESIDENT;
  /** Kinds that its summary slot holds; it is never scored by another. */
  summaries: Set<SummaryKind> = new Set();
  residentLayerCount = 0;
  refCount = 1;
  published = false;
  /** Set once its segment is (being) stored. */
  stored: StoredSegment | undefined;
  /** Its stored bytes cannot be trusted or are gone: whoever holds it must compute it again, into a fresh block. */
  lost = false;

  constructor(index: number, layerCount: number) {
    this.index = index;
    this.deviceBlocks = new Int32Array(layerCount).fill(NOT_RESIDENT);
  }

  get resident(): boolean {
    return this.residentLayerCount === this.deviceBlocks.length;
  }
}

/** The free ids a cache hands out; nobody else takes from them. */
export interface BlockCacheOptions {
  layerCount: number;
  deviceBlocks: FreeList;
  summarySlots: FreeList;
}

/** Owner of all device blocks and summary slots. One release path: {@link BlockCache.release}. */
export class BlockCache {
  readonly #layerCount: number;
  readonly #deviceBlocks: FreeList;
  readonly #summarySlots: FreeList;
  readonly #published = new Map<string, LogicalBlock>();
  /** Published, without references, in order of release. */
  readonly #idle = new Set<LogicalBlock>();
  #reservedBlocks = 0;
  #reservedSlots = 0;

  constructor(options: BlockCacheOptions) {
    this.#layerCount = options.layerCount;
    this.#deviceBlocks = options.deviceBlocks;
    this.#summarySlots = options.summarySlots;
  }

  /** Logical blocks that sequences may still reserve. */
  get unreservedCount(): number {
    const byBlocks = Math.floor((this.#deviceBlocks.count - this.#reservedBlocks) / this.#layerCount);
    return Math.min(byBlocks, this.#summarySlots.count - this.#reservedSlots);
  }

  /** Logical blocks that the pool holds when empty. */
  get capacity(): number {
    return Math.min(Math.floor(this.#deviceBlocks.count / this.#layerCount), this.#summarySlots.count);
  }

  /** Every block that is found by its key. */
  published(): Iterable<LogicalBlock> {
    return this.#published.values();
  }

  get idleCount(): number {
    return this.#idle.size;
  }

  /** Device blocks of logical blocks that nothing references. */
  get idleDeviceBlockCount(): number {
    let count = 0;
    for (const block of this.#idle) count += block.residentLayerCount;
    return count;
  }

  /** Device blocks that no logical block holds. */
  get freeDeviceBlockCount(): number {
    return this.#deviceBlocks.freeCount;
  }

  /** Sets room for `count` logical blocks aside: references within it never fail to find memory. False when there is not enough. */
  reserve(count: number): boolean {
    if (count > this.unreservedCount) return false;
    this.#reservedBlocks += count * this.#layerCount;
    this.#reservedSlots += count;
    return true;
  }

  unreserve(count: number): void {
    this.#reservedBlocks -= count * this.#layerCount;
    this.#reservedSlots -= count;
    assert(this.#reservedBlocks >= 0 && this.#reservedSlots >= 0, "unreserved more than was reserved");
  }

  /** Whether {@link acquire} would find a block with all its layers on the device; nothing is touched. */
  has(key: string): boolean {
    return this.#published.get(key)?.resident === true;
  }

  /** The published block of a key, with a new reference, or undefined. */
  acquire(key: string): LogicalBlock | undefined {
    const block = this.#published.get(key);
    if (block) this.retain(block);
    return block;
  }

  /** One more reference to a block that is alive. */
  retain(block: LogicalBlock): void {
    if (block.refCount === 0) this.#idle.delete(block);
    block.refCount += 1;
  }

  /** A new block with one reference and a summary slot, without device blocks, not published. */
  create(index: number): LogicalBlock {
    const block = new LogicalBlock(index, this.#layerCount);
    while (this.#summarySlots.freeCount === 0) this.#evictOne();
    block.summarySlot = this.#summarySlots.take();
    return block;
  }

  /** Gives a block a device block for a layer that has none; the caller writes its bytes. */
  allocateLayer(block: LogicalBlock, layer: number): number {
    assert(block.deviceBlocks[layer] === NOT_RESIDENT, "layer is resident already");
    assert(block.refCount > 0, "only a referenced block is given memory");
    while (this.#deviceBlocks.freeCount === 0) this.#evictOne();
    const id = this.#deviceBlocks.take();
    block.deviceBlocks[layer] = id;
    block.residentLayerCount += 1;
    return id;
  }

  /** Device blocks for every layer that has none. */
  allocateAll(block: LogicalBlock): void {
    for (let layer = 0; layer < this.#layerCount; layer++) {
      if (block.deviceBlocks[layer] === NOT_RESIDENT) this.allocateLayer(block, layer);
    }
  }

  /**
   * Makes a block findable once its summaries are written and its bytes are on the device or verified as stored. Where another has the
   * key already, that one is returned in its place (with the reference moved, and layers and summaries that it lacks given to it: equal
   * keys are equal bytes).
   */
  publish(block: LogicalBlock, key: string): LogicalBlock {
    assert(block.key === undefined, "a block is published once");
    const known = this.#published.get(key);
    if (known) {
      this.retain(known);
      donateLayers(block, known);
      donateSummaries(block, known);
      this.release(block);
      return known;
    }
    block.key = key;
    block.published = true;
    this.#published.set(key, block);
    return block;
  }

  /** Takes a block out of sight for good; holders keep it until they release it. */
  markLost(block: LogicalBlock): void {
    block.lost = true;
    if (block.published) this.#unpublish(block);
  }

  /** Drops a reference. The last one of an unpublished block frees its memory. */
  release(block: LogicalBlock): void {
    assert(block.refCount > 0, "released a block without references");
    block.refCount -= 1;
    if (block.refCount > 0) return;
    if (block.published) this.#idle.add(block);
    else this.#free(block);
  }

  /** Frees every block that nothing references (tests; a session's end of life). */
  evictIdle(): void {
    while (this.#idle.size > 0) this.#evictOne();
  }

  #evictOne(): void {
    const [oldest] = this.#idle;
    assert(oldest !== undefined, "reservations cover every referenced block, so something is idle");
    this.#unpublish(oldest);
  }

  #unpublish(block: LogicalBlock): void {
    block.published = false;
    if (block.key !== undefined) this.#published.delete(block.key);
    if (this.#idle.delete(block)) this.#free(block);
  }

  #free(block: LogicalBlock): void {
    for (const [layer, id] of block.deviceBlocks.entries()) {
      if (id !== NOT_RESIDENT) this.#deviceBlocks.give(id);
      block.deviceBlocks[layer] = NOT_RESIDENT;
    }
    block.residentLayerCount = 0;
    if (block.summarySlot !== NOT_RESIDENT) this.#summarySlots.give(block.summarySlot);
    block.summarySlot = NOT_RESIDENT;
    block.summaries = new Set();
  }
}

/** Slots are swapped where the new one holds more. Between steps; a suspended one fills its tables again. */
function donateSummaries(from: LogicalBlock, to: LogicalBlock): void {
  if (from.summaries.size <= to.summaries.size) return;
  for (const kind of to.summaries) if (!from.summaries.has(kind)) return;
  const { summarySlot, summaries } = to;
  to.summarySlot = from.summarySlot;
  to.summaries = from.summaries;
  from.summarySlot = summarySlot;
  from.summaries = summaries;
}

function donateLayers(from: LogicalBlock, to: LogicalBlock): void {
  for (const [layer, id] of from.deviceBlocks.entries()) {
    if (id === NOT_RESIDENT || to.deviceBlocks[layer] !== NOT_RESIDENT) continue;
    to.deviceBlocks[layer] = id;
    to.residentLayerCount += 1;
    from.deviceBlocks[layer] = NOT_RESIDENT;
    from.residentLayerCount -= 1;
  }
}
