/** A block's bytes in plain TypeScript: sealing, decoding, and the page summaries of decoded keys. The definition, not the fast path. */
import { BLOCK_TOKENS, PAGE_TOKENS, PAGES_PER_BLOCK, type SummaryKind } from "./contract.ts";
import { type BlockShape, blockLayout } from "./layout.ts";

/** Rounds to the nearest integer, halves to even, as IEEE 754 and SIMD hardware do. */
export function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const fraction = value - floor;
  if (fraction < 0.5) return floor;
  if (fraction > 0.5) return floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/** The f32 scale of values whose largest magnitude is `maxAbs`. */
export function int8Scale(maxAbs: number): number {
  return Math.fround(maxAbs / 127);
}

/** The code of one f32 value, -127..127; 0 where the scale is 0. */
export function int8Code(value: number, scale: number): number {
  if (scale === 0) return 0;
  return Math.max(-127, Math.min(127, roundHalfEven(Math.fround(value / scale))));
}

/**
 * Encodes one KV head of one block into `block` (the bytes of the whole block, 4-byte aligned).
 * `keys`, `values` f32 `[64][headDim]`, keys post-RoPE.
 */
export function encodeBlockHead(
  shape: BlockShape,
  block: Uint8Array,
  kvHead: number,
  keys: Float32Array,
  values: Float32Array,
): void {
  const layout = blockLayout(shape);
  const { headDim } = shape;
  const elements = BLOCK_TOKENS * headDim;
  if (shape.encoding === "f32") {
    floats(block, layout.keysAt + kvHead * elements * 4, elements).set(keys.subarray(0, elements));
    floats(block, layout.valuesAt + kvHead * elements * 4, elements).set(values.subarray(0, elements));
    return;
  }
  const keyScales = floats(block, layout.keyScalesAt + kvHead * headDim * 4, headDim);
  const keyCodes = codes(block, layout.keysAt + kvHead * elements, elements);
  for (let channel = 0; channel < headDim; channel++) {
    keyScales[channel] = encodeStrided(keys, keyCodes, channel, headDim, BLOCK_TOKENS);
  }
  const valueScales = floats(block, layout.valueScalesAt + kvHead * BLOCK_TOKENS * 4, BLOCK_TOKENS);
  const valueCodes = codes(block, layout.valuesAt + kvHead * elements, elements);
  for (let token = 0; token < BLOCK_TOKENS; token++) {
    valueScales[token] = encodeStrided(values, valueCodes, token * headDim, 1, headDim);
  }
}

/** Quantizes `count` elements from `at` in steps of `stride` under one scale, and returns the scale. */
function encodeStrided(from: Float32Array, to: Int8Array, at: number, stride: number, count: number): number {
  let maxAbs = 0;
  for (let index = 0; index < count; index++) maxAbs = Math.max(maxAbs, Math.abs(from[at + index * stride] as number));
  const scale = int8Scale(maxAbs);
  for (let index = 0; index < count; index++) {
    to[at + index * stride] = int8Code(from[at + index * stride] as number, scale);
  }
  return scale;
}

/** Keys of one KV head of a sealed block as f32 `[64][headDim]` (a copy): `f32(code * scale)` for int8. */
export function decodeKeys(shape: BlockShape, block: Uint8Array, kvHead: number): Float32Array<ArrayBuffer> {
  const layout = blockLayout(shape);
  const { headDim } = shape;
  const elements = BLOCK_TOKENS * headDim;
  if (shape.encoding === "f32") return floats(block, layout.keysAt + kvHead * elements * 4, elements).slice();
  const scales = floats(block, layout.keyScalesAt + kvHead * headDim * 4, headDim);
  const from = codes(block, layout.keysAt + kvHead * elements, elements);
  const keys = new Float32Array(elements);
  for (let token = 0; token < BLOCK_TOKENS; token++) {
    for (let channel = 0; channel < headDim; channel++) {
      const at = token * headDim + channel;
      keys[at] = (from[at] as number) * (scales[channel] as number);
    }
  }
  return keys;
}

/** Values of one KV head of a sealed block as f32 `[64][headDim]` (a copy). */
export function decodeValues(shape: BlockShape, block: Uint8Array, kvHead: number): Float32Array<ArrayBuffer> {
  const layout = blockLayout(shape);
  const { headDim } = shape;
  const elements = BLOCK_TOKENS * headDim;
  if (shape.encoding === "f32") return floats(block, layout.valuesAt + kvHead * elements * 4, elements).slice();
  const scales = floats(block, layout.valueScalesAt + kvHead * BLOCK_TOKENS * 4, BLOCK_TOKENS);
  const from = codes(block, layout.valuesAt + kvHead * elements, elements);
  const values = new Float32Array(elements);
  for (let token = 0; token < BLOCK_TOKENS; token++) {
    const scale = scales[token] as number;
    for (let at = token * headDim; at < (token + 1) * headDim; at++) values[at] = (from[at] as number) * scale;
  }
  return values;
}

/**
 * Summaries of a block's four pages from its decoded keys `[64][headDim]`: f32 `[4][2][headDim]`, centre then radius.
 * Every operation is rounded to f32, tokens ascending, so that a summary rebuilt from a stored block has the same bytes.
 */
export function summarizeKeys(kind: SummaryKind, keys: Float32Array, headDim: number): Float32Array<ArrayBuffer> {
  const summary = new Float32Array(PAGES_PER_BLOCK * 2 * headDim);
  for (let page = 0; page < PAGES_PER_BLOCK; page++) {
    for (let channel = 0; channel < headDim; channel++) {
      const column = (token: number): number => keys[(page * PAGE_TOKENS + token) * headDim + channel] as number;
      const [centre, radius] = kind === "min-max" ? minMax(column) : meanDeviation(column);
      summary[page * 2 * headDim + channel] = centre;
      summary[page * 2 * headDim + headDim + channel] = radius;
    }
  }
  return summary;
}

function minMax(column: (token: number) => number): [centre: number, radius: number] {
  let min = column(0);
  let max = min;
  for (let token = 1; token < PAGE_TOKENS; token++) {
    min = Math.min(min, column(token));
    max = Math.max(max, column(token));
  }
  return [Math.fround(Math.fround(max + min) / 2), Math.fround(Math.fround(max - min) / 2)];
}

function meanDeviation(column: (token: number) => number): [centre: number, radius: number] {
  let sum = 0;
  for (let token = 0; token < PAGE_TOKENS; token++) sum = Math.fround(sum + column(token));
  const mean = Math.fround(sum / PAGE_TOKENS);
  let squares = 0;
  for (let token = 0; token < PAGE_TOKENS; token++) {
    const difference = Math.fround(column(token) - mean);
    squares = Math.fround(squares + Math.fround(difference * difference));
  }
  return [mean, Math.fround(Math.sqrt(Math.fround(squares / PAGE_TOKENS)))];
}

function floats(bytes: Uint8Array, at: number, count: number): Float32Array {
  return new Float32Array(bytes.buffer, bytes.byteOffset + at, count);
}

function codes(bytes: Uint8Array, at: number, count: number): Int8Array {
  return new Int8Array(bytes.buffer, bytes.byteOffset + at, count);
}
