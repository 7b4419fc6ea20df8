/**
 * Brings blocks to the device: from host memory at once, else from the store by verified range reads. Neighbouring blocks of one layer in one segment are one read; a block
 * that is on its way already is not asked for twice; every read has a deadline. What cannot be read or does not match its
 * checksum is marked lost, for its holders to compute again.
 */
import { BLOCK_TOKENS, type KvPool, NOT_RESIDENT } from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import { giveBack } from "../../storage/bytes.ts";
import { crc32 } from "../../storage/checksum.ts";
import type { PageStore } from "../../storage/contract.ts";
import { SharedDeadlines } from "../../storage/deadline.ts";
import type { KvGeometry } from "../../storage/geometry.ts";
import { checksumIndex, segmentRange } from "../../storage/segment.ts";
import type { Clock } from "../settings.ts";
import type { BlockCache } from "./block-cache.ts";
import { blockRuns } from "./block-runs.ts";
import type { Gate, GateClass } from "./gate.ts";
import type { LogicalBlock } from "./logical-block.ts";
import { type ReadAhead, rangeName } from "./read-ahead.ts";
import type { StoredSegment } from "./stored-segment.ts";

/** Copied from host memory between two turns of the event loop. */
const HOST_BYTES_MAX = 8 * 1024 * 1024;

/** One layer of one logical block. */
export interface BlockLayer {
  block: LogicalBlock;
  layer: number;
}

/** What one read brought from the store. */
export interface FetchTotals {
  bytes: number;
  /** Pages of one layer, all KV heads: 4 per block. */
  blocks: number;
}

interface RangeRead {
  segment: StoredSegment;
  layer: number;
  blocks: LogicalBlock[];
}

/** One that is on its way, or waits for its turn. */
interface ReadInFlight {
  read: RangeRead;
  done: Promise<void>;
  isDemanded: boolean;
}

/** What a fetcher works with. */
export interface BlockFetcherOptions {
  /** The store, or reads ahead of it, which have their places already. */
  store: Pick<PageStore, "get"> & Partial<Pick<ReadAhead, "isBegun">>;
  pool: KvPool;
  cache: BlockCache;
  geometry: KvGeometry;
  gate: Gate;
  clock: Clock;
  getMsMax: number;
  /** What {@link BlockFetcher.fill} may take of the store. */
  fillBytesPerS: number;
  /** Told why a read failed. */
  onFailure(segment: StoredSegment, cause: unknown): void;
}

/** Reads for all sequences of an engine. */
export class BlockFetcher {
  readonly #options: BlockFetcherOptions;
  readonly #deadlines: SharedDeadlines;
  readonly #inFlight = new Map<LogicalBlock, Map<number, ReadInFlight>>();
  #lossNoticed = false;
  /** When what was filled so far has used up its share of time. */
  #fillFreeMs = 0;

  constructor(options: BlockFetcherOptions) {
    this.#options = options;
    this.#deadlines = new SharedDeadlines(options.clock);
  }

  /** True once after blocks were marked lost. */
  takeLossNotice(): boolean {
    const noticed = this.#options.cache.takeLossNotice() || this.#lossNoticed;
    this.#lossNoticed = false;
    return noticed;
  }

  get inFlightCount(): number {
    return this.#inFlight.size;
  }

