// Scores by residual signs (kernels/residual-signs.ts, and `PageScorer` in kernels/contract.ts): queries, and scores of pages.
//
// A turned query is tables i8 [2 * tokenBytes - 1][16], 16 bytes {f32 scale, i32 sum of the codes, whether it is narrow}, and room to
// turn it in, i32 [headDim]. Table n has, for all that the sign bits of its four channels may be, the sum of the codes whose bit is
// set, negative; a swizzle looks it up for the 16 tokens of a page at once. A token's sum is that of all codes and twice what its
// tables say.
//
// A query is narrow if the magnitudes of its codes add up to at most 255 in every run of 8 bytes of signs (16 tables), and in all to what
// times a length is within 16 bits: nearly every query is. Half of the sum of a run's codes, rounded down, and what its tables say then add
// up within 8 bits. Of every run stands {i8 that half, u8 128 if the sum is odd} where the query was turned.
import { arg, argAt } from "./control";
import { tokenBytesOf, turnFrom } from "./residual-signs";
import { summaryHeadBytes } from "./summaries";
import { rawAt, storeScores, summaryOf } from "./unit-scores";
import { at } from "./units";
import { byteHalves, sumLanes4i } from "./vector";

const RECORD_BYTES: usize = 16;
const RUN_BYTES: usize = 8;
/** What magnitudes of codes may add up to in a run, and in all, of a narrow query; 15 is the longest length. */
const RUN_SUM_MAX: i32 = 255;
const SUM_MAX: i32 = 32767 / 15;

/** Bytes of a turned query. */
// @ts-ignore: decorator
@inline
function turnedBytes(headDim: usize): usize {
  return (tokenBytesOf(headDim) << 5) - 16 + RECORD_BYTES + (headDim << 2);
}

/** Where a turned query has its record. */
// @ts-ignore: decorator
@inline
function recordAt(headDim: usize): usize {
  return (tokenBytesOf(headDim) << 5) - 16;
}

/** Writes vector `vector`'s turned query to its place among `turned`. `codes`: i16 [headDim]. */
export function turnQuery(turned: usize, vector: usize, codes: usize, scale: f32, headDim: usize): void {
  const to = turned + vector * turnedBytes(headDim);
  const record = to + recordAt(headDim);
  const values = record + RECORD_BYTES;
  for (let channel: usize = 0; channel < headDim; channel += 4) {
    v128.store(values + (channel << 2), v128.load16x4_s(codes + (channel << 1)));
  }
  turnWhole(values, headDim);
  const signCount = (tokenBytesOf(headDim) << 3) - 4;
  let mosts = i32x4.splat(0);
  for (let at = values; at < values + (signCount << 2); at += 16) mosts = i32x4.max_s(mosts, i32x4.abs(v128.load(at)));
  mosts = i32x4.max_s(mosts, v128.shuffle<i32>(mosts, mosts, 2, 3, 0, 1));
  mosts = i32x4.max_s(mosts, v128.shuffle<i32>(mosts, mosts, 1, 0, 3, 2));
  // Which entries of a table have the bit of its first channel, its second, ...
  const first = i8x16(0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1);
  const second = i8x16(0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1);
  const third = i8x16(0, 0, 0, 0, -1, -1, -1, -1, 0, 0, 0, 0, -1, -1, -1, -1);
  const fourth = i8x16(0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1);
  let run = values;
  let total: i32 = 0, size: i32 = 0;
  let isNarrow = true;
  for (let table: usize = 0; table < signCount >> 2; ) {
    let sums = i32x4.splat(0), sizes = sums;
    for (const end = min(signCount >> 2, table + 2 * RUN_BYTES); table < end; table++) {
      const code = turnedCodes4(v128.load(values + (table << 4)), mosts);
      sums = i32x4.add(sums, code);
      sizes = i32x4.add(sizes, i32x4.abs(code));
      const low = i16x8.narrow_i32x4_s(code, code);
      const bytes = i8x16.neg(i8x16.narrow_i16x8_s(low, low));
      const a = v128.and(first, i8x16.splat(i8x16.extract_lane_s(bytes, 0)));
      const b = v128.and(second, i8x16.splat(i8x16.extract_lane_s(bytes, 1)));
      const c = v128.and(third, i8x16.splat(i8x16.extract_lane_s(bytes, 2)));
      const d = v128.and(fourth, i8x16.splat(i8x16.extract_lane_s(bytes, 3)));
      v128.store(to + (table << 4), i8x16.add(i8x16.add(a, b), i8x16.add(c, d)));
    }
    const both = sumLanes4i(sums, sizes, sums, sizes);
    const sum = i32x4.extract_lane(both, 0);
    store<i8>(run, <i8>(sum >> 1));
    store<u8>(run, <u8>((sum & 1) << 7), 1);
    run += 2;
    total += sum;
    size += i32x4.extract_lane(both, 1);
    isNarrow = isNarrow && i32x4.extract_lane(both, 1) <= RUN_SUM_MAX;
  }
  store<f32>(record, scale * (<f32>i32x4.extract_lane(mosts, 0) / <f32>7));
  store<i32>(record, total, 4);
  store<i32>(record, isNarrow && size <= SUM_MAX ? 1 : 0, 8);
}

