// Page scores in integers: codes of q (16 bits) times codes of summaries (8 bits), summed exactly in 32 bits, then three f32 products and a
// sum (see `PageScorer` in kernels/contract.ts). Bytes: 2 * (headDim + 4) a page and KV head. The unit record is described in select.ts.
// Loads of 8 codes run up to 4 codes over a vector whose width is no multiple of 8: these lie in the same slot and meet zeros.
import { arg, argAt, argF32 } from "./control";
import { summaryHeadBytes } from "./summaries";
import { maxLanes, sumLanes4i } from "./vector";

const UNIT_BYTES: usize = 96;
const NEGATIVE_INFINITY: f32 = -Infinity;

// @ts-ignore: decorator
@inline
function at(unit: usize, offset: usize): usize {
  return <usize>load<u32>(unit + offset);
}

/** Bytes of the codes of one query: zeros up to a multiple of 8. */
// @ts-ignore: decorator
@inline
function codeBytes(headDim: usize): usize {
  return ((headDim + 7) & ~7) << 1;
}

/**
 * Codes (i16 [vectors][headDim, padded to eights]) and scales (f32 [vectors]) of query vectors.
 * Task = part. args: q f32 [vectors][headDim], codes, scales, vectors, headDim, vectors of a part
 */
export function quantizeQueriesTask(task: i32): void {
  const headDim = <usize>arg(4);
  const end = min(arg(3), (task + 1) * arg(5));
  for (let vector = <usize>(task * arg(5)); vector < <usize>end; vector++) {
    const q = argAt(0) + vector * headDim * 4;
    const codes = argAt(1) + vector * codeBytes(headDim);
    let largest = f32x4.splat(0);
    for (let i: usize = 0; i < headDim << 2; i += 16) largest = f32x4.max(largest, f32x4.abs(v128.load(q + i)));
    const scale = maxLanes(largest) / <f32>32767;
    store<f32>(argAt(2) + (vector << 2), scale);
    for (let i: usize = 0; i < headDim << 2; i += 32) {
      const low = queryCodes4(v128.load(q + i), scale);
      const high = i + 16 < headDim << 2 ? queryCodes4(v128.load(q + i, 16), scale) : i32x4.splat(0);
      v128.store(codes + (i >> 1), i16x8.narrow_i32x4_s(low, high));
    }
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
 * Scores a chunk of candidate pages. Combine max reduces at once, softmax-sum leaves raw scores. A task takes some units side by side, block
 * by block: the KV heads of a layer lie together, and one thread reads large pieces faster than small ones. Task = team of units * chunks +
 * chunk. args: units, chunks, blocks of a chunk, headCount, heads per KV head, headDim, query codes, query scales, units of a team,
 * unit count, bytes of a summary slot
 */
export function scorePagesTask(task: i32): void {
  const team = (task / arg(1)) * arg(8);
  const teamEnd = min(arg(9), team + arg(8));
  const first = (task % arg(1)) * arg(2);
  for (let block = first; block < first + arg(2); block++) {
    for (let index = team; index < teamEnd; index++) scoreBlock(argAt(0) + <usize>index * UNIT_BYTES, block);
  }
}

/** The candidates of a unit that lie in its `index`-th block, two by two. */
function scoreBlock(unit: usize, index: i32): void {
  const firstPage = <i32>at(unit, 20);
  const block = (firstPage >> 2) + index;
  const begin = block * 4 - firstPage;
  const end = min(<i32>at(unit, 24), begin + 4);
  if (end <= begin) return;
  const slot = at(at(unit, 28) + (<usize>block << 2), 0);
  const summary = at(unit, 60) + slot * argAt(10);
  for (let item = max(0, begin); item < end; item += 2) {
    const next = min(item + 1, end - 1);
    scoreTwoPages(unit, summary, item, next, <usize>(item - begin), <usize>(next - begin));
  }
}

/** Two items of one block (perhaps the same twice), pages `page` and `next` of it, for all queries of the tile. */
function scoreTwoPages(unit: usize, summary: usize, item: i32, nextItem: i32, page: usize, next: usize): void {
  const headDim = <usize>arg(5);
  const group = arg(4);
  const heads = <i32>at(unit, 12);
  const weight = load<f32>(unit, 52);
  const isMax = at(unit, 56) == 0;
  const stride = at(unit, 64) << 2;
  const scores = at(unit, 32);
  const itemAt = (<usize>item) << 2;
  const nextAt = (<usize>nextItem) << 2;
  let query = <i32>at(unit, 4);
  const queryEnd = query + <i32>at(unit, 8);
  let row = 0, head = 0;
  let best: f32 = NEGATIVE_INFINITY, nextBest: f32 = NEGATIVE_INFINITY;
  if (query != 0) {
    row = query / heads;
    head = query % heads;
    if (isMax) {
      best = load<f32>(scores + itemAt);
      nextBest = load<f32>(scores + nextAt);
    }
  }
  let raw = at(unit, 36);
  while (query < queryEnd) {
    // The query heads of one KV head in one row, as far as they belong to the tile.
    const kvHead = head / group;
    const headEnd = min((kvHead + 1) * group, head + queryEnd - query);
    const base = summary + (at(unit, 16) + <usize>kvHead) * summaryHeadBytes(headDim);
    let vector = at(unit, 80) + <usize>(row * arg(3) + head);
    query += headEnd - head;
    for (; head < headEnd; head += 2) {
      const isPair = head + 1 < headEnd;
      const sums = scoreTwoByTwo(vector, isPair ? vector + 1 : vector, base, page, next, headDim, weight);
      if (isMax) {
        best = max<f32>(max<f32>(best, f32x4.extract_lane(sums, 0)), f32x4.extract_lane(sums, 1));
        nextBest = max<f32>(max<f32>(nextBest, f32x4.extract_lane(sums, 2)), f32x4.extract_lane(sums, 3));
      } else {
        store<f32>(raw + itemAt, f32x4.extract_lane(sums, 0));
        store<f32>(raw + nextAt, f32x4.extract_lane(sums, 2));
        raw += stride;
        if (isPair) {
          store<f32>(raw + itemAt, f32x4.extract_lane(sums, 1));
          store<f32>(raw + nextAt, f32x4.extract_lane(sums, 3));
          raw += stride;
        }
      }
      vector += 2;
    }
    head = headEnd;
    if (head == heads) {
      head = 0;
      row++;
    }
  }
  if (!isMax) return;
  store<f32>(scores + itemAt, best);
  store<f32>(scores + nextAt, nextBest);
}

/** {page with first query, page with second, next with first, next with second}. */
// @ts-ignore: decorator
@inline
function scoreTwoByTwo(first: usize, second: usize, base: usize, page: usize, next: usize, headDim: usize, weight: f32): v128 {
  const bytes = codeBytes(headDim);
  const codes = argAt(6);
  const centre = base + (page * headDim << 1);
  const nextCentre = base + (next * headDim << 1);
  let q = codes + first * bytes;
  let p = codes + second * bytes;
  let a = i32x4.splat(0), b = i32x4.splat(0), c = i32x4.splat(0), d = i32x4.splat(0);
  let e = i32x4.splat(0), f = i32x4.splat(0), g = i32x4.splat(0), h = i32x4.splat(0);
  for (let i: usize = 0; i < headDim; i += 8) {
    let x = v128.load(q);
    let y = v128.load(p);
    let v = v128.load8x8_s(centre + i);
    a = i32x4.add(a, i32x4.dot_i16x8_s(x, v));
    b = i32x4.add(b, i32x4.dot_i16x8_s(y, v));
    v = v128.load8x8_s(nextCentre + i);
    c = i32x4.add(c, i32x4.dot_i16x8_s(x, v));
    d = i32x4.add(d, i32x4.dot_i16x8_s(y, v));
    x = i16x8.abs(x);
    y = i16x8.abs(y);
    v = v128.load8x8_s(centre + headDim + i);
    e = i32x4.add(e, i32x4.dot_i16x8_s(x, v));
    f = i32x4.add(f, i32x4.dot_i16x8_s(y, v));
    v = v128.load8x8_s(nextCentre + headDim + i);
    g = i32x4.add(g, i32x4.dot_i16x8_s(x, v));
    h = i32x4.add(h, i32x4.dot_i16x8_s(y, v));
    q += 16;
    p += 16;
  }
  const scales = base + (headDim << 3);
  // {centre, radius} of the page, then of the next one.
  const pair = v128.load64_zero(scales + (page << 3));
  const nextPair = v128.load64_zero(scales + (next << 3));
  const qScale = load<f32>(argAt(7) + (first << 2));
  const qScales = f32x4.replace_lane(f32x4.replace_lane(f32x4.splat(qScale), 1, load<f32>(argAt(7) + (second << 2))), 3, load<f32>(argAt(7) + (second << 2)));
  const centreUnits = f32x4.mul(qScales, v128.shuffle<f32>(pair, nextPair, 0, 0, 4, 4));
  const radiusUnits = f32x4.mul(f32x4.mul(qScales, v128.shuffle<f32>(pair, nextPair, 1, 1, 5, 5)), f32x4.splat(weight));
  const towards = f32x4.convert_i32x4_s(sumLanes4i(a, b, c, d));
  const reach = f32x4.convert_i32x4_s(sumLanes4i(e, f, g, h));
  return f32x4.add(f32x4.mul(centreUnits, towards), f32x4.mul(radiusUnits, reach));
}
