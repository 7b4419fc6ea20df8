// Attention over sealed int8 blocks in integers. Per query and block, q * key scales (f32) becomes codes of 16 bits, so that q.k is an exact
// sum of products of 16 and 8 bits; per query and block, softmax weights * value scales become codes of 16 bits, and so does the sum of
// weighted values. A factor in f32 for each follows at the end. Both roundings are 1/65534 of the largest element, 258 times finer than the
// 8 bits of the KV itself. The sums are exact, so tiles, threads and order do not show; they fit 32 bits up to 64 tokens and 512 channels.
// Loads of 8 codes run up to 4 codes over the last channel: these lie in the same block, and meet zeros or are not stored.
import { maxLanes, nearestInt4, sumLanes4i } from "./vector";

const CODE_MAX: f32 = 32767;
/** Vectors with no larger element become zeros: dividing by it could overflow. */
const LARGEST_MIN: f32 = 1e-30;

/** Bytes of one query's codes. */
// @ts-ignore: decorator
@inline
export function queryCodeBytes(headDim: usize): usize {
  return ((headDim + 7) & ~7) << 1;
}

// @ts-ignore: decorator
@inline
function inverseOf(largest: f32): f32 {
  return largest > LARGEST_MIN ? CODE_MAX / largest : 0;
}

// @ts-ignore: decorator
@inline
function factorOf(largest: f32): f32 {
  return largest > LARGEST_MIN ? largest / CODE_MAX : 0;
}

// @ts-ignore: decorator
@inline
function rounded(x: v128, inverse: v128): v128 {
  return nearestInt4(f32x4.mul(x, inverse));
}

/** Codes of q * scales, and zeros up to a multiple of 8. Returns what one unit of a code is worth. */
export function quantizeQuery(codes: usize, q: usize, scales: usize, headDim: usize): f32 {
  const headBytes = headDim << 2;
  let largest = f32x4.splat(0);
  for (let at: usize = 0; at < headBytes; at += 16) {
    largest = f32x4.pmax(largest, f32x4.abs(f32x4.mul(v128.load(q + at), v128.load(scales + at))));
  }
  const most = maxLanes(largest);
  const inverse = f32x4.splat(inverseOf(most));
  for (let at: usize = 0; at < headBytes; at += 32) {
    const low = rounded(f32x4.mul(v128.load(q + at), v128.load(scales + at)), inverse);
    const high = at + 16 < headBytes
      ? rounded(f32x4.mul(v128.load(q + at, 16), v128.load(scales + at, 16)), inverse)
      : i32x4.splat(0);
    v128.store(codes + (at >> 1), i16x8.narrow_i32x4_s(low, high));
  }
  return factorOf(most);
}

/**
 * Turns the f32 weights of the chosen pages into codes of weight * value scale, in place: token t's code is the t-th word of 16 bits.
 * Returns what one unit of a code is worth.
 */
export function quantizeWeights(weights: usize, scales: usize, pages: i32): f32 {
  let largest = f32x4.splat(0);
  for (let left = pages; left != 0; left &= left - 1) {
    const page = <usize>ctz(left);
    const end = (page << 6) + 64;
    for (let at = page << 6; at < end; at += 16) {
      const scaled = f32x4.mul(v128.load(weights + at), v128.load(scales + at));
      v128.store(weights + at, scaled);
      largest = f32x4.pmax(largest, scaled);
    }
  }
  const most = maxLanes(largest);
  const inverse = f32x4.splat(inverseOf(most));
  for (let left = pages; left != 0; left &= left - 1) {
    const page = <usize>ctz(left);
    const end = (page << 6) + 64;
    // Codes take half the room of what they replace, so ascending order overwrites only what was read.
    for (let at = page << 6; at < end; at += 32) {
      const low = rounded(v128.load(weights + at), inverse);
      const high = rounded(v128.load(weights + at, 16), inverse);
      v128.store(weights + (at >> 1), i16x8.narrow_i32x4_s(low, high));
    }
  }
  return factorOf(most);
}

