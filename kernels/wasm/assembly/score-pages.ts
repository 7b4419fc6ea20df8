// Page scores in integers: codes of q (16 bits) times codes of summaries (8 bits), summed exactly in 32 bits, then three f32 products and a
// sum (see `PageScorer` in kernels/contract.ts). Bytes: 2 * (headDim + 4) a page and KV head; the summaries of a KV head of a layer lie slot
// by slot. Loads of 8 codes run up to 4 codes over a vector whose width is no multiple of 8: these lie in the same slot and meet zeros.
import { arg, argAt } from "./control";
import { scoreResidualPair, turnQuery } from "./residual-scores";
import { blockCentreBytes, summaryHeadBytes } from "./summaries";
import { rawAt, storeScores, summaryOf } from "./unit-scores";
import { at, UNIT_BYTES, word } from "./units";
import { larger4, maxLanes, sumLanes4i } from "./vector";

/** Bytes of the codes of one query: zeros up to a multiple of 8. */
// @ts-ignore: decorator
@inline
function codeBytes(headDim: usize): usize {
  return ((headDim + 7) & ~7) << 1;
}

/**
 * Codes (i16 [vectors][headDim, padded to eights]) and scales (f32 [vectors]) of query vectors; turned ones (residual-signs.ts) too, where they are asked for.
 * Task = part. args: q f32 [vectors][headDim], codes, scales, first vector, end, headDim, vectors of a part, turned queries, whether they are wanted
 */
export function quantizeQueriesTask(task: i32): void {
  const headDim = <usize>arg(5);
  const first = arg(3) + task * arg(6);
  const end = min(arg(4), first + arg(6));
  for (let vector = <usize>first; vector < <usize>end; vector++) {
    const q = argAt(0) + vector * headDim * 4;
    const codes = argAt(1) + vector * codeBytes(headDim);
    let largest = f32x4.splat(0);
    for (let i: usize = 0; i < headDim << 2; i += 16) largest = larger4(largest, f32x4.abs(v128.load(q + i)));
    const scale = maxLanes(largest) / <f32>32767;
    store<f32>(argAt(2) + (vector << 2), scale);
    for (let i: usize = 0; i < headDim << 2; i += 32) {
      const low = queryCodes4(v128.load(q + i), scale);
      const high = i + 16 < headDim << 2 ? queryCodes4(v128.load(q + i, 16), scale) : i32x4.splat(0);
      v128.store(codes + (i >> 1), i16x8.narrow_i32x4_s(low, high));
    }
    if (arg(8) != 0) turnQuery(argAt(7), vector, codes, scale, headDim);
  }
}

// @ts-ignore: decorator
@inline
function queryCodes4(x: v128, scale: f32): v128 {
  const scales = f32x4.splat(scale);
  const codes = i32x4.trunc_sat_f32x4_s(f32x4.nearest(f32x4.div(x, scales)));
  const kept = i32x4.min_s(i32x4.max_s(codes, i32x4.splat(-32767)), i32x4.splat(32767));
  return v128.andnot(kept, f32x4.eq(scales, f32x4.splat(0)));
}

/**
 * Scores a chunk of blocks of candidate pages, or of fours of blocks where their centres are ranked. Combine max reduces at once, softmax-sum leaves raw scores. Task = unit * chunks + chunk.
 * args: units, chunks, blocks of a chunk, headCount, heads per KV head, headDim, query codes, query scales, layer, KV head count, bytes
 * from one KV head's summaries to the next one's, the same for centres of blocks, turned queries
 */
export function scorePagesTask(task: i32): void {
  const unit = argAt(0) + <usize>(task / arg(1)) * UNIT_BYTES;
  const blockCount = (word(unit, 24) + 3) >> 2;
  const first = (task % arg(1)) * arg(2);
  const end = min(blockCount, first + arg(2));
  if (first >= end) return;
  const group = arg(4);
  const heads = word(unit, 12);
  const queryFirst = word(unit, 4);
  const queryEnd = queryFirst + word(unit, 8);
  const headBytes = argAt(word(unit, 112) == 3 ? 11 : 10);
  const layer = at(unit, 72) + <usize>(arg(8) * arg(9) + word(unit, 16)) * headBytes;
  let row = queryFirst / heads;
  let head = queryFirst - row * heads;
  for (let query = queryFirst; query < queryEnd; ) {
    // The query heads of one KV head in one row, as far as they belong to the tile, two by two.
    const kvHead = head / group;
    const headEnd = min((kvHead + 1) * group, head + queryEnd - query);
    const summaries = layer + <usize>kvHead * headBytes;
    const vectors = at(unit, 0) + <usize>(row * arg(3));
    for (; head < headEnd; head += 2) {
      const isPair = head + 1 < headEnd;
      if (word(unit, 112) == 4) scoreResidualPair(unit, query, isPair, vectors + <usize>head, summaries, first, end);
      else scorePair(unit, query, isPair, vectors + <usize>head, summaries, first, end);
      query += isPair ? 2 : 1;
    }
    head = headEnd;
    if (head == heads) {
      head = 0;
      row++;
    }
  }
}

