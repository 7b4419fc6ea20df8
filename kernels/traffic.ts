/** Counts what a step read and missed, the same way on every device. */
import { type CoarsePass, scoredPageCount } from "./coarse.ts";
import {
  BLOCK_TOKENS,
  type KvPoolSpec,
  type Miss,
  PAGE_TOKENS,
  PAGES_PER_BLOCK,
  type SliceTraffic,
  type StepReadback,
  type StepSlice,
} from "./contract.ts";
import { blockCentreBytes } from "./layout.ts";
import type { PageRange, QueryGroup } from "./page-range.ts";

type KvShape = Pick<KvPoolSpec, "headDim" | "encoding">;

/** A slice's traffic before anything ran. */
export function emptyTraffic(): SliceTraffic {
  return { pagesSelected: 0, pagesInContext: 0, kvBytes: 0, metadataBytes: 0, pagesPassedOver: 0 };
}

/** What was read between two counts of the same slice. */
export function subtractTraffic(later: SliceTraffic, earlier: SliceTraffic): SliceTraffic {
  return {
    pagesSelected: later.pagesSelected - earlier.pagesSelected,
    pagesInContext: later.pagesInContext - earlier.pagesInContext,
    kvBytes: later.kvBytes - earlier.kvBytes,
    metadataBytes: later.metadataBytes - earlier.metadataBytes,
    pagesPassedOver: later.pagesPassedOver - earlier.pagesPassedOver,
  };
}

/** Bytes of the summaries (of one kind) of `pageCount` pages of one KV head: two vectors of codes, each with its scale. */
export function summaryReadBytes(headDim: number, pageCount: number): number {
  return pageCount * 2 * (headDim + 4);
}

/** Bytes that a choice reads to score its candidates in one KV head: their summaries, and centres of blocks where these are scored first. */
export function scoringBytes(headDim: number, range: PageRange, pass: CoarsePass | undefined): number {
  const blockCount = pass === undefined ? 0 : pass.blockEnd - pass.blockFirst;
  return summaryReadBytes(headDim, scoredPageCount(range, pass)) + blockCount * blockCentreBytes(headDim);
}

/** Bytes of the keys of some sealed pages of one KV head, read for token scoring: codes, and int8 scales once per block. */
export function keyReadBytes(shape: KvShape, pages: readonly number[]): number {
  const blocks = new Set(pages.map((page) => Math.floor(page / PAGES_PER_BLOCK)));
  return sealedKeyBytes(shape, blocks.size, pages.length * PAGE_TOKENS);
}

/** As {@link keyReadBytes}: `tokenCount` scored tokens of `blockCount` blocks. */
export function sealedKeyBytes(shape: KvShape, blockCount: number, tokenCount: number): number {
  const isFloat = shape.encoding === "f32";
  return tokenCount * shape.headDim * (isFloat ? 4 : 1) + (isFloat ? 0 : blockCount * shape.headDim * 4);
}

/** What one query group attends to in one KV head. */
export interface AttendedPages {
  /** Ascending; undefined: all up to the last query. */
  pages?: readonly number[];
  /** Bit t of entry i: token t of `pages[i]`; undefined: all. */
  tokenMasks?: readonly number[];
}

/** Bytes of K and V of sealed blocks in one KV head: `tokenCount` attended tokens of `blockCount` blocks, int8 key scales once per block. */
export function sealedKvBytes(shape: KvShape, blockCount: number, tokenCount: number): number {
  const isFloat = shape.encoding === "f32";
  const tokenBytes = isFloat ? shape.headDim * 8 : shape.headDim * 2 + 4;
  return tokenCount * tokenBytes + (isFloat ? 0 : blockCount * shape.headDim * 4);
}

/** Bytes of K and V that a group reads as open in one KV head: from the first row's block on, up to the last row. */
export function openKvBytes(
  { headDim }: Pick<KvShape, "headDim">,
  { positionFirst, positionLast }: Pick<QueryGroup, "positionFirst" | "positionLast">,
): number {
  const first = Math.floor(positionFirst / BLOCK_TOKENS) * BLOCK_TOKENS;
  return (positionLast + 1 - first) * headDim * 8;
}

/**
 * Bytes of K and V that a query group reads in one KV head. Every attended token counts once: as sealed (in the pool's encoding; int8 key
 * scales once per block) in blocks before the last row's, if resident; as open (f32) from the first row's block on, up to the last row.
 * A token of a block which the group itself crosses is read both ways and counts twice.
 */
