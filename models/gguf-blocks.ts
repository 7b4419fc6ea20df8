/**
 * GGML's tensor encodings: values in blocks along the innermost dimension, each block decoded on its own, arithmetic in f32 as GGML does it.
 * Q8_0: f16 d, 32 i8. Q4_0: f16 d, 16 bytes (low nibbles first half), value = (q - 8) d. Q5_0: behind d the fifth bits as u32, value =
 * (q - 16) d. Q4_1, Q5_1: behind d an f16 m, value = q d + m. Q4_K: f16 d, f16 dmin, 12 bytes of 6-bit scales and minima for 8 groups of
 * 32, 128 bytes of nibbles; Q5_K: before the nibbles 32 bytes of fifth bits, a bit per group. Q6_K: 128 bytes of low nibbles, 64 of high
 * pairs, 16 i8 scales, f16 d.
 */
import { convertBf16, convertF16, convertF32, halfToNumber } from "./weights-file.ts";

const { fround } = Math;

/** One encoding. */
export interface GgufEncoding {
  name: string;
  blockValues: number;
  blockBytes: number;
  /** Decodes whole blocks; `bytes` begins at an even offset of its buffer. */
  decode(bytes: Uint8Array, out: Float32Array): void;
}

/** Supported encodings by GGML type number. */
export const GGUF_ENCODINGS: Readonly<Record<number, GgufEncoding>> = {
  0: { name: "F32", blockValues: 1, blockBytes: 4, decode: convertF32 },
  1: { name: "F16", blockValues: 1, blockBytes: 2, decode: convertF16 },
  2: blocks("Q4_0", 32, 18, decodeQ4),
  3: blocks("Q4_1", 32, 20, decodeQ4WithMinimum),
  6: blocks("Q5_0", 32, 22, decodeQ5),
  7: blocks("Q5_1", 32, 24, decodeQ5WithMinimum),
  8: blocks("Q8_0", 32, 34, decodeQ8),
  12: blocks("Q4_K", 256, 144, decodeQ4K),
  13: blocks("Q5_K", 256, 176, decodeQ5K),
  14: blocks("Q6_K", 256, 210, decodeQ6K),
  30: { name: "BF16", blockValues: 1, blockBytes: 2, decode: convertBf16 },
};

/** Names of encodings that are not decoded here, so that an error can say what a file holds. */
const OTHER_NAMES: Readonly<Record<number, string>> = {
  10: "Q2_K",
  11: "Q3_K",
  15: "Q8_K",
  28: "F64",
};

/** The name of a GGML type, for messages. */
export function ggufTypeName(type: number): string {
  return GGUF_ENCODINGS[type]?.name ?? OTHER_NAMES[type] ?? `type ${type}`;
}

/** Reads one block at `at` into 32 or 256 values at `to`. */
type DecodeBlock = (bytes: Uint8Array, at: number, out: Float32Array, to: number) => void;

function blocks(name: string, blockValues: number, blockBytes: number, decodeBlock: DecodeBlock): GgufEncoding {
  const decode = (bytes: Uint8Array, out: Float32Array): void => {
    for (let at = 0, to = 0; at < bytes.length; at += blockBytes, to += blockValues) decodeBlock(bytes, at, out, to);
  };
  return { name, blockValues, blockBytes, decode };
}

function half(bytes: Uint8Array, at: number): number {
  return halfToNumber(bytes[at]! | (bytes[at + 1]! << 8));
}

function signed(byte: number): number {
  return (byte << 24) >> 24;
}

function decodeQ8(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at);
  for (let i = 0; i < 32; i++) out[to + i] = signed(bytes[at + 2 + i]!) * d;
}

function decodeQ4(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at);
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + 2 + i]!;
    out[to + i] = ((pair & 15) - 8) * d;
    out[to + 16 + i] = ((pair >> 4) - 8) * d;
  }
}

function decodeQ4WithMinimum(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at);
  const minimum = half(bytes, at + 2);
  for (let i = 0; i < 16; i++) {
    const pair = bytes[at + 4 + i]!;
    out[to + i] = (pair & 15) * d + minimum;
    out[to + 16 + i] = (pair >> 4) * d + minimum;
  }
}

function decodeQ5(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at);
  for (let i = 0; i < 32; i++) out[to + i] = (fiveBits(bytes, at + 2, i) - 16) * d;
}

function decodeQ5WithMinimum(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at);
  const minimum = half(bytes, at + 2);
  for (let i = 0; i < 32; i++) out[to + i] = fiveBits(bytes, at + 4, i) * d + minimum;
}

/** Code `i` of 32: its fifth bit in the four bytes at `high`, its nibble behind them. */
function fiveBits(bytes: Uint8Array, high: number, i: number): number {
  const pair = bytes[high + 4 + (i & 15)]!;
  return (i < 16 ? pair & 15 : pair >> 4) | (((bytes[high + (i >> 3)]! >> (i & 7)) & 1) << 4);
}

function decodeQ4K(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  for (let group = 0; group < 8; group++) {
    const { step, floor } = groupScale(bytes, at, group);
    const codes = at + 16 + (group >> 1) * 32;
    const shift = (group & 1) * 4;
    for (let i = 0; i < 32; i++) {
      out[to + group * 32 + i] = fround(((bytes[codes + i]! >> shift) & 15) * step) - floor;
    }
  }
}

function decodeQ5K(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const high = at + 16;
  for (let group = 0; group < 8; group++) {
    const { step, floor } = groupScale(bytes, at, group);
    const codes = high + 32 + (group >> 1) * 32;
    const shift = (group & 1) * 4;
    for (let i = 0; i < 32; i++) {
      const code = ((bytes[codes + i]! >> shift) & 15) | (((bytes[high + i]! >> group) & 1) << 4);
      out[to + group * 32 + i] = fround(code * step) - floor;
    }
  }
}

/** Of one of the 8 groups of Q4_K and Q5_K, whose scales and minima of six bits are behind d and dmin: value = code * step - floor. */
function groupScale(bytes: Uint8Array, at: number, group: number): { step: number; floor: number } {
  const scales = at + 4;
  let scale: number;
  let minimum: number;
  if (group < 4) {
    scale = bytes[scales + group]! & 63;
    minimum = bytes[scales + group + 4]! & 63;
  } else {
    const low = bytes[scales + group + 4]!;
    scale = (low & 15) | ((bytes[scales + group - 4]! >> 6) << 4);
    minimum = (low >> 4) | ((bytes[scales + group]! >> 6) << 4);
  }
  return { step: fround(half(bytes, at) * scale), floor: fround(half(bytes, at + 2) * minimum) };
}

/** Two halves of 128 values; in each, value 32 k + i has nibble (k & 1) * 32 + i of the low bits and bit pair k of high byte i. */
function decodeQ6K(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = half(bytes, at + 208);
  for (let i = 0; i < 256; i++) {
    const part = i >> 7;
    const inPart = i & 127;
    const row = inPart >> 5;
    const low = bytes[at + part * 64 + (inPart & 63)]! >> (inPart >= 64 ? 4 : 0);
    const high = bytes[at + 128 + part * 32 + (i & 31)]! >> (row * 2);
    const code = ((low & 15) | ((high & 3) << 4)) - 32;
    out[to + i] = fround(d * signed(bytes[at + 192 + (i >> 4)]!)) * code;
  }
}
