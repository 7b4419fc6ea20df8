/**
 * Logical blocks, where they are and who owns them: the one residency map. A logical block is 64 sealed tokens of all layers: a device
 * block per layer (or none yet), a summary slot, a copy in host memory, and where its bytes are stored. Sequences hold references (loosely, if
 * their context is larger than the pool: loose-layers.ts); a published block is found by its chain by any sequence of the same namespace; one without references stays until its room is needed, and
 * then goes to the host pool, where it is still found.
 */
import { type KvPool, NOT_RESIDENT, type SummaryKind } from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import { donateLayers, donateSummaries, moveSummaries } from "./block-gifts.ts";
import type { FreeList } from "./free-list.ts";
import type { HostCopy, HostPool } from "./host-pool.ts";
import type { LayeredSummaries } from "./layered-summaries.ts";
import { LooseLayers, type Reservation } from "./loose-layers.ts";
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
  /** Of these, references of sequences whose context is larger than the pool: its layers may leave the device one by one. */
  looseCount = 0;
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

  /** All of its bytes can be had from the store. */
  get isStored(): boolean {
    return this.stored?.isWritten === true;
  }

  /** Only sequences hold it that ask for what they need of it whenever they need it. */
  get isLoose(): boolean {
    return this.looseCount > 0 && this.looseCount === this.refCount;
  }

  /** Every layer can be had from somewhere. */
  get isWhole(): boolean {
    if (this.resident || this.isStored) return true;
    return this.deviceBlocks.every((id, layer) => id !== NOT_RESIDENT || this.host?.has(layer) === true);
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
  readonly #loose = new LooseLayers();
  #reservedBlocks = 0;
  #reservedSlots = 0;
  #lossNoticed = false;
  #leftLayerCount = 0;
  /** While a step runs: its tables name memory that must not leave. */
  #running: Promise<void> | undefined;

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

  /** Layers of blocks that have left the device while sequences held them. */
  get leftLayerCount(): number {
    return this.#leftLayerCount;
  }

  /** Sets room for `count` logical blocks aside: references within it never fail to find memory. False when there is not enough. */
  reserve(count: number): boolean {
    return this.reserveParts({ deviceBlocks: count * this.#layerCount, summarySlots: count, hostBytes: 0 });
  }

  unreserve(count: number): void {
    this.unreserveParts({ deviceBlocks: count * this.#layerCount, summarySlots: count, hostBytes: 0 });
  }

  /** As {@link reserve}, in its parts; host memory too. False when there is not enough of one of them: nothing is set aside then. */
  reserveParts({ deviceBlocks, summarySlots, hostBytes }: Reservation): boolean {
    if (deviceBlocks > this.#deviceBlocks.count - this.#reservedBlocks) return false;
    if (summarySlots > this.#summarySlots.count - this.#reservedSlots) return false;
    if (hostBytes > 0 && this.#host?.copies.reserve(hostBytes) !== true) return false;
    this.#reservedBlocks += deviceBlocks;
    this.#reservedSlots += summarySlots;
    return true;
  }

  unreserveParts({ deviceBlocks, summarySlots, hostBytes }: Reservation): void {
    this.#reservedBlocks -= deviceBlocks;
    this.#reservedSlots -= summarySlots;
    assert(this.#reservedBlocks >= 0 && this.#reservedSlots >= 0, "unreserved more than was reserved");
    if (hostBytes > 0) this.#host?.copies.unreserve(hostBytes);
  }

  /** What {@link reserveParts} could set aside in an empty engine; and what a layer of a block takes in host memory. */
  get capacityParts(): Reservation & { hostBlockBytes: number } {
    const { copies, pool } = this.#host ?? {};
    return {
      ...{ deviceBlocks: this.#deviceBlocks.count, summarySlots: this.#summarySlots.count },
      ...{ hostBytes: copies?.bytesMax ?? 0, hostBlockBytes: pool?.blockBytes ?? 0 },
    };
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

  /**
   * Turns a reference into a loose one: while there are only such, layers of the block that are not pinned may leave the device, the one used longest
   * ago first, for host memory, or for nowhere if the store has them; where neither can be, the block is lost.
   */
  loosen(block: LogicalBlock): void {
    block.looseCount += 1;
    if (block.looseCount > 1) return;
    for (const [layer, id] of block.deviceBlocks.entries())
      if (id !== NOT_RESIDENT) this.#loose.add(id, { block, layer });
  }

  /** Turns it back, to be released. */
  tighten(block: LogicalBlock): void {
    assert(block.looseCount > 0, "a loose reference is dropped once");
    block.looseCount -= 1;
    if (block.looseCount > 0) return;
    for (const id of block.deviceBlocks) this.#loose.remove(id);
  }

  /** A query has chosen a layer of a block: of loosely held ones it is the last to leave. */
  use(block: LogicalBlock, layer: number): void {
    this.#loose.touch(block.deviceBlocks[layer] as number);
  }

  /** A layer of a loosely held block, on the device or to come, must not leave it before it is unpinned as often. */
  pin(block: LogicalBlock, layer: number): void {
    this.#loose.pin({ block, layer });
  }

  unpin(block: LogicalBlock, layer: number): void {
    this.#loose.unpin({ block, layer });
  }

  /** Runs a step: until it has ended, nothing leaves the device that a sequence holds. */
  async during<T>(step: () => Promise<T>): Promise<T> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#running = promise;
    try {
      return await step();
    } finally {
      this.#running = undefined;
      resolve();
    }
  }

  /** Undefined when {@link allocateLayer} can be called; else what to wait for, and then to ask again. */
  roomFor(layerCount: number): Promise<void> | undefined {
    const { freeCount } = this.#deviceBlocks;
    if (this.#running === undefined || freeCount >= layerCount) return undefined;
    return freeCount + this.idleDeviceBlockCount >= layerCount ? undefined : this.#running;
  }

  /** True once after blocks were lost because there was no memory for them anywhere. */
  takeLossNotice(): boolean {
    const noticed = this.#lossNoticed;
    this.#lossNoticed = false;
    return noticed;
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
    this.#makeSlot();
    block.summarySlot = this.#summarySlots.take();
    return block;
  }

  /** Gives a block a device block for a layer that has none; the caller writes its bytes. */
  allocateLayer(block: LogicalBlock, layer: number): number {
    assert(block.deviceBlocks[layer] === NOT_RESIDENT, "layer is resident already");
    assert(block.refCount > 0, "only a referenced block is given memory");
    while (this.#deviceBlocks.freeCount === 0) if (!this.#evictOne()) this.#evictLoose();
    const id = this.#deviceBlocks.take();
    block.deviceBlocks[layer] = id;
    block.residentLayerCount += 1;
    if (block.looseCount > 0) this.#loose.add(id, { block, layer });
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
      for (const [layer, id] of donateLayers(block, known))
        if (known.looseCount > 0) this.#loose.add(id, { block: known, layer });
      // A running step reads them where they are: then it goes on with the kinds that it has.
      if (this.#running === undefined) donateSummaries(block, known);
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

  #makeSlot(): void {
    while (this.#summarySlots.freeCount === 0)
      assert(this.#evictOne(), "reservations cover every referenced block, so something is idle");
  }

  /** Of what is idle. False where nothing is. */
  #evictOne(): boolean {
    let chosen: LogicalBlock | undefined;
    let seen = 0;
    for (const block of this.#idle) {
      if (chosen === undefined || block.priority < chosen.priority) chosen = block;
      else if (block.priority === chosen.priority && block.heat < chosen.heat) chosen = block;
      if (++seen === EVICTION_WINDOW) break;
    }
    if (chosen === undefined) return false;
    this.#leaveDevice(chosen);
    return true;
  }

  /** A layer of a loosely held block leaves: the oldest that is kept somewhere, else the oldest is given up, to be computed again. */
  #evictLoose(): void {
    assert(this.#running === undefined, "between two steps only");
    const forget = (other: LogicalBlock) => this.#forget(other);
    let oldest: { block: LogicalBlock; layer: number } | undefined;
    for (const { block, layer } of this.#loose.candidates()) {
      oldest ??= { block, layer };
      if (this.#host?.copies.keepLayer(block, layer, forget) !== true && !block.isStored) continue;
      this.#leaveLayer(block, layer);
      return;
    }
    assert(oldest !== undefined, "reservations cover every referenced and pinned block, so something may leave");
    this.#lose(oldest.block);
    this.#leaveLayer(oldest.block, oldest.layer);
  }

  #leaveLayer(block: LogicalBlock, layer: number): void {
    const id = block.deviceBlocks[layer] as number;
    this.#leftLayerCount += 1;
    this.#loose.remove(id);
    this.#deviceBlocks.give(id);
    block.deviceBlocks[layer] = NOT_RESIDENT;
    block.residentLayerCount -= 1;
  }

  #lose(block: LogicalBlock): void {
    this.#lossNoticed = true;
    this.markLost(block);
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
    this.#makeSlot();
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
    else if (!block.isWhole && block.refCount > 0) this.#lose(block);
    else if (!block.isWhole) this.#unpublish(block);
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