/** Codes of four turned channels, `mosts` the largest magnitude in every lane: as often as 14 |x| reaches an odd multiple of it, up to 13. */
// @ts-ignore: decorator
@inline
function turnedCodes4(x: v128, mosts: v128): v128 {
  const sizes = i32x4.mul(i32x4.abs(x), i32x4.splat(14));
  const step = i32x4.add(mosts, mosts);
  let code = i32x4.splat(0);
  let least = mosts;
  for (let times = 0; times < 7; times++) {
    code = i32x4.sub(code, i32x4.ge_s(sizes, least));
    least = i32x4.add(least, step);
  }
  const isBelow = i32x4.shr_s(x, 31);
  const signed = i32x4.sub(v128.xor(code, isBelow), isBelow);
  return v128.andnot(signed, i32x4.eq(mosts, i32x4.splat(0)));
}

/** `turn` of kernels/residual-signs.ts, of whole numbers. */
function turnWhole(values: usize, headDim: usize): void {
  let distance = headDim / (headDim & (0 - headDim));
  if (distance == 1) {
    const second = i32x4(0, -1, 0, -1);
    const fourth = i32x4(0, 0, -1, -1);
    for (let at = values; at < values + (headDim << 2); at += 16) {
      let v = v128.load(at);
      v = i32x4.add(v128.shuffle<i32>(v, v, 0, 0, 2, 2), i32x4.sub(v128.xor(v128.shuffle<i32>(v, v, 1, 1, 3, 3), second), second));
      v = i32x4.add(v128.shuffle<i32>(v, v, 0, 1, 0, 1), i32x4.sub(v128.xor(v128.shuffle<i32>(v, v, 2, 3, 2, 3), fourth), fourth));
      v128.store(at, v);
    }
    distance = 4;
  }
  turnFrom<i32>(values, headDim, distance);
}

/**
 * The pages of blocks [first, end) of a unit for query vector `vector` and, if there is a pair, the next one. Arguments are those of
 * `scorePagesTask`: 5 headDim, 6 query codes, 7 query scales, 12 turned queries.
 */
export function scoreResidualPair(unit: usize, query: i32, isPair: bool, vector: usize, summaries: usize, first: i32, end: i32): void {
  const headDim = <usize>arg(5);
  const next: usize = isPair ? vector + 1 : vector;
  const q = argAt(6) + vector * (headDim << 1);
  const p = argAt(6) + next * (headDim << 1);
  const a = argAt(12) + vector * turnedBytes(headDim);
  const b = argAt(12) + next * turnedBytes(headDim);
  const scales = argAt(7) + (vector << 2);
  const otherScales = argAt(7) + (next << 2);
  const weights = v128.load32_splat(unit, 52);
  const isNarrow = (load<i32>(a + recordAt(headDim), 8) & load<i32>(b + recordAt(headDim), 8)) != 0;
  const slots = at(unit, 68) + (at(unit, 64) << 2);
  const raw = rawAt(unit, query);
  const stride = at(unit, 40) << 2;
  const list = at(unit, 116);
  for (let block = first; block < end; block++) {
    const summary = summaryOf(summaries, summaryHeadBytes(headDim), slots, list, block);
    let best: v128, otherBest: v128;
    if (isNarrow) {
      const both = bestsOfTwo(a, b, summary, headDim);
      best = i32x4.extend_low_i16x8_s(both);
      otherBest = i32x4.extend_high_i16x8_s(both);
    } else {
      best = bests(a, summary, headDim);
      otherBest = isPair ? bests(b, summary, headDim) : best;
    }
    const towards = f32x4.convert_i32x4_s(dotMeans(q, p, summary, headDim));
    const one = scoresOf(a, v128.load32_splat(scales), v128.shuffle<f32>(towards, towards, 0, 0, 0, 0), best, weights, summary, headDim);
    const other = scoresOf(b, v128.load32_splat(otherScales), v128.shuffle<f32>(towards, towards, 1, 1, 1, 1), otherBest, weights, summary, headDim);
    storeScores(unit, raw, stride, query, isPair, block, one, other);
  }
}

