/** Page summaries in plain TypeScript: from decoded keys to a slot's bytes, and back. The definition, not the fast path. */
import { int8Code, int8Scale } from "./block-codec.ts";
import { PAGE_TOKENS, PAGES_PER_BLOCK, type SummaryKind } from "./contract.ts";
import { summaryHeadBytes, summaryScalesAt } from "./layout.ts";
import { encodeResidualSigns } from "./residual-signs.ts";

/**
 * The summaries of one kind of one KV head of a block, as the contract's summary slot has them (`8 * headDim + 32` bytes), from its decoded
 * keys, f32 `[64][headDim]`. Every operation is rounded to f32, so a summary rebuilt from a stored block has the same bytes on every device.
 */
export function summarizeKeys(kind: SummaryKind, keys: Float32Array, headDim: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(summaryHeadBytes(headDim));
  const codes = new Int8Array(bytes.buffer, 0, summaryScalesAt(headDim));
  const scales = new Float32Array(bytes.buffer, summaryScalesAt(headDim));
  if (kind === "residual-signs") {
    encodeResidualSigns(keys, headDim, codes, scales);
    return bytes;
  }
  for (let page = 0; page < PAGES_PER_BLOCK; page++) {
    const pageKeys = keys.subarray(page * PAGE_TOKENS * headDim, (page + 1) * PAGE_TOKENS * headDim);
    const pageCodes = codes.subarray(page * 2 * headDim, (page + 1) * 2 * headDim);
    scales.set(ENCODERS[kind](pageKeys, headDim, pageCodes), page * 2);
  }
  return bytes;
}

/** Writes a page's codes `[2][headDim]` from its keys `[16][headDim]` and returns its scales. */
type PageEncoder = (keys: Float32Array, headDim: number, codes: Int8Array) => [first: number, second: number];

const ENCODERS: Readonly<Record<Exclude<SummaryKind, "residual-signs">, PageEncoder>> = {
  "min-max": (keys, headDim, codes) => {
    const [centre, radius] = centreRadius(keys, headDim, minMax);
    const centreCodes = codes.subarray(0, headDim);
    const scale = encodeNearest(centre, centreCodes);
    widen(radius, centre, centreCodes, scale);
    return [scale, encodeAbove(radius, codes.subarray(headDim))];
  },
  "mean-deviation": (keys, headDim, codes) => encodePair(centreRadius(keys, headDim, meanDeviation), codes),
  "centre-deviation": (keys, headDim, codes) => encodePair(centreRadius(keys, headDim, centreDeviation), codes),
  representatives: (keys, headDim, codes) => {
    if (!keys.every(Number.isFinite)) return [Number.NaN, Number.NaN];
    const [first, second] = representativeTokens(keys, headDim);
    const keyOf = (token: number): Float32Array => keys.subarray(token * headDim, (token + 1) * headDim);
    return encodePair([keyOf(first), keyOf(second)], codes);
  },
  "sign-bits": (keys, headDim, codes) => {
    if (!keys.every(Number.isFinite)) return [Number.NaN, Number.NaN];
    for (let at = 0; at < keys.length; at++) {
      const [token, channel] = [Math.floor(at / headDim), at % headDim];
      const byte = Math.floor(channel / 8) * PAGE_TOKENS + token;
      const isNegative = (keys[at] as number) < 0 || Object.is(keys[at], -0);
      if (isNegative) codes[byte] = (codes[byte] as number) | (1 << (channel % 8));
    }
    return [1, 0];
  },
};

/** Two vectors, each under its own scale. */
function encodePair([first, second]: readonly [Float32Array, Float32Array], codes: Int8Array): [number, number] {
  return [encodeNearest(first, codes.subarray(0, first.length)), encodeNearest(second, codes.subarray(first.length))];
}

function centreRadius(
  keys: Float32Array,
  headDim: number,
  reduce: (column: (token: number) => number) => [centre: number, radius: number],
): [centre: Float32Array, radius: Float32Array] {
  const centre = new Float32Array(headDim);
  const radius = new Float32Array(headDim);
  for (let channel = 0; channel < headDim; channel++) {
    [centre[channel], radius[channel]] = reduce((token) => keys[token * headDim + channel] as number);
  }
  return [centre, radius];
}

/** The two tokens whose keys are most like all keys of the page; all are finite. */
function representativeTokens(keys: Float32Array, headDim: number): [number, number] {
  const codes = new Int8Array(keys.length);
  encodeNearest(keys, codes);
  const sums = new Int32Array(headDim);
  for (let at = 0; at < codes.length; at++) sums[at % headDim] = (sums[at % headDim] as number) + (codes[at] as number);
  const weights = new Int32Array(PAGE_TOKENS);
  codes.forEach((code, at) => {
    const token = Math.floor(at / headDim);
    weights[token] = (weights[token] as number) + code * (sums[at % headDim] as number);
  });
  const best = (but: number): number =>
    weights.reduce((found, weight, token) => {
      if (token === but) return found;
      return found < 0 || weight > (weights[found] as number) ? token : found;
    }, -1);
  const first = best(-1);
  return [first, best(first)];
}

/**
 * What one KV head's summaries say: f32 `[4 pages][2][headDim]`, centre then radius (or the two representatives), `f32(code * scale)`. Not of
 * sign-bits and residual-signs. `bytes` are 4-byte aligned.
 */
export function decodeSummary(bytes: Uint8Array, headDim: number): Float32Array<ArrayBuffer> {
  const codes = new Int8Array(bytes.buffer, bytes.byteOffset, summaryScalesAt(headDim));
  const scales = new Float32Array(bytes.buffer, bytes.byteOffset + summaryScalesAt(headDim), PAGES_PER_BLOCK * 2);
  return Float32Array.from(codes, (code, at) => code * (scales[Math.floor(at / headDim)] as number));
}

/**
 * A block's own centre (`coarseFactor` in contract.ts) in one KV head, from the summaries of its pages there, of a kind that has centres:
 * codes `[headDim]` and their scale.
 */
export function blockCentre(
  codes: Int8Array,
  scales: Float32Array,
  headDim: number,
): { codes: Int8Array; scale: number } {
  const centre = Float32Array.from({ length: headDim }, (_, channel) => {
    let sum = 0;
    for (let page = 0; page < PAGES_PER_BLOCK; page++) {
      const code = codes[page * 2 * headDim + channel] as number;
      sum = Math.fround(sum + Math.fround(code * (scales[page * 2] as number)));
    }
    return sum / PAGES_PER_BLOCK;
  });
  const own = new Int8Array(headDim);
  const scale = encodeNearest(centre, own);
  return { codes: own, scale };
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

function centreDeviation(column: (token: number) => number): [centre: number, radius: number] {
  const [centre] = minMax(column);
  let distances = 0;
  for (let token = 0; token < PAGE_TOKENS; token++) {
    distances = Math.fround(distances + Math.abs(Math.fround(column(token) - centre)));
  }
  return [centre, Math.fround(distances / PAGE_TOKENS)];
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