/**
 * scores[query][token] = codes of q . codes of k * factors[query] for 16 tokens. `keys` i8 [16][headDim]; rows of `scores` lie scoreBytes
 * apart.
 */
export function scoreInt8(
  scores: usize,
  scoreBytes: usize,
  q: usize,
  factors: usize,
  queryCount: i32,
  keys: usize,
  headDim: usize,
): void {
  const codeBytes = queryCodeBytes(headDim);
  let left = queryCount;
  for (; left >= 4; left -= 4) {
    for (let token: usize = 0; token < 16; token += 2) {
      fourByTwo(scores + (token << 2), scoreBytes, q, codeBytes, factors, keys + token * headDim, headDim);
    }
    scores += scoreBytes << 2;
    q += codeBytes << 2;
    factors += 16;
  }
  for (; left >= 2; left -= 2) {
    for (let token: usize = 0; token < 16; token += 4) {
      twoByFour(scores + (token << 2), scoreBytes, q, codeBytes, factors, keys + token * headDim, headDim);
    }
    scores += scoreBytes << 1;
    q += codeBytes << 1;
    factors += 8;
  }
  if (left == 0) return;
  for (let token: usize = 0; token < 16; token += 4) {
    oneByFour(scores + (token << 2), q, factors, keys + token * headDim, headDim);
  }
}

// @ts-ignore: decorator
@inline
function addDot(sum: v128, a: v128, b: v128): v128 {
  return i32x4.add(sum, i32x4.dot_i16x8_s(a, b));
}

function oneByFour(to: usize, q: usize, factor: usize, keys: usize, headDim: usize): void {
  const k1 = keys + headDim;
  const k2 = k1 + headDim;
  const k3 = k2 + headDim;
  let a = i32x4.splat(0), b = i32x4.splat(0), c = i32x4.splat(0), d = i32x4.splat(0);
  for (let at: usize = 0; at < headDim; at += 8) {
    const x = v128.load(q + (at << 1));
    a = addDot(a, x, v128.load8x8_s(keys + at));
    b = addDot(b, x, v128.load8x8_s(k1 + at));
    c = addDot(c, x, v128.load8x8_s(k2 + at));
    d = addDot(d, x, v128.load8x8_s(k3 + at));
  }
  v128.store(to, f32x4.mul(f32x4.convert_i32x4_s(sumLanes4i(a, b, c, d)), v128.load32_splat(factor)));
}

function twoByFour(
  to: usize,
  scoreBytes: usize,
  q: usize,
  codeBytes: usize,
  factors: usize,
  keys: usize,
  headDim: usize,
): void {
  const second = q + codeBytes;
  const k1 = keys + headDim;
  const k2 = k1 + headDim;
  const k3 = k2 + headDim;
  let a = i32x4.splat(0), b = i32x4.splat(0), c = i32x4.splat(0), d = i32x4.splat(0);
  let e = i32x4.splat(0), f = i32x4.splat(0), g = i32x4.splat(0), h = i32x4.splat(0);
  for (let at: usize = 0; at < headDim; at += 8) {
    const x = v128.load(q + (at << 1));
    const y = v128.load(second + (at << 1));
    let key = v128.load8x8_s(keys + at);
    a = addDot(a, x, key);
    e = addDot(e, y, key);
    key = v128.load8x8_s(k1 + at);
    b = addDot(b, x, key);
    f = addDot(f, y, key);
    key = v128.load8x8_s(k2 + at);
    c = addDot(c, x, key);
    g = addDot(g, y, key);
    key = v128.load8x8_s(k3 + at);
    d = addDot(d, x, key);
    h = addDot(h, y, key);
  }
  v128.store(to, f32x4.mul(f32x4.convert_i32x4_s(sumLanes4i(a, b, c, d)), v128.load32_splat(factors)));
  v128.store(
    to + scoreBytes,
    f32x4.mul(f32x4.convert_i32x4_s(sumLanes4i(e, f, g, h)), v128.load32_splat(factors, 4)),
  );
}

