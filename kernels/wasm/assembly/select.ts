// Selection: token scores from keys (page scores are in score-pages.ts), soft votes, and the best K. One unit is one query group in one KV head
// (or in the whole layer). The unit record, mirrored in kernels/wasm/selection-units.ts:
//   0 q of the first row and head   4 first query   8 query count   12 query heads of the unit   16 first KV head
//   20 first candidate page   24 item count   28 summary slots of the slice   32 scores [items]   36 raw scores [queries][stride]
//   40 stats [queries]{max, sum}   44 K   48 chosen items [K]   52 radius weight (f32)   56 combine (0 max, 1 softmax-sum)
//   60 summaries of the kind and layer in slot 0, head 0   64 stride of raw scores (elements, a multiple of 4)
//   72 kept pages (tokens: item = kept index * 16 + token)   76 block ids of the layer
//   80 index of the first row and head among the query codes
// A query is a (row, head) pair of the unit, rows first. Queries run in tiles, so that raw scores stay small.
import { arg, argAt, argF32, scratchOf } from "./control";
import { scoreTokens } from "./dot";
import { decodeKeys } from "./kv-decode";
import { exp1, exp4, maxLanes, sumLanes } from "./vector";

const UNIT_BYTES: usize = 96;
const NEGATIVE_INFINITY: f32 = -Infinity;

// @ts-ignore: decorator
@inline
function at(unit: usize, offset: usize): usize {
  return <usize>load<u32>(unit + offset);
}

/**
 * Raw scores q.k of the tokens of kept pages, all of them resident. Task = unit * chunks + chunk of kept pages.
 * args: units, chunks, pages of a chunk, headCount, heads per KV head, headDim, blocks, block bytes, int8?, offset of key scales,
 * KV head count
 */
export function scoreTokensTask(task: i32, thread: i32): void {
  const unit = argAt(0) + <usize>(task / arg(1)) * UNIT_BYTES;
  const pageCount = <i32>(at(unit, 24) >> 4);
  const first = (task % arg(1)) * arg(2);
  const end = min(pageCount, first + arg(2));
  for (let index = first; index < end; index++) {
    const page = at(at(unit, 72) + ((<usize>index) << 2), 0);
    const id = at(at(unit, 76) + ((page >> 2) << 2), 0);
    for (let head = 0; head < arg(10); head++) scorePageTokens(unit, index, <usize>(page & 3) * 16, id, head, thread);
  }
}

function scorePageTokens(unit: usize, index: i32, token: usize, id: usize, kvHead: i32, thread: i32): void {
  const headDim = <usize>arg(5);
  const group = arg(4);
  const heads = <i32>at(unit, 12);
  const stride = at(unit, 64) << 2;
  const block = argAt(6) + id * argAt(7);
  let keys = block + (<usize>kvHead * 64 + token) * headDim * 4;
  if (arg(8) != 0) {
    const scales = block + argAt(9) + <usize>kvHead * headDim * 4;
    decodeKeys(scratchOf(thread), block + <usize>kvHead * 64 * headDim, scales, headDim, token, token + 16);
    keys = scratchOf(thread) + token * headDim * 4;
  }
  const queryFirst = <i32>at(unit, 4);
  const queryEnd = queryFirst + <i32>at(unit, 8);
  const raw = at(unit, 36) + ((<usize>index) << 6);
  for (let row = queryFirst / heads; row * heads < queryEnd; row++) {
    const first = max(queryFirst, row * heads + kvHead * group);
    const end = min(queryEnd, row * heads + (kvHead + 1) * group);
    if (first >= end) continue;
    const q = at(unit, 0) + <usize>(row * arg(3) + first - row * heads) * headDim * 4;
    scoreTokens(raw + <usize>(first - queryFirst) * stride, stride, q, end - first, keys, 16, headDim, 1);
  }
}