  /** Layers of blocks that somebody demands, and that are on their way or wait for their turn. */
  get demandedLayerCount(): number {
    let count = 0;
    for (const layers of this.#inFlight.values())
      for (const { isDemanded } of layers.values()) if (isDemanded) count += 1;
    return count;
  }

  /**
   * Resolves when every wanted layer is resident or its block is lost; never rejects. Callers hold references to the blocks; those that
   * are released meanwhile are read in vain. Reads begin layer by layer; one that waits as fill and is demanded now takes its layer's turn.
   * `told`: of each read of this call as it ends, whoever waits for which.
   */
  async fetch(wanted: readonly BlockLayer[], kind: GateClass, told?: (read: FetchTotals) => void): Promise<void> {
    const pending: Promise<void>[] = [];
    const leaving = () => wanted.flatMap(({ block, layer }) => block.host?.arriving.get(layer) ?? []);
    // While some are waited for, others of a context larger than the pool may leave.
    for (let reads = leaving(); reads.length > 0; reads = leaving()) await Promise.all(reads);
    const fresh: BlockLayer[] = [];
    const known = new Set<ReadInFlight>();
    const inHost = wanted.filter(isInHost);
    if (inHost.length > 0) pending.push(this.#fromHost(inHost));
    for (const item of wanted) {
      const { block, layer } = item;
      // Whoever held it may have let go while it was on its way to host memory.
      if (block.lost || block.refCount === 0 || block.deviceBlocks[layer] !== NOT_RESIDENT || isInHost(item)) continue;
      const inFlight = this.#inFlight.get(block)?.get(layer);
      if (inFlight) known.add(inFlight);
      else fresh.push(item);
    }
    if (kind === "demand") for (const inFlight of known) inFlight.isDemanded = true;
    const raised = kind === "demand" ? Array.from(known, ({ read }) => read) : [];
    const reads = new Set(readsOf(fresh, this.#options.geometry.blockBytes));
    for (const { done } of known) pending.push(done);
    // Sorting keeps equals in order: of a layer, what waits already comes first.
    for (const read of [...raised, ...reads].sort((a, b) => a.layer - b.layer))
      if (reads.has(read)) pending.push(this.#begin(read, kind, told));
      else this.#raise(read);
    await Promise.all(pending);
  }

  #begin(read: RangeRead, kind: GateClass, told?: (read: FetchTotals) => void): Promise<void> {
    const { gate } = this.#options;
    const run = () => this.#read(read, told);
    const isBegun = this.#isBegun(read);
    if (isBegun && kind === "demand") this.#raise(read);
    // One that holds a place while it waits for a read that has none yet would be a deadlock.
    const done = isBegun ? run() : gate.run(kind, run, this.#nameOf(read));
    const inFlight = { read, done, isDemanded: kind === "demand" };
    for (const block of read.blocks) this.#track(block, inFlight);
    return done;
  }

  #raise(read: RangeRead): void {
    this.#options.gate.raise(this.#nameOf(read));
  }

  /** What it is called at the gate, whoever began it. */
  #nameOf(read: RangeRead): string {
    return rangeName(read.segment.objectKey, this.#rangeOf(read));
  }

  /** Brings every layer of these blocks that is in host memory, and nothing else. Never rejects. */
  async promote(blocks: readonly LogicalBlock[]): Promise<void> {
    await this.#fromHost(allLayers(blocks));
  }

  async #fromHost(items: readonly BlockLayer[]): Promise<void> {
    const { cache, pool, clock, geometry } = this.#options;
    const countMax = Math.max(1, Math.floor(HOST_BYTES_MAX / geometry.blockBytes));
    for (let from = 0; from < items.length; from += countMax) {
      if (from > 0) await clock.breathe(0);
      for (const { block, layer } of items.slice(from, from + countMax)) {
        for (let room = cache.roomFor(1); room; room = cache.roomFor(1)) await room;
        // Whoever held it may have let go meanwhile, or another has brought it.
        const bytes = block.host?.layers[layer];
        if (!bytes || block.lost || block.refCount === 0 || block.deviceBlocks[layer] !== NOT_RESIDENT) continue;
        pool.writeBlock(cache.allocateLayer(block, layer), bytes);
      }
    }
  }

  /** Brings all layers of these blocks, behind everything that a query asks for and at a bounded pace. Never rejects. */
  async fill(blocks: readonly LogicalBlock[], told?: (read: FetchTotals) => void): Promise<void> {
    const { clock, geometry, fillBytesPerS } = this.#options;
    const absentCount = ({ deviceBlocks, residentLayerCount }: LogicalBlock) =>
      deviceBlocks.length - residentLayerCount;
    const layerCount = blocks.reduce((sum, block) => sum + absentCount(block), 0);
    const nowMs = clock.nowMs();
    const startMs = Math.max(nowMs, this.#fillFreeMs);
    this.#fillFreeMs = startMs + (1000 * layerCount * geometry.blockBytes) / fillBytesPerS;
    if (startMs > nowMs) await clock.sleep(startMs - nowMs);
    return await this.fetch(allLayers(blocks.filter(({ refCount }) => refCount > 0)), "fill", told);
  }

  #isBegun(read: RangeRead): boolean {
    const { store } = this.#options;
    return store.isBegun?.(read.segment.objectKey, this.#rangeOf(read)) === true;
  }

  /** Where it lies in its object. */
  #rangeOf({ segment, layer, blocks }: RangeRead): { offset: number; bytes: number } {
    const first = indexInSegment(blocks[0] as LogicalBlock, segment);
    const { offset, bytes } = segmentRange(this.#options.geometry, layer, first, blocks.length);
    return { offset: segment.objectOffset + offset, bytes };
  }

  async #read(read: RangeRead, told?: (read: FetchTotals) => void): Promise<void> {
    const { store, geometry, getMsMax, onFailure } = this.#options;
    const wanted = read.blocks.filter((block) => block.refCount > 0 && !block.lost);
    if (wanted.length === 0) return;
    const totals: FetchTotals = { bytes: 0, blocks: 0 };
    try {
      const object = await store.get(read.segment.objectKey, {
        range: this.#rangeOf(read),
        signal: this.#deadlines.after(getMsMax),
      });
      if (!object) throw new Error("segment is not in the store");
      totals.bytes += object.bytes.byteLength;
      for (const [offset, block] of read.blocks.entries()) {
        await this.#admit(
          block,
          read,
          object.bytes.subarray(offset * geometry.blockBytes, (offset + 1) * geometry.blockBytes),
          totals,
        );
      }
      giveBack(object.bytes);
    } catch (cause) {
      onFailure(read.segment, cause);
      for (const block of wanted) this.#lose(block);
    }
    told?.(totals);
  }

  async #admit(block: LogicalBlock, read: RangeRead, bytes: Uint8Array, totals: FetchTotals): Promise<void> {
    const { cache, pool, geometry, onFailure } = this.#options;
    for (let room = cache.roomFor(1); room; room = cache.roomFor(1)) await room;
    if (block.refCount === 0 || block.lost || block.deviceBlocks[read.layer] !== NOT_RESIDENT) return;
    const index = checksumIndex(geometry, read.layer, indexInSegment(block, read.segment));
    if (bytes.byteLength !== geometry.blockBytes || crc32(bytes) !== read.segment.checksums[index]) {
      onFailure(read.segment, new Error(`block ${block.index} of layer ${read.layer} does not match its checksum`));
      this.#lose(block);
      return;
    }
    pool.writeBlock(cache.allocateLayer(block, read.layer), bytes);
    totals.blocks += 1;
  }

  #lose(block: LogicalBlock): void {
    this.#lossNoticed = true;
    this.#options.cache.markLost(block);
  }

