/**
 * Logical blocks, where they are and who owns them: the one residency map. A logical block is 64 sealed tokens of all layers: a device
 * block per layer (or none yet), a summary slot, a copy in host memory, and where its bytes are stored. Sequences hold references; a
 * published block is found by its chain by any sequence of the same namespace; one without references stays until its room is needed, and
 * then goes to the host pool, where it is still found.
 */
import { type KvPool, NOT_RESIDENT, type SummaryKind } from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import type { FreeList } from "./free-list.ts";
import type { HostCopy, HostPool } from "./host-pool.ts";
import type { LayeredSummaries } from "./layered-summaries.ts";
import type { StoredSegment } from "./stored-segment.ts";

/** Of so many blocks that were released longest ago, the one of least priority and heat leaves the device. */
const EVICTION_WINDOW = 8;

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
  /** What comes into its summary slot layer by layer: the first layer is there. */
  incoming: LayeredSummaries | undefined;
  residentLayerCount = 0;
  refCount = 1;
  /** References of sequences that are suspended: they need its bytes somewhere, not on the device. */
  parkCount = 0;
  published = false;
  host: HostCopy | undefined;
  /** Of the sequences that released it: the highest priority, and how often the last one's queries chose it of late. */
  priority = Number.NEGATIVE_INFINITY;
  heat = 0;
  /** Set once its segment is (being) stored. */
  stored: StoredSegment | undefined;
  /** Its stored bytes cannot be trusted or are gone: whoever holds it must compute it again, into a fresh block. */
  lost = false;

  constructor(index: number, layerCount: number) {
    this.index = index;
    this.deviceBlocks = new Int32Array(layerCount).fill(NOT_RESIDENT);
  }

  /** Every layer is on the device. */
  get resident(): boolean {
    return this.residentLayerCount === this.deviceBlocks.length;
  }

  /** Every layer is on the device or in host memory: nothing of it need be read from the store. */
  get isHere(): boolean {
    if (this.resident) return true;
    const { host } = this;
    if (!host?.isReady) return false;
    return this.deviceBlocks.every((id, layer) => id !== NOT_RESIDENT || host.layers[layer] !== undefined);
  }
}

/** The tier behind the device. */
export interface HostTier {
  copies: HostPool;
  pool: KvPool;
}

/** The free ids a cache hands out; nobody else takes from them. */
export interface BlockCacheOptions {
  layerCount: number;
  deviceBlocks: FreeList;
  summarySlots: FreeList;
  /** Where blocks go that leave the device; absent: they are gone. */
  host?: HostTier;
}

/** Owner of all device blocks, summary slots and host copies. One release path: {@link BlockCache.release}. */
export class BlockCache {
  readonly #layerCount: number;
  readonly #deviceBlocks: FreeList;
  readonly #summarySlots: FreeList;
  readonly #host: HostTier | undefined;
  readonly #published = new Map<string, LogicalBlock>();
  /** On the device, without references but those of suspended sequences, in order of release. */
  readonly #idle = new Set<LogicalBlock>();
  #reservedBlocks = 0;
  #reservedSlots = 0;