/** Softmax of one query over the items: the largest score and the sum. Task = unit * tile + query of the tile. args: units, tile, scale */
export function voteStatsTask(task: i32): void {
  const unit = argAt(0) + <usize>(task / arg(1)) * UNIT_BYTES;
  const query = task % arg(1);
  if (query >= <i32>at(unit, 8)) return;
  const itemCount = at(unit, 24);
  const raw = at(unit, 36) + <usize>query * (at(unit, 64) << 2);
  const scale = argF32(2);
  const end = itemCount << 2;
  const vectorEnd = end & ~15;
  let largest = f32x4.splat(NEGATIVE_INFINITY);
  for (let i: usize = 0; i < vectorEnd; i += 16) largest = f32x4.max(largest, v128.load(raw + i));
  let most = maxLanes(largest);
  for (let i = vectorEnd; i < end; i += 4) most = max<f32>(most, load<f32>(raw + i));
  // No finite score: any finite maximum keeps e^(-inf) = 0 and avoids inf - inf.
  const shift: f32 = most == NEGATIVE_INFINITY ? 0 : most * scale;
  let sums = f32x4.splat(0);
  for (let i: usize = 0; i < vectorEnd; i += 16) {
    sums = f32x4.add(sums, exp4(f32x4.sub(f32x4.mul(v128.load(raw + i), f32x4.splat(scale)), f32x4.splat(shift))));
  }
  let sum = sumLanes(sums);
  for (let i = vectorEnd; i < end; i += 4) sum += exp1(load<f32>(raw + i) * scale - shift);
  const stats = at(unit, 40) + ((<usize>query) << 3);
  store<f32>(stats, shift);
  store<f32>(stats, sum == 0 ? <f32>1 : sum, 4);
}

/** Adds the tile's softmaxes to the scores, queries ascending. Task = unit * chunks + chunk. args: units, chunks, items of a chunk, scale */
export function voteSumTask(task: i32): void {
  const unit = argAt(0) + <usize>(task / arg(1)) * UNIT_BYTES;
  const first = (task % arg(1)) * arg(2);
  const end = min(<i32>at(unit, 24), first + arg(2));
  const stride = at(unit, 64) << 2;
  const scales = f32x4.splat(argF32(3));
  const isFirst = at(unit, 4) == 0;
  // Rows of scores are padded to fours, so the last vector may run over.
  for (let item = first; item < end; item += 4) {
    const offset = (<usize>item) << 2;
    let total = isFirst ? f32x4.splat(0) : v128.load(at(unit, 32) + offset);
    let raw = at(unit, 36) + offset;
    let stats = at(unit, 40);
    for (let query = at(unit, 8); query > 0; query--) {
      const e = exp4(f32x4.sub(f32x4.mul(v128.load(raw), scales), v128.load32_splat(stats)));
      total = f32x4.add(total, f32x4.div(e, v128.load32_splat(stats, 4)));
      raw += stride;
      stats += 8;
    }
    v128.store(at(unit, 32) + offset, total);
  }
}

/** The K best items of a unit, ascending; ties to the lower item, NaN below everything. Task = unit. args: units */
export function topKTask(task: i32, thread: i32): void {
  const unit = argAt(0) + <usize>task * UNIT_BYTES;
  const count = at(unit, 24);
  const wanted = <i32>at(unit, 44);
  const scores = at(unit, 32);
  const histogram = scratchOf(thread);
  let prefix: u32 = 0;
  let left = wanted;
  // Radix select from the top byte: after each round `prefix` holds the leading bytes of the K-th best key.
  for (let shift: u32 = 24; ; shift -= 8) {
    memory.fill(histogram, 0, 1024);
    const above: u32 = shift == 24 ? 0 : (<u32>0xffffffff) << (shift + 8);
    for (let item: usize = 0; item < count; item++) {
      const key = orderKey(load<f32>(scores + (item << 2)));
      if ((key & above) != prefix) continue;
      const bin = histogram + (<usize>((key >> shift) & 255) << 2);
      store<u32>(bin, load<u32>(bin) + 1);
    }
    let bin: u32 = 255;
    for (; bin > 0; bin--) {
      const inBin = load<i32>(histogram + (<usize>bin << 2));
      if (inBin >= left) break;
      left -= inBin;
    }
    prefix |= bin << shift;
    if (shift == 0) break;
  }
  let out = at(unit, 48);
  const outEnd = out + ((<usize>wanted) << 2);
  for (let item: usize = 0; item < count && out < outEnd; item++) {
    const key = orderKey(load<f32>(scores + (item << 2)));
    if (key < prefix) continue;
    if (key == prefix && left-- <= 0) continue;
    store<u32>(out, <u32>item);
    out += 4;
  }
}

/** Larger for larger scores; -0 equals 0, NaN equals -Infinity. */
// @ts-ignore: decorator
@inline
function orderKey(score: f32): u32 {
  const bits = reinterpret<u32>(score != score ? NEGATIVE_INFINITY : score + <f32>0);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000;
}
