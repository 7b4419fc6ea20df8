/** Page summaries in plain TypeScript: from decoded keys to a slot's bytes, and back. The definition, not the fast path. */
import { int8Code, int8Scale } from "./block-codec.ts";
import { PAGE_TOKENS, PAGES_PER_BLOCK, type SummaryKind } from "./contract.ts";
import { summaryHeadBytes, summaryScalesAt } from "./layout.ts";

/**
 * The summaries of one kind of one KV head of a block, as the contract's summary slot has them (`8 * headDim + 32` bytes), from its decoded
 * keys, f32 `[64][headDim]`. Every operation is rounded to f32, so a summary rebuilt from a stored block has the same bytes on every device.
 */
export function summarizeKeys(kind: SummaryKind, keys: Float32Array, headDim: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(summaryHeadBytes(headDim));
  const codes = new Int8Array(bytes.buffer, 0, summaryScalesAt(headDim));
  const scales = new Float32Array(bytes.buffer, summaryScalesAt(headDim));
  const centre = new Float32Array(headDim);
  const radius = new Float32Array(headDim);
  for (let page = 0; page < PAGES_PER_BLOCK; page++) {
    for (let channel = 0; channel < headDim; channel++) {
      const column = (token: number): number => keys[(page * PAGE_TOKENS + token) * headDim + channel] as number;
      [centre[channel], radius[channel]] = kind === "min-max" ? minMax(column) : meanDeviation(column);
    }
    const centreCodes = codes.subarray(page * 2 * headDim, (page * 2 + 1) * headDim);
    const radiusCodes = codes.subarray((page * 2 + 1) * headDim, (page * 2 + 2) * headDim);
    const scale = encodeNearest(centre, centreCodes);
    scales[page * 2] = scale;
    if (kind === "min-max") widen(radius, centre, centreCodes, scale);
    scales[page * 2 + 1] = (kind === "min-max" ? encodeAbove : encodeNearest)(radius, radiusCodes);
  }
  return bytes;
}

/** What one KV head's summaries say: f32 `[4 pages][2][headDim]`, centre then radius, `f32(code * scale)`. `bytes` are 4-byte aligned. */
export function decodeSummary(bytes: Uint8Array, headDim: number): Float32Array<ArrayBuffer> {
  const codes = new Int8Array(bytes.buffer, bytes.byteOffset, summaryScalesAt(headDim));
  const scales = new Float32Array(bytes.buffer, bytes.byteOffset + summaryScalesAt(headDim), PAGES_PER_BLOCK * 2);
  return Float32Array.from(codes, (code, at) => code * (scales[Math.floor(at / headDim)] as number));
}

/** Codes to nearest, halves to even; returns the scale. */
function encodeNearest(values: Float32Array, codes: Int8Array): number {
  const scale = int8Scale(maxAbs(values));
  for (let at = 0; at < values.length; at++) codes[at] = int8Code(values[at] as number, scale);
  return scale;
}

/** Codes rounded up, for radii that must not shrink; returns the scale. */
function encodeAbove(values: Float32Array, codes: Int8Array): number {
  const scale = int8Scale(maxAbs(values));
  for (let at = 0; at < values.length; at++) {
    codes[at] = scale === 0 ? 0 : Math.min(127, Math.ceil(Math.fround((values[at] as number) / scale)));
  }
  return scale;
}

/** Adds to each radius what its centre lost to rounding. */
function widen(radius: Float32Array, centre: Float32Array, codes: Int8Array, scale: number): void {
  for (let at = 0; at < radius.length; at++) {
    const lost = Math.fround((centre[at] as number) - Math.fround((codes[at] as number) * scale));
    radius[at] = (radius[at] as number) + Math.abs(lost);
  }
}

function maxAbs(values: Float32Array): number {
  let max = 0;
  for (const value of values) max = Math.max(max, Math.abs(value));
  return max;
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
