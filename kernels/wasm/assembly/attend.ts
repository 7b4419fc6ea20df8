// Attention. A tile is up to 32 queries (rows of one query group in one block of 64 positions, times the query heads of a KV head); a task
// is a tile in one KV head, or one split (512 positions) of it where there are few tiles. Reduction order is that of the contract: within a
// split one online softmax per block, then splits in ascending order, so tiles, threads and the cut into tasks do not show in the result.
// Measured, one thread of a shared AMD EPYC (AVX-512) core, Node 24.21, head width 64, 8 KV heads, f32: decode of 2,048 positions (in cache)
// 29 GB/s; 64 rows of 16 heads at 16,384 positions 22 GFLOP/s.
//
// Tile record, mirrored in kernels/wasm/attend-tiles.ts:
//   0 first row   4 row count   8 position of the first row   12 block ids of the layer   16 page masks (0: all pages)
//   20 bytes of page masks per KV head   24 token masks (0: all tokens of a page)   28 open slot   32 partial results   36 split count
//   40 query group
import { arg, argAt, argF32, scratchOf } from "./control";
import { scoreTokens } from "./dot";
import { decodeKeys, decodeValues } from "./kv-decode";
import { exp1, exp4, maxLanes, sumLanes } from "./vector";

const TILE_BYTES: usize = 48;
const NEGATIVE_INFINITY: f32 = -Infinity;
const SCORE_BYTES: usize = 256;
/** Tiles of at most this many queries wait for memory more than they compute. */
const FEW_QUERIES: i32 = 8;

// args: 0 tiles, 1 KV head count, 2 heads per KV head, 3 headDim, 4 q, 5 out, 6 scale, 7 blocks, 8 block bytes, 9 int8?, offsets in a
// block: 10 key scales, 11 values, 12 value scales; 13 open slots, 14 slot bytes, offsets in a slot: 15 keys of the layer, 16 values;
// 17 largest split count (0: a task does all splits), 18 queries of the largest tile

// The scratch of a task, after the queries: state per query {max, sum} of the split and of all splits, scores, outputs of both, decoded KV.
// @ts-ignore: decorator
@inline
function queriesAt(thread: i32): usize {
  return scratchOf(thread);
}
// @ts-ignore: decorator
@inline
function outputBytes(): usize {
  return <usize>arg(18) * <usize>arg(3) * 4;
}
// @ts-ignore: decorator
@inline
function splitStateAt(thread: i32): usize {
  return scratchOf(thread) + outputBytes();
}
// @ts-ignore: decorator
@inline
function finalStateAt(thread: i32): usize {
  return splitStateAt(thread) + <usize>arg(18) * 8;
}
// @ts-ignore: decorator
@inline
function scoresAt(thread: i32): usize {
  return finalStateAt(thread) + <usize>arg(18) * 8;
}
// @ts-ignore: decorator
@inline
function splitOutputAt(thread: i32): usize {
  return scoresAt(thread) + <usize>arg(18) * SCORE_BYTES;
}
// @ts-ignore: decorator
@inline
function finalOutputAt(thread: i32): usize {
  return splitOutputAt(thread) + outputBytes();
}
// @ts-ignore: decorator
@inline
function decodedAt(thread: i32): usize {
  return finalOutputAt(thread) + outputBytes();
}

/** Task = (tile * KV head count + KV head) [* largest split count + split]. */
export function attendTask(task: i32, thread: i32): void {
  const splitMax = arg(17);
  const unit = splitMax == 0 ? task : task / splitMax;
  const tile = argAt(0) + <usize>(unit / arg(1)) * TILE_BYTES;
  const kvHead = unit % arg(1);
  const queryCount = load<i32>(tile, 4) * arg(2);
  const splitCount = load<i32>(tile, 36);
  if (splitMax == 0) {
    loadQueries(tile, kvHead, thread);
    clearState(finalStateAt(thread), finalOutputAt(thread), queryCount);
    for (let split = 0; split < splitCount; split++) {
      if (!attendSplit(tile, kvHead, split, thread)) continue;
      merge(finalStateAt(thread), finalOutputAt(thread), splitStateAt(thread), splitOutputAt(thread), queryCount);
    }
    finish(tile, kvHead, finalStateAt(thread), finalOutputAt(thread));
    return;
  }
  const split = task % splitMax;
  if (split >= splitCount) return;
  loadQueries(tile, kvHead, thread);
  const partial = partialAt(tile, kvHead, split);
  if (attendSplit(tile, kvHead, split, thread)) {
    memory.copy(partial, splitStateAt(thread), <usize>queryCount * 8);
    memory.copy(partial + <usize>queryCount * 8, splitOutputAt(thread), <usize>queryCount * <usize>arg(3) * 4);
  } else {
    store<f32>(partial, NEGATIVE_INFINITY);
  }
}

