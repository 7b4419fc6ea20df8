/**
 * Residual signs, in plain TypeScript: what tells the tokens of a page apart, in one bit for most channels (after RaBitQ, arXiv 2405.12497, whose random
 * rotation is a Hadamard transform here). The definition of the summaries and scores of this kind (contract.ts, `KvPool` and `PageScorer`), not the
 * fast path. Each operation is rounded to f32.
 *
 * The mean of a block's 64 keys (what is not finite counts as 0; tokens ascending, the sum times 1/64) is encoded as a centre is: codes m, scale s. A
 * key less f32(m * s) is {@link turn}ed, and of the first n = 8 b - 4 channels of that, b = floor(7 headDim / 64), it has the signs and a length: their
 * absolute values, added channels ascending, times f32(1 / (z n)), z the largest power of two that divides headDim.
 * In the place of a page's codes, `2 * headDim` bytes: `[b][16 tokens]`, bit i of byte (a, t) set where turned channel 8a + i of token t is below 0,
 * and in the upper half of byte (b - 1, t) min(15, round-half-even(length / l)), 0 where l is 0, with l = f32(largest length of the page / 15);
 * then zeros; from byte 7 headDim / 4 on `[headDim / 4]` codes of m, page p the p-th quarter. Its scales are s and l. A page with a key, or a length,
 * that is not finite has signs and lengths 0 and scales NaN.
 *
 * A query's 16-bit codes are turned as well, exactly; with u the largest magnitude of the first n, these get codes
 * sign * floor((14 |x| + u) / 2u), 0 where u is 0, and the scale f32(qScale * f32(u / 7)). best = the largest over the page's tokens of the length's code
 * times the sum of these codes, each negative where the token's bit is set.
 * score = ((qScale * s) * f32(qCode . m)) + (((that scale * l) * radiusWeight) * f32(best)).
 */
import { int8Code, int8Scale, roundHalfEven } from "./block-codec.ts";
import { BLOCK_TOKENS, PAGE_TOKENS, PAGES_PER_BLOCK } from "./contract.ts";

/** Lengths are codes up to this, channels of a query up to that. */
const LENGTH_CODE_MAX = 15;
const QUERY_CODE_MAX = 7;

/** Where the parts of a page's `2 * headDim` bytes of codes lie. */
export interface ResidualSignsLayout {
  /** Bytes of a token: signs of eight turned channels each, but the last one, which has four and the token's length. */
  tokenBytes: number;
  /** Turned channels, the first ones, of which there is a sign. */
  signCount: number;
  /** Byte at which this page's quarter of the block's mean begins: `headDim / 4` codes. */
  meanAt: number;
  /** What a sum of absolute turned channels is times, so that it is a length: f32 of 1 / (size of the transform * signCount). */
  lengthUnit: number;
}

/** The layout for a head; `headDim` is a multiple of 16. */
export function residualSignsLayout(headDim: number): ResidualSignsLayout {
  const tokenBytes = Math.floor((7 * headDim) / 64);
  const signCount = 8 * tokenBytes - 4;
  const transformSize = headDim & -headDim;
  return {
    ...{ tokenBytes, signCount, meanAt: (7 * headDim) / 4 },
    lengthUnit: Math.fround(1 / (transformSize * signCount)),
  };
}

/**
 * A Hadamard transform, not scaled, in place: for d = o, 2o, 4o, ... below the length, o its largest odd divisor, channels c and c + d (c with an even
 * floor(c / d)) become their sum and their difference. An f32 array rounds each of them; whole numbers in f64 stay exact.
 */
export function turn(values: Float32Array | Float64Array): void {
  const length = values.length;
  for (let distance = length / (length & -length); distance < length; distance *= 2) {
    for (let first = 0; first < length; first += 2 * distance) {
      for (let at = first; at < first + distance; at++) {
        const [a, b] = [values[at] as number, values[at + distance] as number];
        values[at] = a + b;
        values[at + distance] = a - b;
      }
    }
  }
}

/** Writes a block's codes `[4 pages][2 * headDim]` and scales `[4 pages][2]`, zeros before, from its keys f32 `[64][headDim]`. */
export function encodeResidualSigns(keys: Float32Array, headDim: number, codes: Int8Array, scales: Float32Array): void {
  const { meanAt } = residualSignsLayout(headDim);
  const mean = blockMean(keys, headDim);
  const meanScale = int8Scale(mean.reduce((most, value) => Math.max(most, Math.abs(value)), 0));
  const quarter = headDim / PAGES_PER_BLOCK;
  for (let channel = 0; channel < headDim; channel++) {
    const code = int8Code(mean[channel] as number, meanScale);
    codes[Math.floor(channel / quarter) * 2 * headDim + meanAt + (channel % quarter)] = code;
    mean[channel] = code * meanScale;
  }
  for (let page = 0; page < PAGES_PER_BLOCK; page++) {
    const own = keys.subarray(page * PAGE_TOKENS * headDim, (page + 1) * PAGE_TOKENS * headDim);
    const lengthScale = encodePage(own, mean, codes.subarray(page * 2 * headDim, (page + 1) * 2 * headDim));
    scales.set([Number.isNaN(lengthScale) ? Number.NaN : meanScale, lengthScale], page * 2);
  }
}