export function groupKvBytes(
  shape: KvShape,
  group: Pick<QueryGroup, "positionFirst" | "positionLast">,
  attended: AttendedPages,
  isResident: (block: number) => boolean,
): number {
  const blockLast = Math.floor(group.positionLast / BLOCK_TOKENS);
  let tokens = 0;
  let blocks = 0;
  let blockCounted = -1;
  const count = attended.pages?.length ?? Math.floor(group.positionLast / PAGE_TOKENS) + 1;
  for (let index = 0; index < count; index++) {
    const page = attended.pages?.[index] ?? index;
    const block = Math.floor(page / PAGES_PER_BLOCK);
    if (block >= blockLast || !isResident(block)) continue;
    if (block !== blockCounted) blocks++;
    blockCounted = block;
    tokens += bitCount(attended.tokenMasks?.[index] ?? 0xffff);
  }
  return sealedKvBytes(shape, blocks, tokens) + openKvBytes(shape, group);
}

function bitCount(mask: number): number {
  let count = 0;
  for (let rest = mask; rest !== 0; rest &= rest - 1) count++;
  return count;
}

/** Bitmaps of the blocks that selection chose, for the slices that asked: see `StepReadback.chosenBlocks`. */
export class ChosenBlocks {
  readonly #slices: readonly StepSlice[];
  readonly #bitmaps: (Uint32Array | undefined)[];

  constructor(slices: readonly StepSlice[]) {
    this.#slices = slices;
    this.#bitmaps = slices.map((slice) => {
      const layerCount = slice.blockCapacity === 0 ? 0 : slice.blockIds.length / slice.blockCapacity;
      return slice.reportBlocks ? new Uint32Array(layerCount * wordsOf(slice)) : undefined;
    });
  }

  /** Whether `add` keeps anything for this slice. */
  wants(sliceIndex: number): boolean {
    return this.#bitmaps[sliceIndex] !== undefined;
  }

  /** Notes the block of a chosen candidate page. */
  add({ sliceIndex, layer, block }: Miss): void {
    const bitmap = this.#bitmaps[sliceIndex];
    if (bitmap === undefined) return;
    const word = layer * wordsOf(this.#slices[sliceIndex] as StepSlice) + (block >>> 5);
    bitmap[word] = ((bitmap[word] as number) | (1 << (block & 31))) >>> 0;
  }

  /** Adds a slice's bits, as the bitmap has them. */
  merge(sliceIndex: number, words: ArrayLike<number>): void {
    const bitmap = this.#bitmaps[sliceIndex];
    if (bitmap === undefined) return;
    for (let index = 0; index < bitmap.length; index++) {
      bitmap[index] = ((bitmap[index] as number) | (words[index] as number)) >>> 0;
    }
  }

  /** What a readback carries: nothing where no slice asked. */
  list(): Pick<StepReadback, "chosenBlocks"> {
    const copies = this.#bitmaps.map((bitmap) => bitmap?.slice());
    return copies.some((bitmap) => bitmap !== undefined) ? { chosenBlocks: copies } : {};
  }
}

/** Words of one layer in the bitmap. */
function wordsOf({ blockCapacity }: StepSlice): number {
  return Math.ceil(blockCapacity / 32);
}

/** Blocks that were wanted and not resident, each (slice, layer, block) once. */
export class MissSet {
  readonly #seen = new Map<string, Miss>();
  readonly #slices = new Set<number>();

  add(miss: Miss): void {
    const key = `${miss.sliceIndex}/${miss.layer}/${miss.block}`;
    if (this.#seen.has(key)) return;
    this.#seen.set(key, { ...miss });
    this.#slices.add(miss.sliceIndex);
  }

  /** Whether a slice has missed anything so far. */
  hasSlice(sliceIndex: number): boolean {
    return this.#slices.has(sliceIndex);
  }

  /** As if nothing had been noted of this layer. */
  forget(layer: number): void {
    for (const [key, miss] of this.#seen) if (miss.layer === layer) this.#seen.delete(key);
    this.#slices.clear();
    for (const { sliceIndex } of this.#seen.values()) this.#slices.add(sliceIndex);
  }

  /** Ascending by slice, layer, block. */
  list(): Miss[] {
    return [...this.#seen.values()].sort(
      (a, b) => a.sliceIndex - b.sliceIndex || a.layer - b.layer || a.block - b.block,
    );
  }
}