/** Second pass where splits ran as tasks. Task = tile * KV head count + KV head; same arguments. */
export function attendMergeTask(task: i32, thread: i32): void {
  const tile = argAt(0) + <usize>(task / arg(1)) * TILE_BYTES;
  const kvHead = task % arg(1);
  const queryCount = load<i32>(tile, 4) * arg(2);
  clearState(finalStateAt(thread), finalOutputAt(thread), queryCount);
  for (let split = 0; split < load<i32>(tile, 36); split++) {
    const partial = partialAt(tile, kvHead, split);
    if (load<f32>(partial) == NEGATIVE_INFINITY) continue;
    merge(finalStateAt(thread), finalOutputAt(thread), partial, partial + <usize>queryCount * 8, queryCount);
  }
  finish(tile, kvHead, finalStateAt(thread), finalOutputAt(thread));
}

function partialAt(tile: usize, kvHead: i32, split: i32): usize {
  const bytes = <usize>(load<i32>(tile, 4) * arg(2)) * <usize>(arg(3) + 2) * 4;
  return <usize>load<u32>(tile, 32) + <usize>(kvHead * load<i32>(tile, 36) + split) * bytes;
}

/** Gathers the tile's query vectors: [row][head of the KV head]. */
function loadQueries(tile: usize, kvHead: i32, thread: i32): void {
  const groupBytes = <usize>(arg(2) * arg(3)) * 4;
  const rowBytes = groupBytes * <usize>arg(1);
  let from = argAt(4) + <usize>load<u32>(tile) * rowBytes + <usize>kvHead * groupBytes;
  let to = queriesAt(thread);
  for (let row = load<i32>(tile, 4); row > 0; row--) {
    memory.copy(to, from, groupBytes);
    from += rowBytes;
    to += groupBytes;
  }
}

function clearState(state: usize, output: usize, queryCount: i32): void {
  for (let query = 0; query < queryCount; query++) {
    store<f32>(state + ((<usize>query) << 3), NEGATIVE_INFINITY);
    store<f32>(state + ((<usize>query) << 3), 0, 4);
  }
  memory.fill(output, 0, <usize>queryCount * <usize>arg(3) * 4);
}

/** Adds a later split's state to an earlier one's. */
function merge(state: usize, output: usize, later: usize, laterOutput: usize, queryCount: i32): void {
  const headBytes = (<usize>arg(3)) << 2;
  for (let query: usize = 0; query < <usize>queryCount; query++) {
    const at = state + (query << 3);
    const from = later + (query << 3);
    const most = max<f32>(load<f32>(at), load<f32>(from));
    const keep = exp1(load<f32>(at) - most);
    const add = exp1(load<f32>(from) - most);
    store<f32>(at, most);
    store<f32>(at, load<f32>(at, 4) * keep + load<f32>(from, 4) * add, 4);
    const keeps = f32x4.splat(keep);
    const adds = f32x4.splat(add);
    const to = output + query * headBytes;
    const source = laterOutput + query * headBytes;
    for (let d: usize = 0; d < headBytes; d += 16) {
      v128.store(to + d, f32x4.add(f32x4.mul(v128.load(to + d), keeps), f32x4.mul(v128.load(source + d), adds)));
    }
  }
}