function fourByTwo(
  to: usize,
  scoreBytes: usize,
  q: usize,
  codeBytes: usize,
  factors: usize,
  keys: usize,
  headDim: usize,
): void {
  const q1 = q + codeBytes;
  const q2 = q1 + codeBytes;
  const q3 = q2 + codeBytes;
  const other = keys + headDim;
  let a = i32x4.splat(0), b = i32x4.splat(0), c = i32x4.splat(0), d = i32x4.splat(0);
  let e = i32x4.splat(0), f = i32x4.splat(0), g = i32x4.splat(0), h = i32x4.splat(0);
  for (let at: usize = 0; at < headDim; at += 8) {
    const key = v128.load8x8_s(keys + at);
    const next = v128.load8x8_s(other + at);
    let x = v128.load(q + (at << 1));
    a = addDot(a, x, key);
    b = addDot(b, x, next);
    x = v128.load(q1 + (at << 1));
    c = addDot(c, x, key);
    d = addDot(d, x, next);
    x = v128.load(q2 + (at << 1));
    e = addDot(e, x, key);
    f = addDot(f, x, next);
    x = v128.load(q3 + (at << 1));
    g = addDot(g, x, key);
    h = addDot(h, x, next);
  }
  const scales = v128.load(factors);
  const low = f32x4.convert_i32x4_s(sumLanes4i(a, b, c, d));
  const high = f32x4.convert_i32x4_s(sumLanes4i(e, f, g, h));
  const lowScores = f32x4.mul(low, v128.shuffle<f32>(scales, scales, 0, 0, 1, 1));
  const highScores = f32x4.mul(high, v128.shuffle<f32>(scales, scales, 2, 2, 3, 3));
  v128.store64_lane(to, lowScores, 0);
  v128.store64_lane(to + scoreBytes, lowScores, 1);
  v128.store64_lane(to + scoreBytes * 2, highScores, 0);
  v128.store64_lane(to + scoreBytes * 3, highScores, 1);
}

/**
 * output[query] += factors[query] * sum over tokens of the chosen pages of weight code * value code. Rows of `weights` (codes of 16 bits) lie
 * weightBytes apart; `values` i8 [64][headDim], `output` f32 [queryCount][headDim].
 */
export function addValuesInt8(
  output: usize,
  weights: usize,
  weightBytes: usize,
  factors: usize,
  queryCount: i32,
  values: usize,
  headDim: usize,
  pages: i32,
): void {
  const headBytes = headDim << 2;
  let left = queryCount;
  for (; left >= 4; left -= 4) {
    for (let d: usize = 0; d < headDim; d += 8) {
      fourOutputs(output + (d << 2), headBytes, weights, weightBytes, factors, values + d, headDim, pages, d + 8 <= headDim);
    }
    output += headBytes << 2;
    weights += weightBytes << 2;
    factors += 16;
  }
  for (; left >= 2; left -= 2) {
    for (let d: usize = 0; d < headDim; d += 8) {
      twoOutputs(output + (d << 2), headBytes, weights, weightBytes, factors, values + d, headDim, pages, d + 8 <= headDim);
    }
    output += headBytes << 1;
    weights += weightBytes << 1;
    factors += 8;
  }
  if (left == 0) return;
  for (let d: usize = 0; d < headDim; d += 8) {
    oneOutput(output + (d << 2), weights, factors, values + d, headDim, pages, d + 8 <= headDim);
  }
}