/** Scores of a block's four pages. `scale`, `towards`, `weights`: the query's scale, its product with the mean, and the radius weight in every lane. */
// @ts-ignore: decorator
@inline
function scoresOf(turned: usize, scale: v128, towards: v128, best: v128, weights: v128, summary: usize, headDim: usize): v128 {
  const scales = summary + (headDim << 3);
  const firsts = v128.load(scales);
  const lasts = v128.load(scales, 16);
  const meanUnits = f32x4.mul(scale, v128.shuffle<f32>(firsts, lasts, 0, 2, 4, 6));
  const lengthUnits = f32x4.mul(v128.load32_splat(turned + recordAt(headDim)), v128.shuffle<f32>(firsts, lasts, 1, 3, 5, 7));
  return f32x4.add(f32x4.mul(meanUnits, towards), f32x4.mul(f32x4.mul(lengthUnits, weights), f32x4.convert_i32x4_s(best)));
}

/** Codes of two queries times those of the block's mean, a quarter of which lies with every page: i32 lanes 0 and 1. */
// @ts-ignore: decorator
@inline
function dotMeans(q: usize, p: usize, summary: usize, headDim: usize): v128 {
  const quarter = headDim >> 2;
  const pageBytes = headDim << 1;
  let ones = i32x4.splat(0), others = ones;
  let codes = summary + quarter * 7;
  const end = codes + (quarter & ~7);
  const qBytes = quarter << 1;
  for (; codes < end; codes += 8) {
    const first = v128.load8x8_s(codes);
    const second = v128.load8x8_s(codes + pageBytes);
    const third = v128.load8x8_s(codes + 2 * pageBytes);
    const fourth = v128.load8x8_s(codes + 3 * pageBytes);
    ones = i32x4.add(ones, i32x4.add(
      i32x4.add(i32x4.dot_i16x8_s(v128.load(q), first), i32x4.dot_i16x8_s(v128.load(q + qBytes), second)),
      i32x4.add(i32x4.dot_i16x8_s(v128.load(q + 2 * qBytes), third), i32x4.dot_i16x8_s(v128.load(q + 3 * qBytes), fourth)),
    ));
    others = i32x4.add(others, i32x4.add(
      i32x4.add(i32x4.dot_i16x8_s(v128.load(p), first), i32x4.dot_i16x8_s(v128.load(p + qBytes), second)),
      i32x4.add(i32x4.dot_i16x8_s(v128.load(p + 2 * qBytes), third), i32x4.dot_i16x8_s(v128.load(p + 3 * qBytes), fourth)),
    ));
    q += 16;
    p += 16;
  }
  if ((quarter & 7) != 0) {
    for (let page: usize = 0; page < 4; page++) {
      // Four more codes are loaded than there are, of the same slot; they meet zeros.
      const mean = v128.load8x8_s(codes + page * pageBytes);
      ones = i32x4.add(ones, i32x4.dot_i16x8_s(v128.load64_zero(q + page * (quarter << 1)), mean));
      others = i32x4.add(others, i32x4.dot_i16x8_s(v128.load64_zero(p + page * (quarter << 1)), mean));
    }
  }
  return sumLanes4i(ones, others, ones, others);
}

/** Of a block's four pages, the largest length times sum, whatever the query: i32. */
function bests(turned: usize, summary: usize, headDim: usize): v128 {
  const pageBytes = headDim << 1;
  const a = bestOf(turned, summary, headDim);
  const b = bestOf(turned, summary + pageBytes, headDim);
  const c = bestOf(turned, summary + 2 * pageBytes, headDim);
  const d = bestOf(turned, summary + 3 * pageBytes, headDim);
  const ab = i32x4.max_s(v128.shuffle<i32>(a, b, 0, 4, 1, 5), v128.shuffle<i32>(a, b, 2, 6, 3, 7));
  const cd = i32x4.max_s(v128.shuffle<i32>(c, d, 0, 4, 1, 5), v128.shuffle<i32>(c, d, 2, 6, 3, 7));
  return i32x4.max_s(v128.shuffle<i32>(ab, cd, 0, 1, 4, 5), v128.shuffle<i32>(ab, cd, 2, 3, 6, 7));
}

