/** Codes times a power of two as bf16 and as q8_0, both exact. */
import { assert } from "../../protocol/assert.ts";
import { CODES_PER_BLOCK } from "./seeded-weights.ts";

/** Bytes of one q8_0 block: f16 scale, 32 codes. */
export const Q8_BLOCK_BYTES = 34;

/** Each code's value in bf16, little-endian: the upper half of its f32, whose lower half is zero. */
export function encodeBf16(codes: Int8Array, scaleExponent: number): Uint8Array {
  const table = new Uint16Array(256);
  const word = new DataView(new ArrayBuffer(4));
  for (let code = -127; code <= 127; code++) {
    word.setFloat32(0, code * 2 ** scaleExponent);
    assert(word.getUint16(2) === 0, "a value is not exact in bf16");
    table[code & 255] = word.getUint16(0);
  }
  const out = new Uint8Array(codes.length * 2);
  for (let i = 0; i < codes.length; i++) {
    const half = table[codes[i]! & 255]!;
    out[2 * i] = half & 255;
    out[2 * i + 1] = half >> 8;
  }
  return out;
}

/** q8_0 blocks: every one has the scale `2 ** scaleExponent`, which must be a normal f16. */
export function encodeQ8(codes: Int8Array, scaleExponent: number): Uint8Array {
  assert(scaleExponent >= -14 && scaleExponent <= 15, "the scale is no normal f16");
  const half = (scaleExponent + 15) << 10;
  const blockCount = codes.length / CODES_PER_BLOCK;
  const bytes = new Uint8Array(codes.buffer, codes.byteOffset, codes.length);
  const out = new Uint8Array(blockCount * Q8_BLOCK_BYTES);
  for (let block = 0; block < blockCount; block++) {
    const at = block * Q8_BLOCK_BYTES;
    out[at] = half & 255;
    out[at + 1] = half >> 8;
    out.set(bytes.subarray(block * CODES_PER_BLOCK, (block + 1) * CODES_PER_BLOCK), at + 2);
  }
  return out;
}

/**
 * Rows of whole heads in llama.cpp's order: row i + h * headDim/2 of a head (h 0 or 1) becomes its row 2i + h.
 */
export function pairRows(codes: Int8Array, { headDim, rowValues }: { headDim: number; rowValues: number }): Int8Array {
  const out = new Int8Array(codes.length);
  const rowCount = codes.length / rowValues;
  assert(rowCount % headDim === 0, "rows are paired within whole heads");
  for (let row = 0; row < rowCount; row++) {
    const channel = row % headDim;
    const paired = row - channel + ((2 * channel) % headDim) + Math.floor((2 * channel) / headDim);
    out.set(codes.subarray(row * rowValues, (row + 1) * rowValues), paired * rowValues);
  }
  return out;
}
