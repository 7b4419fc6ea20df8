/**
 * The tier behind the device pool: blocks that left the device lie here as they were there (pool encoding, layer by layer, with their
 * summaries), in ordinary memory within a bound, until they are wanted again or give way, least recently used first. A copy stays while its
 * block is back on the device, so that leaving again costs nothing; it is the first to go when room is short.
 */
import { type KvPool, NOT_RESIDENT, type SummaryKind } from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import type { LogicalBlock } from "./logical-block.ts";

/** What of one logical block is in host memory. */
export class HostCopy {
  /** Bytes of each layer, or undefined: not here, or not yet. */
  readonly layers: (Uint8Array<ArrayBuffer> | undefined)[];
  readonly summaries = new Map<SummaryKind, Uint8Array<ArrayBuffer>>();
  /** Charged to the pool. */
  bytes = 0;
  /** Reads of the device that are under way. */
  pendingCount = 0;
  /** Of layers, those; each settles when its bytes are here, or the copy is gone. */
  readonly arriving = new Map<number, Promise<void>>();

  constructor(layerCount: number) {
    this.layers = new Array<undefined>(layerCount).fill(undefined);
  }

  /** All that was copied has arrived. */
  get isReady(): boolean {
    return this.pendingCount === 0;
  }

  /** The layer is here or on its way. */
  has(layer: number): boolean {
    return this.layers[layer] !== undefined || this.arriving.has(layer);
  }
}

/** What a host pool works with. */
export interface HostPoolOptions {
  pool: KvPool;
  /** Bytes of KV and summaries at most; 0: there is no host tier. */
  bytesMax: number;
}

/** What a host pool has done. */
export interface HostPoolCounts {
  /** Blocks that came back from it. */
  hits: number;
  /** Blocks that were copied into it. */
  copies: number;
  /** Copies that gave way. */
  evictions: number;
}

/** The tier behind the device. */
export interface HostTier {
  copies: HostPool;
  /** What is copied; its blocks are the device's. */
  pool: KvPool;
}

/** Copies of one engine's blocks. Only the block cache speaks to it. */
export class HostPool {
  readonly counts: HostPoolCounts = { hits: 0, copies: 0, evictions: 0 };
  readonly #options: HostPoolOptions;
  /** Blocks with a copy, least recently used first. */
  readonly #blocks = new Set<LogicalBlock>();
  #bytes = 0;
  #chargedBytes = 0;
  #reservedBytes = 0;

  constructor(options: HostPoolOptions) {
    this.#options = options;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get bytesMax(): number {
    return this.#options.bytesMax;
  }

  /** Every block with a copy, least recently used first. */
  blocks(): Iterable<LogicalBlock> {
    return this.#blocks;
  }

  /**
   * Copies what of a block is on the device; its memory there may be given away at once, because a read has the bytes of the moment of its
   * call. False when there is no room, or nothing to copy of a block that no suspended sequence holds (its bytes are in the store): nothing was copied then.
   * @param forget called with each block whose copy gave way
   */
  keep(block: LogicalBlock, forget: (block: LogicalBlock) => void): boolean {
    const layers = Array.from(block.deviceBlocks.keys()).filter(
      (layer) => block.deviceBlocks[layer] !== NOT_RESIDENT && block.host?.has(layer) !== true,
    );
    const kinds = [...block.summaries].filter((kind) => block.host?.summaries.has(kind) !== true);
    if (layers.length + kinds.length + (block.host?.bytes ?? 0) === 0 && block.parkCount === 0) return false;
    return this.#keep(block, { layers, kinds }, { forget, isForced: false });
  }

  /**
   * As {@link keep}, of one layer: its block stays where it is. It takes the room of what suspended sequences left here, if there is no other: those wait
   * for the device memory of the block's holders.
   */
  keepLayer(block: LogicalBlock, layer: number, forget: (block: LogicalBlock) => void): boolean {
    const layers = block.host?.has(layer) === true ? [] : [layer];
    return this.#keep(block, { layers, kinds: [] }, { forget, isForced: true });
  }