/** Words of two tokens side by side: the pairs that one multiply-add takes. */
// @ts-ignore: decorator
@inline
function pairsLow(a: v128, b: v128): v128 {
  return v128.shuffle<i16>(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
// @ts-ignore: decorator
@inline
function pairsHigh(a: v128, b: v128): v128 {
  return v128.shuffle<i16>(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

// @ts-ignore: decorator
@inline
function accumulate(to: usize, low: v128, high: v128, factor: v128, isWhole: bool): void {
  v128.store(to, f32x4.add(v128.load(to), f32x4.mul(f32x4.convert_i32x4_s(low), factor)));
  if (isWhole) v128.store(to, f32x4.add(v128.load(to, 16), f32x4.mul(f32x4.convert_i32x4_s(high), factor)), 16);
}

function oneOutput(
  to: usize,
  weights: usize,
  factor: usize,
  values: usize,
  step: usize,
  pages: i32,
  isWhole: bool,
): void {
  let a = i32x4.splat(0), b = i32x4.splat(0);
  for (let left = pages; left != 0; left &= left - 1) {
    const page = <usize>ctz(left);
    let from = values + page * 16 * step;
    const end = (page << 5) + 32;
    for (let at = page << 5; at < end; at += 4) {
      const even = v128.load8x8_s(from);
      const odd = v128.load8x8_s(from + step);
      const w = v128.load32_splat(weights + at);
      a = addDot(a, pairsLow(even, odd), w);
      b = addDot(b, pairsHigh(even, odd), w);
      from += step << 1;
    }
  }
  accumulate(to, a, b, v128.load32_splat(factor), isWhole);
}

function twoOutputs(
  to: usize,
  headBytes: usize,
  weights: usize,
  weightBytes: usize,
  factors: usize,
  values: usize,
  step: usize,
  pages: i32,
  isWhole: bool,
): void {
  let a = i32x4.splat(0), b = i32x4.splat(0), c = i32x4.splat(0), d = i32x4.splat(0);
  const others = weights + weightBytes;
  for (let left = pages; left != 0; left &= left - 1) {
    const page = <usize>ctz(left);
    let from = values + page * 16 * step;
    const end = (page << 5) + 32;
    for (let at = page << 5; at < end; at += 4) {
      const even = v128.load8x8_s(from);
      const odd = v128.load8x8_s(from + step);
      const low = pairsLow(even, odd);
      const high = pairsHigh(even, odd);
      let w = v128.load32_splat(weights + at);
      a = addDot(a, low, w);
      b = addDot(b, high, w);
      w = v128.load32_splat(others + at);
      c = addDot(c, low, w);
      d = addDot(d, high, w);
      from += step << 1;
    }
  }
  accumulate(to, a, b, v128.load32_splat(factors), isWhole);
  accumulate(to + headBytes, c, d, v128.load32_splat(factors, 4), isWhole);
}

function fourOutputs(
  to: usize,
  headBytes: usize,
  weights: usize,
  weightBytes: usize,
  factors: usize,
  values: usize,
  step: usize,
  pages: i32,
  isWhole: bool,
): void {
  let a = i32x4.splat(0), b = i32x4.splat(0), c = i32x4.splat(0), d = i32x4.splat(0);
  let e = i32x4.splat(0), f = i32x4.splat(0), g = i32x4.splat(0), h = i32x4.splat(0);
  const w1 = weights + weightBytes;
  const w2 = w1 + weightBytes;
  const w3 = w2 + weightBytes;
  for (let left = pages; left != 0; left &= left - 1) {
    const page = <usize>ctz(left);
    let from = values + page * 16 * step;
    const end = (page << 5) + 32;
    for (let at = page << 5; at < end; at += 4) {
      const even = v128.load8x8_s(from);
      const odd = v128.load8x8_s(from + step);
      const low = pairsLow(even, odd);
      const high = pairsHigh(even, odd);
      let w = v128.load32_splat(weights + at);
      a = addDot(a, low, w);
      b = addDot(b, high, w);
      w = v128.load32_splat(w1 + at);
      c = addDot(c, low, w);
      d = addDot(d, high, w);
      w = v128.load32_splat(w2 + at);
      e = addDot(e, low, w);
      f = addDot(f, high, w);
      w = v128.load32_splat(w3 + at);
      g = addDot(g, low, w);
      h = addDot(h, high, w);
      from += step << 1;
    }
  }
  accumulate(to, a, b, v128.load32_splat(factors), isWhole);
  accumulate(to + headBytes, c, d, v128.load32_splat(factors, 4), isWhole);
  accumulate(to + headBytes * 2, e, f, v128.load32_splat(factors, 8), isWhole);
  accumulate(to + headBytes * 3, g, h, v128.load32_splat(factors, 12), isWhole);
}