/** out = output / sum, scattered to the rows. A query's own token is always there, so the sum is above 0. */
function finish(tile: usize, kvHead: i32, state: usize, output: usize): void {
  const headBytes = (<usize>arg(3)) << 2;
  const group = arg(2);
  const rowBytes = headBytes * <usize>(arg(1) * group);
  let to = argAt(5) + <usize>load<u32>(tile) * rowBytes + <usize>(kvHead * group) * headBytes;
  for (let row = 0; row < load<i32>(tile, 4); row++) {
    for (let head: usize = 0; head < <usize>group; head++) {
      const sums = v128.load32_splat(state, 4);
      for (let d: usize = 0; d < headBytes; d += 16) {
        v128.store(to + head * headBytes + d, f32x4.div(v128.load(output + d), sums));
      }
      state += 8;
      output += headBytes;
    }
    to += rowBytes;
  }
}

/** Attends to one split; false when nothing of it is selected and resident. */
function attendSplit(tile: usize, kvHead: i32, split: i32, thread: i32): bool {
  const position = load<i32>(tile, 8);
  const ownBlock = position >> 6;
  const ids = <usize>load<u32>(tile, 12);
  const pageMasks = <usize>load<u32>(tile, 16);
  const headMasks = pageMasks + <usize>kvHead * <usize>load<u32>(tile, 20);
  const tokenMasks = <usize>load<u32>(tile, 24);
  const end = min(ownBlock, split * 8 + 8);
  let found = false;
  for (let block = split * 8; block < end; block++) {
    const pages = pageMasks == 0 ? 15 : load<u8>(headMasks + <usize>block);
    const id = load<i32>(ids + ((<usize>block) << 2));
    if (pages == 0 || id < 0) continue;
    if (!found) clearState(splitStateAt(thread), splitOutputAt(thread), load<i32>(tile, 4) * arg(2));
    found = true;
    const tokens: u64 = tokenMasks == 0 ? <u64>-1 : load<u64>(tokenMasks + ((<usize>block) << 3));
    attendSealed(tile, kvHead, argAt(7) + <usize>id * argAt(8), pages, tokens, thread);
  }
  if (ownBlock >> 3 == split) {
    if (!found) clearState(splitStateAt(thread), splitOutputAt(thread), load<i32>(tile, 4) * arg(2));
    found = true;
    attendOpen(tile, kvHead, position & 63, thread);
  }
  return found;
}

/** A sealed block: the chosen tokens of the chosen pages, the same for every query of the tile. */
function attendSealed(tile: usize, kvHead: i32, block: usize, pages: i32, tokens: u64, thread: i32): void {
  const headDim = <usize>arg(3);
  const head = <usize>kvHead * 64 * headDim;
  const queryCount = load<i32>(tile, 4) * arg(2);
  const isInt8 = arg(9) != 0;
  const keys = isInt8 ? decodedAt(thread) : block + head * 4;
  if (queryCount <= FEW_QUERIES) {
    const size: usize = isInt8 ? 1 : 4;
    const sum = fetchPages(block + head * size, pages, headDim * 16 * size)
      + fetchPages(block + argAt(11) + head * size, pages, headDim * 16 * size);
    // Stored where it will be overwritten: loads whose result is not used might be left out.
    store<i32>(scoresAt(thread), sum);
  }
  for (let page: usize = 0; page < 4; page++) {
    if ((pages & (1 << <i32>page)) == 0) continue;
    if (isInt8) {
      const scales = block + argAt(10) + <usize>kvHead * headDim * 4;
      decodeKeys(keys, block + head, scales, headDim, page * 16, page * 16 + 16);
    }
    const to = scoresAt(thread) + page * 64;
    scoreTokens(to, SCORE_BYTES, queriesAt(thread), queryCount, keys + page * headDim * 64, 16, headDim, argF32(6));
  }
  for (let query = 0; query < queryCount; query++) {
    const scores = scoresAt(thread) + <usize>query * SCORE_BYTES;
    if (tokens != <u64>-1) hideTokens(scores, tokens);
    softmaxPages(scores, pages, splitStateAt(thread) + ((<usize>query) << 3), outputOf(thread, query));
  }
  const values = isInt8 ? decodedAt(thread) : block + argAt(11) + head * 4;
  for (let page: usize = 0; page < 4; page++) {
    if ((pages & (1 << <i32>page)) == 0) continue;
    if (isInt8) {
      const scales = block + argAt(12) + <usize>kvHead * 256;
      decodeValues(values, block + argAt(11) + head, scales, headDim, page * 16, page * 16 + 16);
    }
    addValues(thread, queryCount, page * 16, page * 16 + 16, values);
  }
}