  #keep(
    block: LogicalBlock,
    { layers, kinds }: { layers: readonly number[]; kinds: readonly SummaryKind[] },
    { forget, isForced }: { forget: (block: LogicalBlock) => void; isForced: boolean },
  ): boolean {
    const { pool } = this.#options;
    const copy = block.host ?? new HostCopy(block.deviceBlocks.length);
    const bytes = layers.length * pool.blockBytes + kinds.length * pool.summaryBytes;
    this.#blocks.delete(block);
    const hasRoom = this.#makeRoom(bytes, forget, isForced);
    if (hasRoom || block.host) this.#blocks.add(block);
    if (!hasRoom) return false;
    this.#bytes += bytes;
    copy.bytes += bytes;
    if (bytes > 0) this.counts.copies += 1;
    block.host = copy;
    const arrival = { block, copy, gone: () => forget(block) };
    for (const layer of layers) {
      const read = this.#arrive(arrival, pool.readBlock(block.deviceBlocks[layer] as number), (into) => {
        copy.layers[layer] = into;
      });
      copy.arriving.set(layer, read);
      void read.then(() => copy.arriving.delete(layer));
    }
    for (const kind of kinds) {
      void this.#arrive(arrival, pool.readSummary(block.summarySlot, kind), (into) => {
        copy.summaries.set(kind, into);
      });
    }
    return true;
  }

  /** The copy is being used: it is the last to give way. */
  touch(block: LogicalBlock): void {
    if (this.#blocks.delete(block)) this.#blocks.add(block);
  }

  /** Gives a copy's memory back. */
  drop(block: LogicalBlock): void {
    if (!block.host) return;
    this.#blocks.delete(block);
    this.#bytes -= block.host.bytes;
    block.host = undefined;
  }

  /** Sets bytes aside for something else that left the device. False when there is no room. */
  charge(bytes: number, forget: (block: LogicalBlock) => void): boolean {
    if (this.#chargedBytes + this.#reservedBytes + bytes > this.bytesMax) return false;
    if (!this.#makeRoom(bytes, forget, false)) return false;
    this.#bytes += bytes;
    this.#chargedBytes += bytes;
    return true;
  }

  /** Whether so much could be promised: what is promised already, and what nothing can clear, is not there. */
  hasRoomFor(bytes: number): boolean {
    return this.#chargedBytes + this.#reservedBytes + bytes <= this.bytesMax;
  }

  /** Promises room for copies of loosely held blocks. */
  reserve(bytes: number): void {
    assert(this.hasRoomFor(bytes), "more host memory was set aside than there is");
    this.#reservedBytes += bytes;
  }

  unreserve(bytes: number): void {
    this.#reservedBytes -= bytes;
    assert(this.#reservedBytes >= 0, "more host memory was given back than was set aside");
  }

  uncharge(bytes: number): void {
    this.#bytes -= bytes;
    this.#chargedBytes -= bytes;
    assert(this.#bytes >= 0, "more host memory was given back than was taken");
  }

  #makeRoom(bytes: number, forget: (block: LogicalBlock) => void, isForced: boolean): boolean {
    const { bytesMax } = this.#options;
    if (bytes > bytesMax) return false;
    let passedCount = 0;
    while (this.#bytes + bytes > bytesMax) {
      const [oldest] = this.#blocks;
      if (oldest === undefined || passedCount > 2 * this.#blocks.size) return false;
      // Suspended sequences' only where nothing else gives way.
      const takesParked = isForced && passedCount >= this.#blocks.size;
      if (isNeeded(oldest, takesParked)) {
        this.touch(oldest);
        passedCount += 1;
        continue;
      }
      this.counts.evictions += 1;
      this.drop(oldest);
      forget(oldest);
    }
    return true;
  }

  #arrive(
    { block, copy, gone }: { block: LogicalBlock; copy: HostCopy; gone: () => void },
    read: Promise<Uint8Array<ArrayBuffer>>,
    take: (bytes: Uint8Array<ArrayBuffer>) => void,
  ): Promise<void> {
    copy.pendingCount += 1;
    return read.then(
      (bytes) => {
        take(bytes);
        copy.pendingCount -= 1;
      },
      () => {
        // A device that cannot be read has failed: what is not here is a gap for whoever wants the block.
        if (block.host !== copy) return;
        this.drop(block);
        gone();
      },
    );
  }
}

/** Whether a holder of the block relies on the copy: it has bytes that are nowhere else on this machine, or for those who hold it loosely, nowhere at all. */
function isNeeded(block: LogicalBlock, takesParked: boolean): boolean {
  if (block.parkCount > 0 && block.summarySlot === NOT_RESIDENT) return !takesParked;
  if (block.refCount === 0 || (block.isLoose && block.isStored)) return false;
  return block.host?.layers.some((bytes, layer) => bytes && block.deviceBlocks[layer] === NOT_RESIDENT) === true;
}