  #track(block: LogicalBlock, inFlight: ReadInFlight): void {
    const { layer } = inFlight.read;
    const { done } = inFlight;
    const layers = this.#inFlight.get(block) ?? new Map<number, ReadInFlight>();
    this.#inFlight.set(block, layers);
    layers.set(layer, inFlight);
    const over = () => {
      layers.delete(layer);
      if (layers.size === 0) this.#inFlight.delete(block);
    };
    done.then(over, over);
  }
}

function isInHost({ block, layer }: BlockLayer): boolean {
  return block.deviceBlocks[layer] === NOT_RESIDENT && block.host?.layers[layer] !== undefined;
}

/** Which block of its segment a block is. */
export function indexInSegment(block: LogicalBlock, segment: Pick<StoredSegment, "fromToken">): number {
  return block.index - segment.fromToken / BLOCK_TOKENS;
}

/** All layers of some blocks. */
export function allLayers(blocks: readonly LogicalBlock[]): BlockLayer[] {
  return blocks.flatMap((block) => Array.from(block.deviceBlocks, (_, layer) => ({ block, layer })));
}

/** One read for all blocks that follow each other. */
function readsOf(wanted: readonly BlockLayer[], blockBytes: number): RangeRead[] {
  const places = wanted.map(({ block, layer }) => {
    assert(block.stored, "a block that is not resident is stored");
    return { block, layer, index: block.index, segment: block.stored };
  });
  const isSame = (a: BlockLayer, b: BlockLayer) => a.block === b.block && a.layer === b.layer;
  return blockRuns(places, { blockBytes, isSame }).map((run) => {
    const { segment, layer } = run[0] as (typeof places)[number];
    return { segment, layer, blocks: run.map(({ block }) => block) };
  });
}