/**
 * Reads one word of every cache line that the chosen pages' keys and values take, so that all of it is on its way before the first score
 * needs any: selected pages lie apart, where no hardware prefetch follows. (16K context, 128 of 1024 pages, head width 64, f32, one thread:
 * 2.8 ms without, 1.8 ms with.)
 */
function fetchPages(from: usize, pages: i32, pageBytes: usize): i32 {
  let sum = 0;
  for (let page: usize = 0; page < 4; page++) {
    if ((pages & (1 << <i32>page)) == 0) continue;
    const end = from + (page + 1) * pageBytes;
    for (let at = from + page * pageBytes; at < end; at += 64) sum += load<i32>(at);
  }
  return sum;
}

/** The block the rows lie in: row i sees tokens up to `first + i`. */
function attendOpen(tile: usize, kvHead: i32, first: i32, thread: i32): void {
  const headDim = <usize>arg(3);
  const rowCount = load<i32>(tile, 4);
  const group = arg(2);
  const tokenCount = first + rowCount;
  const open = argAt(13) + <usize>load<u32>(tile, 28) * argAt(14) + <usize>kvHead * 256 * headDim;
  const queries = queriesAt(thread);
  scoreTokens(scoresAt(thread), SCORE_BYTES, queries, rowCount * group, open + argAt(15), tokenCount, headDim, argF32(6));
  const pages = (1 << ((tokenCount + 15) >> 4)) - 1;
  for (let query = 0; query < rowCount * group; query++) {
    const scores = scoresAt(thread) + <usize>query * SCORE_BYTES;
    const visible = first + query / group + 1;
    for (let token = visible; token < (tokenCount + 15 & ~15); token++) {
      store<f32>(scores + ((<usize>token) << 2), NEGATIVE_INFINITY);
    }
    softmaxPages(scores, pages, splitStateAt(thread) + ((<usize>query) << 3), outputOf(thread, query));
  }
  addValues(thread, rowCount * group, 0, <usize>tokenCount, open + argAt(16));
}

// @ts-ignore: decorator
@inline
function outputOf(thread: i32, query: i32): usize {
  return splitOutputAt(thread) + <usize>(query * arg(3)) * 4;
}

function hideTokens(scores: usize, tokens: u64): void {
  for (let token: usize = 0; token < 64; token++) {
    if ((tokens >> <u64>token & 1) == 0) store<f32>(scores + (token << 2), NEGATIVE_INFINITY);
  }
}

/**
 * One step of the online softmax: scores of the pages in `pages` become e^(score - max), the state and the output so far are rescaled.
 * A query whose scores are all hidden keeps its state, its weights become 0.
 */
function softmaxPages(scores: usize, pages: i32, state: usize, output: usize): void {
  let largest = f32x4.splat(NEGATIVE_INFINITY);
  for (let page: usize = 0; page < 4; page++) {
    if ((pages & (1 << <i32>page)) == 0) continue;
    const at = scores + (page << 6);
    const low = f32x4.max(v128.load(at), v128.load(at, 16));
    largest = f32x4.max(largest, f32x4.max(low, f32x4.max(v128.load(at, 32), v128.load(at, 48))));
  }
  const before = load<f32>(state);
  const most = max<f32>(before, maxLanes(largest));
  const shift = f32x4.splat(most == NEGATIVE_INFINITY ? 0 : most);
  let sums = f32x4.splat(0);
  for (let page: usize = 0; page < 4; page++) {
    if ((pages & (1 << <i32>page)) == 0) continue;
    const end = scores + (page << 6) + 64;
    for (let at = scores + (page << 6); at < end; at += 16) {
      const weights = exp4(f32x4.sub(v128.load(at), shift));
      v128.store(at, weights);
      sums = f32x4.add(sums, weights);
    }
  }
  const keep: f32 = before == NEGATIVE_INFINITY ? 0 : exp1(before - most);
  store<f32>(state, most);
  store<f32>(state, load<f32>(state, 4) * keep + sumLanes(sums), 4);
  // The first block finds zeros, and e^0 is exactly 1: nothing to rescale.
  if (keep == 1 || keep == 0 && before == NEGATIVE_INFINITY) return;
  const keeps = f32x4.splat(keep);
  const end = output + <usize>arg(3) * 4;
  for (let at = output; at < end; at += 16) v128.store(at, f32x4.mul(v128.load(at), keeps));
}