/** f32 `[headDim]`; what is not finite counts as 0. */
function blockMean(keys: Float32Array, headDim: number): Float32Array {
  return Float32Array.from({ length: headDim }, (_, channel) => {
    let sum = 0;
    for (let token = 0; token < BLOCK_TOKENS; token++) {
      const key = keys[token * headDim + channel] as number;
      sum = Math.fround(sum + (Number.isFinite(key) ? key : 0));
    }
    return sum / BLOCK_TOKENS;
  });
}

/** Writes signs and lengths of a page of keys; returns the lengths' scale, or NaN where there is nothing to write. */
function encodePage(keys: Float32Array, mean: Float32Array, codes: Int8Array): number {
  const headDim = mean.length;
  const { tokenBytes, signCount, lengthUnit } = residualSignsLayout(headDim);
  const residuals = Array.from({ length: PAGE_TOKENS }, (_, token) => {
    const residual = keys.slice(token * headDim, (token + 1) * headDim);
    for (let channel = 0; channel < headDim; channel++) residual[channel]! -= mean[channel] as number;
    turn(residual);
    return residual.subarray(0, signCount);
  });
  const lengths = residuals.map((residual) => {
    const sum = residual.reduce((sofar, value) => Math.fround(sofar + Math.abs(value)), 0);
    return Math.fround(sum * lengthUnit);
  });
  if (![...keys, ...lengths].every(Number.isFinite)) return Number.NaN;
  const scale = Math.fround(Math.max(...lengths) / LENGTH_CODE_MAX);
  for (const [token, residual] of residuals.entries()) {
    residual.forEach((value, channel) => {
      const at = Math.floor(channel / 8) * PAGE_TOKENS + token;
      if (value < 0) codes[at] = (codes[at] as number) | (1 << (channel % 8));
    });
    const quotient = scale === 0 ? 0 : roundHalfEven(Math.fround((lengths[token] as number) / scale));
    const at = (tokenBytes - 1) * PAGE_TOKENS + token;
    codes[at] = (codes[at] as number) | (Math.min(LENGTH_CODE_MAX, quotient) << 4);
  }
  return scale;
}

/** A query in 16 bits: codes `[headDim]` and their scale. */
export interface QueryCodes {
  codes: Float64Array;
  scale: number;
}

/** A block's codes `[4 pages][2 * headDim]` and scales `[4 pages][2]`. */
export interface BlockCodes {
  codes: Int8Array;
  scales: Float32Array;
}

/** Scores pages of blocks for one query; the last sum is left to the caller to round. `weight` is an f32. */
export function residualScorer(
  query: QueryCodes,
  headDim: number,
  weight: number,
): (block: BlockCodes, page: number) => number {
  const layout = residualSignsLayout(headDim);
  const turned = turnedQuery(query, layout);
  return ({ codes, scales }, page) => {
    const best = bestResidual(codes.subarray(page * 2 * headDim, (page + 1) * 2 * headDim), turned.codes, layout);
    const meanUnit = Math.fround(query.scale * (scales[page * 2] as number));
    const lengthUnit = Math.fround(Math.fround(turned.scale * (scales[page * 2 + 1] as number)) * weight);
    const meanPart = Math.fround(meanUnit * Math.fround(dotMean(codes, query.codes)));
    return meanPart + Math.fround(lengthUnit * Math.fround(best));
  };
}

/** Codes of the query's first turned channels, and their scale. */
function turnedQuery(query: QueryCodes, { signCount }: ResidualSignsLayout): QueryCodes {
  const turned = query.codes.slice();
  turn(turned);
  const kept = turned.subarray(0, signCount);
  const most = kept.reduce((sofar, value) => Math.max(sofar, Math.abs(value)), 0);
  const codes = kept.map((value) => {
    if (most === 0) return 0;
    return Math.sign(value) * Math.floor((2 * QUERY_CODE_MAX * Math.abs(value) + most) / (2 * most));
  });
  return { codes, scale: Math.fround(query.scale * Math.fround(most / QUERY_CODE_MAX)) };
}

/** The largest of the page's tokens: a length's code times the sum of the query's codes, negative where the key's sign is. */
function bestResidual(codes: Int8Array, query: Float64Array, { tokenBytes }: ResidualSignsLayout): number {
  let best = Number.NEGATIVE_INFINITY;
  for (let token = 0; token < PAGE_TOKENS; token++) {
    let sum = 0;
    for (let channel = 0; channel < query.length; channel++) {
      const byte = codes[Math.floor(channel / 8) * PAGE_TOKENS + token] as number;
      const code = query[channel] as number;
      sum += (byte >> (channel % 8)) & 1 ? -code : code;
    }
    const length = ((codes[(tokenBytes - 1) * PAGE_TOKENS + token] as number) >> 4) & 15;
    best = Math.max(best, length * sum);
  }
  return best;
}

/** The query's codes times those of the block's mean, a quarter of which lies with every page. */
function dotMean(codes: Int8Array, query: Float64Array): number {
  const headDim = query.length;
  const { meanAt } = residualSignsLayout(headDim);
  const quarter = headDim / PAGES_PER_BLOCK;
  return query.reduce((sum, code, channel) => {
    const at = Math.floor(channel / quarter) * 2 * headDim + meanAt + (channel % quarter);
    return sum + code * (codes[at] as number);
  }, 0);
}