  constructor(options: BlockCacheOptions) {
    this.#layerCount = options.layerCount;
    this.#deviceBlocks = options.deviceBlocks;
    this.#summarySlots = options.summarySlots;
    this.#host = options.host;
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

  /** Whether {@link acquire} would find a block with all its layers on the device or in host memory; nothing is touched. */
  has(key: string): boolean {
    return this.#published.get(key)?.isHere === true;
  }

  /** The published block of a key, with a new reference and a summary slot, or undefined. */
  acquire(key: string): LogicalBlock | undefined {
    const block = this.#published.get(key);
    if (!block || (block.summarySlot === NOT_RESIDENT && !block.host?.isReady)) return undefined;
    this.retain(block);
    return block;
  }

  /** Those of a chain's blocks that {@link acquire} finds. Those on the device come first, so that none of them makes room for another. */
  acquireAll(keys: readonly string[]): LogicalBlock[] {
    const isOnDevice = (key: string) => (this.#published.get(key)?.summarySlot ?? NOT_RESIDENT) !== NOT_RESIDENT;
    const inOrder = [...keys.filter(isOnDevice), ...keys.filter((key) => !isOnDevice(key))];
    return inOrder.flatMap((key) => this.acquire(key) ?? []);
  }

  /** One more reference to a block that is alive. */
  retain(block: LogicalBlock): void {
    if (block.refCount === 0) this.#idle.delete(block);
    block.refCount += 1;
    if (block.summarySlot === NOT_RESIDENT) this.#revive(block);
    this.#host?.copies.touch(block);
  }

  /** Turns a reference into one of a suspended sequence: the block may leave the device, and is kept in host memory as long as there is room. */
  park(block: LogicalBlock): void {
    block.parkCount += 1;
    this.release(block);
  }

  /** Turns it back. False when the block was lost meanwhile; the reference is gone then. */
  unpark(block: LogicalBlock): boolean {
    if (!block.lost) this.retain(block);
    this.dropParked(block);
    return !block.lost;
  }

  /** Drops the reference of a suspended sequence. */
  dropParked(block: LogicalBlock): void {
    assert(block.parkCount > 0, "a parked reference is dropped once");
    block.parkCount -= 1;
    if (block.refCount + block.parkCount === 0 && !block.published) this.#free(block);
  }

  /** Sets host memory aside for what a suspended sequence holds beside its blocks. False when there is no room. */
  chargeHost(bytes: number): boolean {
    return this.#host?.copies.charge(bytes, (block) => this.#forget(block)) === true;
  }

  unchargeHost(bytes: number): void {
    this.#host?.copies.uncharge(bytes);
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
      // Its slot is given up with it: one that is in host memory only takes this one.
      if (known.summarySlot === NOT_RESIDENT) moveSummaries(block, known);
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

  /** Frees every block that nothing references, in host memory too; those of suspended sequences leave the device (tests; a session's end of life). */
  evictIdle(): void {
    for (const block of [...this.#idle]) {
      if (block.parkCount > 0) this.#leaveDevice(block);
      else this.#unpublish(block);
    }
    for (const block of [...(this.#host?.copies.blocks() ?? [])])
      if (block.refCount + block.parkCount === 0) this.#unpublish(block);
  }

  /** Everything that nothing references leaves the device for host memory, as it does when room is short. */
  demoteIdle(): void {
    for (const block of [...this.#idle]) this.#leaveDevice(block);
  }

  #evictOne(): void {
    let chosen: LogicalBlock | undefined;
    let seen = 0;
    for (const block of this.#idle) {
      if (chosen === undefined || block.priority < chosen.priority) chosen = block;
      else if (block.priority === chosen.priority && block.heat < chosen.heat) chosen = block;
      if (++seen === EVICTION_WINDOW) break;
    }
    assert(chosen !== undefined, "reservations cover every referenced block, so something is idle");
    this.#leaveDevice(chosen);
  }

  #leaveDevice(block: LogicalBlock): void {
    const isKept = this.#host?.copies.keep(block, (other) => this.#forget(other)) === true;
    if (!isKept) {
      this.#unpublish(block);
      return;
    }
    this.#idle.delete(block);
    this.#giveDeviceMemory(block);
  }

  /** Back from host memory: a summary slot with what it held; layers follow when they are asked for. */
  #revive(block: LogicalBlock): void {
    while (this.#summarySlots.freeCount === 0) this.#evictOne();
    block.summarySlot = this.#summarySlots.take();
    if (!this.#host || !block.host?.isReady) return;
    this.#host.copies.counts.hits += 1;
    for (const [kind, bytes] of block.host.summaries) {
      this.#host.pool.writeSummary(block.summarySlot, kind, bytes);
      block.summaries.add(kind);
    }
  }

  /** Its host copy is gone: a block that was nowhere else is not found any more. */
  #forget(block: LogicalBlock): void {
    if (block.summarySlot === NOT_RESIDENT) this.#unpublish(block);
  }

  #unpublish(block: LogicalBlock): void {
    block.published = false;
    if (block.key !== undefined) this.#published.delete(block.key);
    const wasIdle = this.#idle.delete(block);
    if (block.refCount > 0) return;
    if (block.parkCount > 0) block.lost = true;
    if (wasIdle || block.host) this.#free(block);
  }

  #free(block: LogicalBlock): void {
    this.#giveDeviceMemory(block);
    this.#host?.copies.drop(block);
  }

  #giveDeviceMemory(block: LogicalBlock): void {
    for (const [layer, id] of block.deviceBlocks.entries()) {
      if (id !== NOT_RESIDENT) this.#deviceBlocks.give(id);
      block.deviceBlocks[layer] = NOT_RESIDENT;
    }
    block.residentLayerCount = 0;
    if (block.summarySlot !== NOT_RESIDENT) this.#summarySlots.give(block.summarySlot);
    block.summarySlot = NOT_RESIDENT;
    block.summaries = new Set();
    block.incoming = undefined;
  }
}

/** A block's summary slot holds this kind, or the first layers of it, and the others are on their way. */
export function isScoredBy({ summaries, incoming }: LogicalBlock, kind: SummaryKind): boolean {
  return summaries.has(kind) || incoming?.kind === kind;
}

function moveSummaries(from: LogicalBlock, to: LogicalBlock): void {
  to.summarySlot = from.summarySlot;
  to.summaries = from.summaries;
  from.summarySlot = NOT_RESIDENT;
  from.summaries = new Set();
  from.incoming = undefined;
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
  from.incoming = undefined;
  to.incoming = undefined;
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