/** output[query] += weight[query][token] * values[token], tokens ascending. */
function addValues(thread: i32, queryCount: i32, first: usize, end: usize, values: usize): void {
  const headBytes = (<usize>arg(3)) << 2;
  const from = values + first * headBytes;
  const valuesEnd = values + end * headBytes;
  for (let query = 0; query < queryCount; query += 2) {
    const weights = scoresAt(thread) + <usize>query * SCORE_BYTES + (first << 2);
    const output = outputOf(thread, query);
    let d: usize = 0;
    if (query + 1 < queryCount) {
      for (; d + 64 <= headBytes; d += 64) addSixteen2(output + d, headBytes, weights, from + d, valuesEnd + d, headBytes);
      for (; d < headBytes; d += 16) {
        addFour(output + d, weights, from + d, valuesEnd + d, headBytes);
        addFour(output + headBytes + d, weights + SCORE_BYTES, from + d, valuesEnd + d, headBytes);
      }
    } else {
      for (; d + 64 <= headBytes; d += 64) addSixteen(output + d, weights, from + d, valuesEnd + d, headBytes);
      for (; d < headBytes; d += 16) addFour(output + d, weights, from + d, valuesEnd + d, headBytes);
    }
  }
}

function addFour(output: usize, weights: usize, from: usize, end: usize, step: usize): void {
  let a = v128.load(output);
  for (let at = from; at < end; at += step) {
    a = f32x4.add(a, f32x4.mul(v128.load(at), v128.load32_splat(weights)));
    weights += 4;
  }
  v128.store(output, a);
}

function addSixteen(output: usize, weights: usize, from: usize, end: usize, step: usize): void {
  let a = v128.load(output), b = v128.load(output, 16), c = v128.load(output, 32), d = v128.load(output, 48);
  for (let at = from; at < end; at += step) {
    const w = v128.load32_splat(weights);
    a = f32x4.add(a, f32x4.mul(v128.load(at), w));
    b = f32x4.add(b, f32x4.mul(v128.load(at, 16), w));
    c = f32x4.add(c, f32x4.mul(v128.load(at, 32), w));
    d = f32x4.add(d, f32x4.mul(v128.load(at, 48), w));
    weights += 4;
  }
  v128.store(output, a);
  v128.store(output, b, 16);
  v128.store(output, c, 32);
  v128.store(output, d, 48);
}

function addSixteen2(output: usize, outputBytes: usize, weights: usize, from: usize, end: usize, step: usize): void {
  const second = output + outputBytes;
  let a = v128.load(output), b = v128.load(output, 16), c = v128.load(output, 32), d = v128.load(output, 48);
  let e = v128.load(second), f = v128.load(second, 16), g = v128.load(second, 32), h = v128.load(second, 48);
  for (let at = from; at < end; at += step) {
    const w = v128.load32_splat(weights);
    const x = v128.load32_splat(weights, 256);
    let v = v128.load(at);
    a = f32x4.add(a, f32x4.mul(v, w));
    e = f32x4.add(e, f32x4.mul(v, x));
    v = v128.load(at, 16);
    b = f32x4.add(b, f32x4.mul(v, w));
    f = f32x4.add(f, f32x4.mul(v, x));
    v = v128.load(at, 32);
    c = f32x4.add(c, f32x4.mul(v, w));
    g = f32x4.add(g, f32x4.mul(v, x));
    v = v128.load(at, 48);
    d = f32x4.add(d, f32x4.mul(v, w));
    h = f32x4.add(h, f32x4.mul(v, x));
    weights += 4;
  }
  v128.store(output, a);
  v128.store(output, b, 16);
  v128.store(output, c, 32);
  v128.store(output, d, 48);
  v128.store(second, e);
  v128.store(second, f, 16);
  v128.store(second, g, 32);
  v128.store(second, h, 48);
}
