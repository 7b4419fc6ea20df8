/** A block's bytes in plain TypeScript: sealing and decoding. The definition, not the fast path. Summaries are in summary-codec.ts. */
import { BLOCK_TOKENS } from "./contract.ts";
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

const STEPS = 15;

/** Rounds codes to 16 steps of their own range (`KvPool`, rounding int4), `count` of them from `at` in steps of `stride`, in place. */
function roundCodes(codes: Int8Array, at: number, stride: number, count: number): void {
  let least = 127;
  let largest = -127;
  for (let index = 0; index < count; index++) {
    const code = codes[at + index * stride] as number;
    least = Math.min(least, code);
    largest = Math.max(largest, code);
  }
  const step = Math.max(1, Math.ceil((largest - least) / STEPS));
  for (let index = 0; index < count; index++) {
    const place = at + index * stride;
    const steps = Math.floor((2 * ((codes[place] as number) - least) + step) / (2 * step));
    codes[place] = Math.min(127, least + step * steps);
  }
}

const HALF_MAX = 65_504;

/** The binary16 value that is nearest to an f32 value, halves to even; a finite one stays finite (`KvPool`, rounding f16). */
function roundToHalf(value: number): number {
  const magnitude = Math.abs(value);
  if (!(magnitude > 0 && magnitude < Number.POSITIVE_INFINITY)) return value;
  const step = 2 ** Math.max(-24, Math.floor(Math.log2(magnitude)) - 10);
  return Math.sign(value) * Math.min(HALF_MAX, roundHalfEven(magnitude / step) * step);
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
    const parts = [
      { at: layout.keysAt, from: keys },
      { at: layout.valuesAt, from: values },
    ];
    for (const { at, from } of parts) {
      const rows = from.subarray(0, elements);
      floats(block, at + kvHead * elements * 4, elements).set(shape.rounding ? rows.map(roundToHalf) : rows);
    }
    return;
  }
  const keyScales = floats(block, layout.keyScalesAt + kvHead * headDim * 4, headDim);
  const keyCodes = codes(block, layout.keysAt + kvHead * elements, elements);
  for (let channel = 0; channel < headDim; channel++) {
    keyScales[channel] = encodeStrided(keys, keyCodes, channel, headDim, BLOCK_TOKENS);
    if (shape.rounding) roundCodes(keyCodes, channel, headDim, BLOCK_TOKENS);
  }
  const valueScales = floats(block, layout.valueScalesAt + kvHead * BLOCK_TOKENS * 4, BLOCK_TOKENS);
  const valueCodes = codes(block, layout.valuesAt + kvHead * elements, elements);
  for (let token = 0; token < BLOCK_TOKENS; token++) {
    valueScales[token] = encodeStrided(values, valueCodes, token * headDim, 1, headDim);
    if (shape.rounding) roundCodes(valueCodes, token * headDim, 1, headDim);
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
  for (let first = 0; first < elements; first += headDim) {
    for (let channel = 0; channel < headDim; channel++) {
      keys[first + channel] = (from[first + channel] as number) * (scales[channel] as number);
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

function floats(bytes: Uint8Array, at: number, count: number): Float32Array {
  return new Float32Array(bytes.buffer, bytes.byteOffset + at, count);
}

function codes(bytes: Uint8Array, at: number, count: number): Int8Array {
  return new Int8Array(bytes.buffer, bytes.byteOffset + at, count);
}
