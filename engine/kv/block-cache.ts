/**
 * Logical blocks (logical-block.ts) and who owns them: the one residency map. Sequences hold references (loosely, if their context is larger than
 * the pool: loose-layers.ts); a published block is found by its chain by any sequence of the same namespace; one without references stays until
 * its room is needed, and then goes to the host pool, where it is still found.
 */
import { NOT_RESIDENT } from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import { donateLayers, donateSummaries, moveSummaries } from "./block-gifts.ts";
import { disown } from "./block-owners.ts";
import type { FreeList } from "./free-list.ts";
import type { HostTier } from "./host-pool.ts";
import { IdleBlocks } from "./idle-blocks.ts";
import { LogicalBlock } from "./logical-block.ts";
import { LooseLayers } from "./loose-layers.ts";
import { type BlockMemory, Reservations } from "./reservations.ts";

/** Owner of all device blocks, summary slots and host copies. One release path: {@link BlockCache.release}. */
export class BlockCache {
  /** What sequences have set aside of its memory. */
  readonly reservations: Reservations;
  readonly #layerCount: number;
  readonly #deviceBlocks: FreeList;
  readonly #summarySlots: FreeList;
  readonly #host: HostTier | undefined;
  readonly #published = new Map<string, LogicalBlock>();
  readonly #idle = new IdleBlocks();
  readonly #loose = new LooseLayers();
  #lossNoticed = false;
  #leftLayerCount = 0;
  /** While a step runs: its tables name memory that must not leave. */
  #running: Promise<void> | undefined;

  constructor(options: BlockMemory) {
    this.#layerCount = options.layerCount;
    this.#deviceBlocks = options.deviceBlocks;
    this.#summarySlots = options.summarySlots;
    this.#host = options.host;
    this.reservations = new Reservations(options);
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
    return this.#idle.deviceBlockCount;
  }

  /** Device blocks that no logical block holds. */
  get freeDeviceBlockCount(): number {
    return this.#deviceBlocks.freeCount;
  }

  /** Layers of blocks that have left the device while sequences held them. */
  get leftLayerCount(): number {
    return this.#leftLayerCount;
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

  /** A session was deleted: what was its alone is not found any more, and frees its memory unless somebody holds it. */
  forgetOwner(sessionKey: string): void {
    for (const block of [...this.#published.values()])
      if (disown(block, sessionKey) && block.refCount + block.parkCount === 0) this.#unpublish(block);
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
    const chosen = this.#idle.leastWorth();
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
