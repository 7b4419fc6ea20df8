/** Sizes and offsets of everything a KV pool holds (see `KvPool` in contract.ts); every device and the tests use these. */
import { assert } from "../protocol/assert.ts";
import { BLOCK_TOKENS, type KvPoolSpec, PAGES_PER_BLOCK, SUMMARY_KINDS, type SummaryKind } from "./contract.ts";

/** What fixes the bytes of one block of one layer. */
export type BlockShape = Pick<KvPoolSpec, "kvHeadCount" | "headDim" | "encoding" | "rounding">;

/** Byte offsets of the four parts of a block, each an array over KV heads. The scale parts are -1 for f32. */
export interface BlockLayout {
  /** K `[kvHead][64][headDim]`, 4 bytes or 1 byte an element. */
  keysAt: number;
  /** f32 `[kvHead][headDim]`. */
  keyScalesAt: number;
  /** V `[kvHead][64][headDim]`, 4 bytes or 1 byte an element. */
  valuesAt: number;
  /** f32 `[kvHead][64]`. */
  valueScalesAt: number;
  /** Bytes of one block of one layer. */
  bytes: number;
}

/** Where the parts of a block lie. */
export function blockLayout({ kvHeadCount, headDim, encoding }: BlockShape): BlockLayout {
  const elements = kvHeadCount * BLOCK_TOKENS * headDim;
  if (encoding === "f32") {
    return { keysAt: 0, keyScalesAt: -1, valuesAt: elements * 4, valueScalesAt: -1, bytes: elements * 8 };
  }
  const keyScalesAt = elements;
  const valuesAt = keyScalesAt + kvHeadCount * headDim * 4;
  const valueScalesAt = valuesAt + elements;
  return { keysAt: 0, keyScalesAt, valuesAt, valueScalesAt, bytes: valueScalesAt + kvHeadCount * BLOCK_TOKENS * 4 };
}

/** Bytes of one open slot: K and V in f32, all layers. */
export function openSlotBytes(spec: Pick<KvPoolSpec, "layerCount" | "kvHeadCount" | "headDim">): number {
  return openSlotValuesAt(spec) * 2 * 4;
}

/** Element (f32) at which an open slot's values start; the keys start at 0. */
export function openSlotValuesAt(spec: Pick<KvPoolSpec, "layerCount" | "kvHeadCount" | "headDim">): number {
  return spec.layerCount * spec.kvHeadCount * BLOCK_TOKENS * spec.headDim;
}

/** Element (f32) of `[layer][kvHead][token 0][channel 0]` within the keys, or the values, of an open slot. */
export function openHeadAt(spec: Pick<KvPoolSpec, "kvHeadCount" | "headDim">, layer: number, kvHead: number): number {
  return (layer * spec.kvHeadCount + kvHead) * BLOCK_TOKENS * spec.headDim;
}

type SummaryShape = Pick<KvPoolSpec, "layerCount" | "kvHeadCount" | "headDim">;

/** Bytes of one kind of one summary slot: all layers. */
export function summaryBytes(spec: SummaryShape): number {
  return summaryHeadAt(spec, spec.layerCount, 0);
}

/** Bytes of the summaries of one KV head of one block: i8 codes `[4 pages][2][headDim]`, then f32 scales `[4 pages][2]`. */
export function summaryHeadBytes(headDim: number): number {
  return summaryScalesAt(headDim) + PAGES_PER_BLOCK * 2 * 4;
}

/** Bytes of a block's own centre in one KV head: i8 codes `[headDim]`, then its f32 scale. Made by a device, stored nowhere. */
export function blockCentreBytes(headDim: number): number {
  return headDim + 4;
}

/** Byte at which the scales begin within a KV head's summaries. */
export function summaryScalesAt(headDim: number): number {
  return PAGES_PER_BLOCK * 2 * headDim;
}

/** Byte at which a layer's KV head begins within one kind of a summary slot. */
export function summaryHeadAt(spec: Omit<SummaryShape, "layerCount">, layer: number, kvHead: number): number {
  return (layer * spec.kvHeadCount + kvHead) * summaryHeadBytes(spec.headDim);
}

/**
 * The layers that `bytes` are the summaries of: one, or all where none is named.
 * @throws {AssertionError} for a length that is not theirs, and a layer that is none.
 */
export function summaryLayers(spec: SummaryShape, bytes: Uint8Array, layer?: number): { from: number; to: number } {
  const { layerCount } = spec;
  const isLayer = layer === undefined || (Number.isInteger(layer) && layer >= 0 && layer < layerCount);
  assert(isLayer, `there is no layer ${layer}`);
  const [from, to] = layer === undefined ? [0, layerCount] : [layer, layer + 1];
  const expected = summaryHeadAt(spec, to - from, 0);
  assert(bytes.length === expected, `a summary has ${expected} bytes, not ${bytes.length}`);
  return { from, to };
}

/** The index of a kind in `summaryKinds`. @throws {AssertionError} when the pool keeps no summaries of that kind. */
export function summaryKindIndex(spec: Pick<KvPoolSpec, "summaryKinds">, kind: SummaryKind): number {
  const index = spec.summaryKinds.indexOf(kind);
  assert(index >= 0, `the pool keeps no ${kind} summaries`);
  return index;
}

/** What a head's width must be a multiple of, so that a pool can keep summaries of a kind. */
export function headDimMultiple(kind: SummaryKind): number {
  if (kind === "residual-signs") return 16;
  return kind === "sign-bits" ? 8 : 4;
}

/** The largest head: a sum of this many products of 16 and 8 bits fits 32, in page scores and in attention over int8 blocks. */
const HEAD_DIM_MAX = 512;

/** @throws {AssertionError} for a spec that no device can serve. */
export function assertPoolSpec(spec: KvPoolSpec): void {
  for (const name of ["layerCount", "kvHeadCount", "headDim"] as const) {
    assert(Number.isInteger(spec[name]) && spec[name] > 0, `${name} must be a positive integer`);
  }
  for (const name of ["blockCount", "openSlotCount", "summarySlotCount"] as const) {
    assert(Number.isInteger(spec[name]) && spec[name] >= 0, `${name} must be an integer >= 0`);
  }
  assert(spec.headDim % 4 === 0, `headDim ${spec.headDim} is not a multiple of 4`);
  assert(spec.headDim <= HEAD_DIM_MAX, `headDim ${spec.headDim} is more than ${HEAD_DIM_MAX}`);
  assert(spec.encoding === "f32" || spec.encoding === "int8", `unknown KV encoding ${String(spec.encoding)}`);
  const { rounding } = spec;
  assert(
    rounding === undefined || rounding === (spec.encoding === "f32" ? "f16" : "int4"),
    `KV of ${spec.encoding} is not rounded to ${String(rounding)}`,
  );
  assert(new Set(spec.summaryKinds).size === spec.summaryKinds.length, "summaryKinds holds a kind twice");
  for (const kind of spec.summaryKinds) {
    assert(SUMMARY_KINDS.includes(kind), `unknown summary kind ${String(kind)}`);
    const multiple = headDimMultiple(kind);
    assert(spec.headDim % multiple === 0, `${kind}: headDim ${spec.headDim} is no multiple of ${multiple}`);
  }
}