/** Of every fourth of a page's tokens, the largest length times sum. */
function bestOf(turned: usize, codes: usize, headDim: usize): v128 {
  const last = tokenBytesOf(headDim) - 1;
  const lowHalf = byteHalves();
  const total = v128.load16_splat(turned + recordAt(headDim) + 4);
  let first = total;
  let second = total;
  for (let byte: usize = 0; byte <= last; byte++) {
    const bits = v128.load(codes + (byte << 4));
    let halves = i8x16.swizzle(v128.load(turned + (byte << 5)), v128.and(bits, lowHalf));
    if (byte < last) halves = i8x16.add(halves, i8x16.swizzle(v128.load(turned + (byte << 5), 16), upperHalf(bits, lowHalf)));
    const low = i16x8.extend_low_i8x16_s(halves);
    const high = i16x8.extend_high_i8x16_s(halves);
    first = i16x8.add(i16x8.add(first, low), low);
    second = i16x8.add(i16x8.add(second, high), high);
  }
  const lengths = upperHalf(v128.load(codes + (last << 4)), lowHalf);
  const low = i16x8.extend_low_i8x16_u(lengths);
  const high = i16x8.extend_high_i8x16_u(lengths);
  const a = i32x4.max_s(i32x4.extmul_low_i16x8_s(first, low), i32x4.extmul_high_i16x8_s(first, low));
  const b = i32x4.max_s(i32x4.extmul_low_i16x8_s(second, high), i32x4.extmul_high_i16x8_s(second, high));
  return i32x4.max_s(a, b);
}

/** As {@link bests}, of two narrow queries at once: i16, four of the one, then four of the other. */
// @ts-ignore: decorator
@inline
function bestsOfTwo(a: usize, b: usize, summary: usize, headDim: usize): v128 {
  const back = summary + (headDim << 2);
  if (tokenBytesOf(headDim) <= RUN_BYTES) return joined(inOneRun(a, b, summary, headDim), inOneRun(a, b, back, headDim));
  return joined(inRuns(a, b, summary, headDim), inRuns(a, b, back, headDim));
}

/** What {@link bestsOfTwoPages} says of a block's front and back. */
// @ts-ignore: decorator
@inline
function joined(front: v128, back: v128): v128 {
  return i16x8.max_s(v128.shuffle<i32>(front, back, 0, 4, 1, 5), v128.shuffle<i32>(front, back, 2, 6, 3, 7));
}

/** {@link bestsOfTwoPages} where there is one run of signs. */
function inOneRun(a: usize, b: usize, codes: usize, headDim: usize): v128 {
  return bestsOfTwoPages(a, b, codes, headDim, true);
}

/** The same where there are several. */
function inRuns(a: usize, b: usize, codes: usize, headDim: usize): v128 {
  return bestsOfTwoPages(a, b, codes, headDim, false);
}

/**
 * Two narrow queries with a page and the next one: i16 {a with it, a with the next one, b with it, b with the next one}, of half of the tokens,
 * then of the others. Look-ups stand in a loop: without one the compiler ends one sum before it begins the next, with the rest on the stack.
 */