/**
 * The pages of blocks [first, end) for query vector `vector` and, if there is a pair, the next one. Queries are the outer loop: the summaries of a
 * chunk stay in a core's first cache, and what belongs to the queries in registers.
 */
function scorePair(unit: usize, query: i32, isPair: bool, vector: usize, summaries: usize, first: i32, end: i32): void {
  const headDim = <usize>arg(5);
  const bytes = codeBytes(headDim);
  const q = argAt(6) + vector * bytes;
  const p = isPair ? q + bytes : q;
  const ones = v128.load32_zero(argAt(7) + (vector << 2));
  const others = v128.load32_zero(argAt(7) + ((isPair ? vector + 1 : vector) << 2));
  // The first query's scale and the second's, twice.
  const scales = v128.shuffle<f32>(ones, others, 0, 4, 0, 4);
  const weights = v128.load32_splat(unit, 52);
  const slots = at(unit, 68) + (at(unit, 64) << 2);
  const form = word(unit, 112);
  const raw = rawAt(unit, query);
  const stride = at(unit, 40) << 2;
  const list = at(unit, 116);
  for (let block = first; block < end; block++) {
    let one: v128;
    let other: v128;
    if (form == 3) {
      const fours = fourCentres(unit, summaries, slots, headDim, block << 2);
      one = scoreCentres(q, scales, fours, headDim);
      other = isPair ? scoreCentres(p, v128.shuffle<f32>(scales, scales, 1, 0, 1, 0), fours, headDim) : one;
    } else {
      const summary = summaryOf(summaries, summaryHeadBytes(headDim), slots, list, block);
      if (form == 2) {
        one = scoreSigns(q, summary, headDim);
        other = isPair ? scoreSigns(p, summary, headDim) : one;
      } else {
        let low: v128;
        let high: v128;
        if (form == 0) {
          low = scoreTwoPages(q, p, scales, weights, summary, headDim, 0, true);
          high = scoreTwoPages(q, p, scales, weights, summary, headDim, 2, true);
        } else {
          low = scoreTwoPages(q, p, scales, weights, summary, headDim, 0, false);
          high = scoreTwoPages(q, p, scales, weights, summary, headDim, 2, false);
        }
        one = v128.shuffle<f32>(low, high, 0, 2, 4, 6);
        other = v128.shuffle<f32>(low, high, 1, 3, 5, 7);
      }
    }
    storeScores(unit, raw, stride, query, isPair, block, one, other);
  }
}

/** Pages `page` and `page` + 1 of a block: see {@link scoreTwoByTwo}. */
// @ts-ignore: decorator
@inline
function scoreTwoPages(q: usize, p: usize, qScales: v128, weights: v128, summary: usize, headDim: usize, page: usize, isRadius: bool): v128 {
  const centre = summary + (page * headDim << 1);
  const scales = v128.load(summary + (headDim << 3) + (page << 3));
  return scoreTwoByTwo(q, p, qScales, weights, centre, centre + (headDim << 1), scales, headDim, isRadius);
}

/** Addresses of the centres of four blocks; behind the last one that one again. */
// @ts-ignore: decorator
@inline
function fourCentres(unit: usize, centres: usize, slots: usize, headDim: usize, item: i32): v128 {
  const last = i32x4.splat(word(unit, 24) - 1);
  const items = i32x4.min_s(i32x4.add(i32x4.splat(item), i32x4(0, 1, 2, 3)), last);
  const a = load<i32>(slots + (<usize>i32x4.extract_lane(items, 0) << 2));
  const b = load<i32>(slots + (<usize>i32x4.extract_lane(items, 1) << 2));
  const c = load<i32>(slots + (<usize>i32x4.extract_lane(items, 2) << 2));
  const d = load<i32>(slots + (<usize>i32x4.extract_lane(items, 3) << 2));
  let places = i32x4.splat(a);
  places = i32x4.replace_lane(places, 1, b);
  places = i32x4.replace_lane(places, 2, c);
  places = i32x4.replace_lane(places, 3, d);
  return i32x4.add(i32x4.splat(<i32>centres), i32x4.mul(places, i32x4.splat(<i32>blockCentreBytes(headDim))));
}

