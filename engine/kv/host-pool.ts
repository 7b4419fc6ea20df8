/**
 * The tier behind the device pool: blocks that left the device lie here as they were there (pool encoding, layer by layer, with their
 * summaries), in ordinary memory within a bound, until they are wanted again or give way, least recently used first. A copy stays while its
 * block is back on the device, so that leaving again costs nothing; it is the first to go when room is short.
 */
import { type KvPool, NOT_RESIDENT, type SummaryKind } from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import type { LogicalBlock } from "./block-cache.ts";

/** What of one logical block is in host memory. */
export class HostCopy {
  /** Bytes of each layer, or undefined: not here, or not yet. */
  readonly layers: (Uint8Array<ArrayBuffer> | undefined)[];
  readonly summaries = new Map<SummaryKind, Uint8Array<ArrayBuffer>>();
  /** Charged to the pool. */
  bytes = 0;
  /** Reads of the device that are under way. */
  pendingCount = 0;

  constructor(layerCount: number) {
    this.layers = new Array<undefined>(layerCount).fill(undefined);
  }

  /** All that was copied has arrived. */
  get isReady(): boolean {
    return this.pendingCount === 0;
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

/** Copies of one engine's blocks. Only the block cache speaks to it. */
export class HostPool {
  readonly counts: HostPoolCounts = { hits: 0, copies: 0, evictions: 0 };
  readonly #options: HostPoolOptions;
  /** Blocks with a copy, least recently used first. */
  readonly #blocks = new Set<LogicalBlock>();
  #bytes = 0;

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
   * call. False when there is no room: nothing was copied then.
   * @param forget called with each block whose copy gave way
   */
  keep(block: LogicalBlock, forget: (block: LogicalBlock) => void): boolean {
    const { pool } = this.#options;
    const copy = block.host ?? new HostCopy(block.deviceBlocks.length);
    const layers = Array.from(block.deviceBlocks.keys()).filter(
      (layer) => block.deviceBlocks[layer] !== NOT_RESIDENT && copy.layers[layer] === undefined,
    );
    const kinds = [...block.summaries].filter((kind) => !copy.summaries.has(kind));
    const bytes = layers.length * pool.blockBytes + kinds.length * pool.summaryBytes;
    this.#blocks.delete(block);
    const hasRoom = this.#makeRoom(bytes, forget);
    if (hasRoom || block.host) this.#blocks.add(block);
    if (!hasRoom) return false;
    this.#bytes += bytes;
    copy.bytes += bytes;
    if (bytes > 0) this.counts.copies += 1;
    block.host = copy;
    const arrival = { block, copy, gone: () => forget(block) };
    for (const layer of layers) {
      this.#arrive(arrival, pool.readBlock(block.deviceBlocks[layer] as number), (into) => {
        copy.layers[layer] = into;
      });
    }
    for (const kind of kinds) {
      this.#arrive(arrival, pool.readSummary(block.summarySlot, kind), (into) => {
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
    if (!this.#makeRoom(bytes, forget)) return false;
    this.#bytes += bytes;
    return true;
  }

  uncharge(bytes: number): void {
    this.#bytes -= bytes;
    assert(this.#bytes >= 0, "more host memory was given back than was taken");
  }

  #makeRoom(bytes: number, forget: (block: LogicalBlock) => void): boolean {
    const { bytesMax } = this.#options;
    if (bytes > bytesMax) return false;
    let passedCount = 0;
    while (this.#bytes + bytes > bytesMax) {
      const [oldest] = this.#blocks;
      if (oldest === undefined || passedCount > this.#blocks.size) return false;
      if (isNeeded(oldest)) {
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
  ): void {
    copy.pendingCount += 1;
    void read.then(
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

/** Whether a holder of the block relies on the copy: it has bytes that are nowhere else on this machine. */
function isNeeded(block: LogicalBlock): boolean {
  if (block.parkCount > 0 && block.summarySlot === NOT_RESIDENT) return true;
  if (block.refCount === 0) return false;
  return block.host?.layers.some((bytes, layer) => bytes && block.deviceBlocks[layer] === NOT_RESIDENT) === true;
}