// @ts-ignore: decorator
@inline
function bestsOfTwoPages(a: usize, b: usize, codes: usize, headDim: usize, isOneRun: bool): v128 {
  const lowHalf = byteHalves();
  const last = codes + ((tokenBytesOf(headDim) - 1) << 4);
  const pageBytes = headDim << 1;
  let runA = a + recordAt(headDim) + RECORD_BYTES;
  let runB = b + recordAt(headDim) + RECORD_BYTES;
  let lowW = i16x8.splat(0), lowX = lowW, lowY = lowW, lowZ = lowW;
  let highW = lowW, highX = lowW, highY = lowW, highZ = lowW;
  for (;;) {
    let w = v128.load8_splat(runA), x = w;
    let y = v128.load8_splat(runB), z = y;
    const isLast = isOneRun || last - codes < RUN_BYTES << 4;
    const end = isLast ? last : codes + (RUN_BYTES << 4);
    for (; codes < end; codes += 16) {
      const one = v128.load(a);
      const oneUp = v128.load(a, 16);
      const other = v128.load(b);
      const otherUp = v128.load(b, 16);
      let bits = v128.load(codes);
      let low = v128.and(bits, lowHalf);
      let high = upperHalf(bits, lowHalf);
      w = i8x16.add(i8x16.add(w, i8x16.swizzle(one, low)), i8x16.swizzle(oneUp, high));
      y = i8x16.add(i8x16.add(y, i8x16.swizzle(other, low)), i8x16.swizzle(otherUp, high));
      bits = v128.load(codes + pageBytes);
      low = v128.and(bits, lowHalf);
      high = upperHalf(bits, lowHalf);
      x = i8x16.add(i8x16.add(x, i8x16.swizzle(one, low)), i8x16.swizzle(oneUp, high));
      z = i8x16.add(i8x16.add(z, i8x16.swizzle(other, low)), i8x16.swizzle(otherUp, high));
      a += 32;
      b += 32;
    }
    if (isLast) {
      const one = v128.load(a);
      const other = v128.load(b);
      const low = v128.and(v128.load(last), lowHalf);
      const nextLow = v128.and(v128.load(last + pageBytes), lowHalf);
      w = i8x16.add(w, i8x16.swizzle(one, low));
      y = i8x16.add(y, i8x16.swizzle(other, low));
      x = i8x16.add(x, i8x16.swizzle(one, nextLow));
      z = i8x16.add(z, i8x16.swizzle(other, nextLow));
    }
    const odd = v128.load8_splat(runA + 1);
    const otherOdd = v128.load8_splat(runB + 1);
    lowW = plus(lowW, lowSums(odd, w), isOneRun);
    highW = plus(highW, highSums(odd, w), isOneRun);
    lowX = plus(lowX, lowSums(odd, x), isOneRun);
    highX = plus(highX, highSums(odd, x), isOneRun);
    lowY = plus(lowY, lowSums(otherOdd, y), isOneRun);
    highY = plus(highY, highSums(otherOdd, y), isOneRun);
    lowZ = plus(lowZ, lowSums(otherOdd, z), isOneRun);
    highZ = plus(highZ, highSums(otherOdd, z), isOneRun);
    if (isLast) break;
    runA += 2;
    runB += 2;
  }
  const lengths = upperHalf(v128.load(last), lowHalf);
  const nextLengths = upperHalf(v128.load(last + pageBytes), lowHalf);
  const low = i16x8.extend_low_i8x16_u(lengths);
  const high = i16x8.extend_high_i8x16_u(lengths);
  const nextLow = i16x8.extend_low_i8x16_u(nextLengths);
  const nextHigh = i16x8.extend_high_i8x16_u(nextLengths);
  const best = i16x8.max_s(i16x8.mul(lowW, low), i16x8.mul(highW, high));
  const bestNext = i16x8.max_s(i16x8.mul(lowX, nextLow), i16x8.mul(highX, nextHigh));
  const otherBest = i16x8.max_s(i16x8.mul(lowY, low), i16x8.mul(highY, high));
  const otherNext = i16x8.max_s(i16x8.mul(lowZ, nextLow), i16x8.mul(highZ, nextHigh));
  const ones = maxInTurns(best, bestNext);
  const others = maxInTurns(otherBest, otherNext);
  return i16x8.max_s(v128.shuffle<i32>(ones, others, 0, 4, 1, 5), v128.shuffle<i32>(ones, others, 2, 6, 3, 7));
}

/** What there is so far and more; only the latter if there was nothing yet. */
// @ts-ignore: decorator
@inline
function plus(sofar: v128, more: v128, isFirst: bool): v128 {
  return isFirst ? more : i16x8.add(sofar, more);
}

/** Sums of tokens 0 to 7 from their halves; `odd`: 128 in every byte where sums are odd. */
// @ts-ignore: decorator
@inline
function lowSums(odd: v128, halves: v128): v128 {
  return i16x8.shr_s(v128.shuffle<i8>(odd, halves, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), 7);
}

/** Those of tokens 8 to 15. */
// @ts-ignore: decorator
@inline
function highSums(odd: v128, halves: v128): v128 {
  return i16x8.shr_s(v128.shuffle<i8>(odd, halves, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), 7);
}

/** The larger of lanes i and i + 4 of the one, then of the other, i from 0 to 3. */
// @ts-ignore: decorator
@inline
function maxInTurns(one: v128, other: v128): v128 {
  return i16x8.max_s(
    v128.shuffle<i16>(one, other, 0, 8, 1, 9, 2, 10, 3, 11), v128.shuffle<i16>(one, other, 4, 12, 5, 13, 6, 14, 7, 15),
  );
}

/** The upper four bits of every byte. */
// @ts-ignore: decorator
@inline
function upperHalf(v: v128, lowHalf: v128): v128 {
  return v128.and(i16x8.shr_u(v, 4), lowHalf);
}