/** One query against four centres; its scale is lane 0 of `scales`. */
// @ts-ignore: decorator
@inline
function scoreCentres(q: usize, scales: v128, centres: v128, headDim: usize): v128 {
  const first = <usize>(<u32>i32x4.extract_lane(centres, 0));
  const second = <usize>(<u32>i32x4.extract_lane(centres, 1));
  const third = <usize>(<u32>i32x4.extract_lane(centres, 2));
  const fourth = <usize>(<u32>i32x4.extract_lane(centres, 3));
  let a = i32x4.splat(0), b = i32x4.splat(0), c = i32x4.splat(0), d = i32x4.splat(0);
  for (let i: usize = 0; i < headDim; i += 8) {
    const x = v128.load(q + (i << 1));
    a = i32x4.add(a, i32x4.dot_i16x8_s(x, v128.load8x8_s(first + i)));
    b = i32x4.add(b, i32x4.dot_i16x8_s(x, v128.load8x8_s(second + i)));
    c = i32x4.add(c, i32x4.dot_i16x8_s(x, v128.load8x8_s(third + i)));
    d = i32x4.add(d, i32x4.dot_i16x8_s(x, v128.load8x8_s(fourth + i)));
  }
  let own = v128.load32_zero(first + headDim);
  own = v128.load32_lane(second + headDim, own, 1);
  own = v128.load32_lane(third + headDim, own, 2);
  own = v128.load32_lane(fourth + headDim, own, 3);
  const units = f32x4.mul(v128.shuffle<f32>(scales, scales, 0, 0, 0, 0), own);
  return f32x4.mul(units, f32x4.convert_i32x4_s(sumLanes4i(a, b, c, d)));
}

/**
 * A summary and the next one: {it with first query, it with second, next with first, next with second}. The second vector of a summary is a radius
 * and meets the query's magnitudes, or a key and meets the query. `scales`: {centre, radius} of the one, then of the next.
 */
// @ts-ignore: decorator
@inline
function scoreTwoByTwo(
  q: usize, p: usize, qScales: v128, weights: v128, centre: usize, nextCentre: usize, scales: v128, headDim: usize, isRadius: bool,
): v128 {
  const radius = centre + headDim;
  const nextRadius = nextCentre + headDim;
  let a = i32x4.splat(0), b = i32x4.splat(0), c = i32x4.splat(0), d = i32x4.splat(0);
  let e = i32x4.splat(0), f = i32x4.splat(0), g = i32x4.splat(0), h = i32x4.splat(0);
  for (let i: usize = 0; i < headDim; i += 8) {
    let x = v128.load(q + (i << 1));
    let y = v128.load(p + (i << 1));
    let v = v128.load8x8_s(centre + i);
    a = i32x4.add(a, i32x4.dot_i16x8_s(x, v));
    b = i32x4.add(b, i32x4.dot_i16x8_s(y, v));
    v = v128.load8x8_s(nextCentre + i);
    c = i32x4.add(c, i32x4.dot_i16x8_s(x, v));
    d = i32x4.add(d, i32x4.dot_i16x8_s(y, v));
    if (isRadius) {
      x = i16x8.abs(x);
      y = i16x8.abs(y);
    }
    v = v128.load8x8_s(radius + i);
    e = i32x4.add(e, i32x4.dot_i16x8_s(x, v));
    f = i32x4.add(f, i32x4.dot_i16x8_s(y, v));
    v = v128.load8x8_s(nextRadius + i);
    g = i32x4.add(g, i32x4.dot_i16x8_s(x, v));
    h = i32x4.add(h, i32x4.dot_i16x8_s(y, v));
  }
  const centreUnits = f32x4.mul(qScales, v128.shuffle<f32>(scales, scales, 0, 0, 2, 2));
  const radiusUnits = f32x4.mul(f32x4.mul(qScales, v128.shuffle<f32>(scales, scales, 1, 1, 3, 3)), weights);
  const towards = f32x4.convert_i32x4_s(sumLanes4i(a, b, c, d));
  const reach = f32x4.convert_i32x4_s(sumLanes4i(e, f, g, h));
  return f32x4.add(f32x4.mul(centreUnits, towards), f32x4.mul(radiusUnits, reach));
}

/** Scores of a block's four pages by sign bits: a vector of bytes holds eight channels of a page's 16 tokens. */
function scoreSigns(q: usize, summary: usize, headDim: usize): v128 {
  const scales = summary + (headDim << 3);
  let scores = f32x4.splat(0);
  for (let page: usize = 0; page < 4; page++) {
    const bits = summary + (page * headDim << 1);
    let mismatches = i8x16.splat(0);
    for (let i: usize = 0; i < headDim; i += 8) {
      const signs = i8x16.splat(<i8>i16x8.bitmask(v128.load(q + (i << 1))));
      mismatches = i8x16.add_sat_u(mismatches, i8x16.popcnt(v128.xor(v128.load(bits + (i << 1)), signs)));
    }
    const score = load<f32>(scales + (page << 3)) * <f32>(<i32>headDim - leastByte(mismatches));
    // The first page is to be lane 0 in the end.
    scores = f32x4.replace_lane(v128.shuffle<f32>(scores, scores, 1, 2, 3, 0), 3, score);
  }
  return scores;
}

// @ts-ignore: decorator
@inline
function leastByte(v: v128): i32 {
  let least = i8x16.min_u(v, v128.shuffle<i64>(v, v, 1, 0));
  least = i8x16.min_u(least, v128.shuffle<i32>(least, least, 1, 0, 3, 2));
  least = i8x16.min_u(least, v128.shuffle<i16>(least, least, 1, 0, 3, 2, 5, 4, 7, 6));
  return <i32>min<u8>(<u8>i8x16.extract_lane_u(least, 0), <u8>i8x16.extract_lane_u(least, 1));
}
