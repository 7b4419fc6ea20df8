// Attention. A tile is up to 32 queries (rows of one query group in one block of 64 positions, times the query heads of a KV head); a task
// is a tile in some KV heads, or one split (512 positions) of it where there are few tiles. Reduction order is that of the contract: within
// a split one online softmax per block, then splits in ascending order, so tiles, threads and the cut into tasks do not show in the result.
// Tasks of few queries that read everything take all KV heads, block by block, keys before values, because these lie side by side: one
// thread reads random pieces of 4 KiB at 8 GB/s and of 64 KiB at 18 GB/s. Those that read chosen pages take one KV head, and ask for the
// next 16 pieces before they need the first.
// Measured figures: docs/cpu-kernels.md.
//
// Tile record, mirrored in kernels/wasm/attend.ts:
//   0 first row   4 row count   8 position of the first row   12 block ids [layer][capacity]   16 page masks (0: all pages)
//   20 bytes of page masks per KV head   24 token masks (0: all tokens of a page)   28 open slot   32 partial results   36 split count
//   40 capacity
import { addValues } from "./attend-f32";
import { addValuesInt8, quantizeQuery, quantizeWeights, queryCodeBytes, scoreInt8 } from "./attend-int8";
import { arg, argAt, argF32, scratchOf } from "./control";
import { scoreTokens } from "./dot";
import { fetchAcross, fetchLines } from "./prefetch";
import { exp1, maxLanes, sumLanes, weigh16 } from "./vector";

const TILE_BYTES: usize = 48;
const NEGATIVE_INFINITY: f32 = -Infinity;
const SCORE_BYTES: usize = 256;
/** Tiles of at most this many queries wait for memory more than they compute. */
const FEW_QUERIES: i32 = 8;
/** At the beginning of a task's scratch: the block up to which pieces were asked for, a word for what was read, and from byte 64 the pieces. */
const PIECES_BYTES: usize = 256;
const PIECE_COUNT: usize = 16;

// args: 0 tiles, 1 KV head count, 2 heads per KV head, 3 headDim, 4 q, 5 out, 6 scale, 7 blocks, 8 block bytes, 9 int8?, offsets in a
// block: 10 key scales, 11 values, 12 value scales; 13 open slots, 14 slot bytes, offsets in a slot: 15 keys of the layer, 16 values;
// 17 largest split count (0: a task does all splits), 18 queries of the largest tile, 19 KV heads of a task, 20 layer, 21 splits of a task

// The scratch of a task in one KV head: whether the split has a token, the queries, state per query {max, sum} of the split and of all
// splits, scores, outputs of both; over int8 blocks also the factor of each query, that of its weights, and its codes.
// @ts-ignore: decorator
@inline
function headScratchBytes(): usize {
  const perQuery = <usize>(arg(3) * 3 + 70) * 4 + queryCodeBytes(<usize>arg(3));
  return 16 + <usize>arg(18) * perQuery;
}
// @ts-ignore: decorator
@inline
function queriesAt(scratch: usize): usize {
  return scratch + 16;
}
// @ts-ignore: decorator
@inline
function outputBytes(): usize {
  return <usize>arg(18) * <usize>arg(3) * 4;
}
// @ts-ignore: decorator
@inline
function splitStateAt(scratch: usize): usize {
  return queriesAt(scratch) + outputBytes();
}
// @ts-ignore: decorator
@inline
function finalStateAt(scratch: usize): usize {
  return splitStateAt(scratch) + <usize>arg(18) * 8;
}
// @ts-ignore: decorator
@inline
function scoresAt(scratch: usize): usize {
  return finalStateAt(scratch) + <usize>arg(18) * 8;
}
// @ts-ignore: decorator
@inline
function splitOutputAt(scratch: usize): usize {
  return scoresAt(scratch) + <usize>arg(18) * SCORE_BYTES;
}
// @ts-ignore: decorator
@inline
function finalOutputAt(scratch: usize): usize {
  return splitOutputAt(scratch) + outputBytes();
}
// @ts-ignore: decorator
@inline
function queryFactorsAt(scratch: usize): usize {
  return finalOutputAt(scratch) + outputBytes();
}
// @ts-ignore: decorator
@inline
function weightFactorsAt(scratch: usize): usize {
  return queryFactorsAt(scratch) + <usize>arg(18) * 4;
}
// @ts-ignore: decorator
@inline
function queryCodesAt(scratch: usize): usize {
  return weightFactorsAt(scratch) + <usize>arg(18) * 4;
}

/** Task = (tile * tasks of a tile + first KV head / KV heads of a task) [* runs of splits + run]. */
export function attendTask(task: i32, thread: i32): void {
  const isCut = arg(17) != 0;
  const runCount = isCut ? (arg(17) + arg(21) - 1) / arg(21) : 1;
  const unit = task / runCount;
  const headTasks = (arg(1) + arg(19) - 1) / arg(19);
  const tile = argAt(0) + <usize>(unit / headTasks) * TILE_BYTES;
  const first = (unit % headTasks) * arg(19);
  const end = min(arg(1), first + arg(19));
  const firstSplit = (task % runCount) * arg(21);
  const endSplit = min(load<i32>(tile, 36), firstSplit + arg(21));
  const scratch = scratchOf(thread);
  if (isCut && firstSplit >= endSplit) return;
  store<i32>(scratch, 0);
  for (let kvHead = first; kvHead < end; kvHead++) loadQueries(tile, kvHead, headScratch(scratch, kvHead - first));
  if (!isCut) return attendAllSplits(tile, first, end, scratch);
  for (let split = firstSplit; split < endSplit; split++) {
    attendSplit(tile, first, end, split, endSplit, scratch);
    for (let kvHead = first; kvHead < end; kvHead++) {
      storePartial(partialAt(tile, kvHead, split), tile, headScratch(scratch, kvHead - first));
    }
  }
}

// @ts-ignore: decorator
@inline
function headScratch(scratch: usize, index: i32): usize {
  return scratch + PIECES_BYTES + <usize>index * headScratchBytes();
}

function attendAllSplits(tile: usize, first: i32, end: i32, scratch: usize): void {
  const queryCount = load<i32>(tile, 4) * arg(2);
  for (let index = 0; index < end - first; index++) {
    const at = headScratch(scratch, index);
    clearState(finalStateAt(at), finalOutputAt(at), queryCount);
  }
  const splitCount = load<i32>(tile, 36);
  for (let split = 0; split < splitCount; split++) {
    attendSplit(tile, first, end, split, splitCount, scratch);
    for (let index = 0; index < end - first; index++) {
      const at = headScratch(scratch, index);
      if (load<i32>(at) == 0) continue;
      merge(finalStateAt(at), finalOutputAt(at), splitStateAt(at), splitOutputAt(at), queryCount);
    }
  }
  for (let index = 0; index < end - first; index++) {
    const at = headScratch(scratch, index);
    finish(tile, first + index, finalStateAt(at), finalOutputAt(at));
  }
}

function storePartial(partial: usize, tile: usize, scratch: usize): void {
  const queryCount = <usize>(load<i32>(tile, 4) * arg(2));
  if (load<i32>(scratch) == 0) {
    store<f32>(partial, NEGATIVE_INFINITY);
    return;
  }
  memory.copy(partial, splitStateAt(scratch), queryCount * 8);
  memory.copy(partial + queryCount * 8, splitOutputAt(scratch), queryCount * <usize>arg(3) * 4);
}

/** Second pass where splits ran as tasks. Task = tile * KV head count + KV head; same arguments. */
export function attendMergeTask(task: i32, thread: i32): void {
  const tile = argAt(0) + <usize>(task / arg(1)) * TILE_BYTES;
  const kvHead = task % arg(1);
  const queryCount = load<i32>(tile, 4) * arg(2);
  const scratch = headScratch(scratchOf(thread), 0);
  const state = finalStateAt(scratch);
  const output = finalOutputAt(scratch);
  clearState(state, output, queryCount);
  for (let split = 0; split < load<i32>(tile, 36); split++) {
    const partial = partialAt(tile, kvHead, split);
    if (load<f32>(partial) == NEGATIVE_INFINITY) continue;
    merge(state, output, partial, partial + <usize>queryCount * 8, queryCount);
  }
  finish(tile, kvHead, state, output);
}

function partialAt(tile: usize, kvHead: i32, split: i32): usize {
  const bytes = <usize>(load<i32>(tile, 4) * arg(2)) * <usize>(arg(3) + 2) * 4;
  return <usize>load<u32>(tile, 32) + <usize>(kvHead * load<i32>(tile, 36) + split) * bytes;
}

/** Gathers the tile's query vectors: [row][head of the KV head]. */
function loadQueries(tile: usize, kvHead: i32, scratch: usize): void {
  const groupBytes = <usize>(arg(2) * arg(3)) * 4;
  const rowBytes = groupBytes * <usize>arg(1);
  let from = argAt(4) + <usize>load<u32>(tile) * rowBytes + <usize>kvHead * groupBytes;
  let to = queriesAt(scratch);
  for (let row = load<i32>(tile, 4); row > 0; row--) {
    memory.copy(to, from, groupBytes);
    from += rowBytes;
    to += groupBytes;
  }
}

/** Nothing seen yet. A loop, because filling memory is a call out of the module, and splits of a long context hold a page each. */
function clearState(state: usize, output: usize, queryCount: i32): void {
  for (let query = 0; query < queryCount; query++) {
    store<f32>(state + ((<usize>query) << 3), NEGATIVE_INFINITY);
    store<f32>(state + ((<usize>query) << 3), 0, 4);
  }
  const end = output + <usize>(queryCount * arg(3)) * 4;
  for (let at = output; at < end; at += 16) v128.store(at, f32x4.splat(0));
}

/** Adds a later split's state to an earlier one's. */
function merge(state: usize, output: usize, later: usize, laterOutput: usize, queryCount: i32): void {
  const headBytes = (<usize>arg(3)) << 2;
  for (let query: usize = 0; query < <usize>queryCount; query++) {
    const at = state + (query << 3);
    const from = later + (query << 3);
    const before = load<f32>(at);
    const most = max<f32>(before, load<f32>(from));
    // One of the two is e^0, which is exactly 1.
    const keep: f32 = before == most ? 1 : exp1(before - most);
    const add: f32 = before == most ? exp1(load<f32>(from) - most) : 1;
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

/** Attends to one split of those before `splitEnd`; the first word of a head's scratch says whether any of it is selected and resident. */
function attendSplit(tile: usize, first: i32, headEnd: i32, split: i32, splitEnd: i32, scratch: usize): void {
  const position = load<i32>(tile, 8);
  const ownBlock = position >> 6;
  const ids = blockIdsOf(tile);
  const pageMasks = <usize>load<u32>(tile, 16);
  const tokenMasks = <usize>load<u32>(tile, 24);
  const isSparse = pageMasks != 0 && load<i32>(tile, 4) * arg(2) <= FEW_QUERIES;
  for (let index = 0; index < headEnd - first; index++) store<i32>(headScratch(scratch, index), 0);
  let end = min(ownBlock, split * 8 + 8);
  // Rows of masks are padded to eights.
  if (isSparse && headEnd - first == 1 && load<u64>(maskRowOf(tile, first) + <usize>split * 8) == 0) end = 0;
  for (let block = split * 8; block < end; block++) {
    const id = load<i32>(ids + ((<usize>block) << 2));
    if (id < 0) continue;
    const from = argAt(7) + <usize>id * argAt(8);
    const tokens: u64 = tokenMasks == 0 ? <u64>-1 : load<u64>(tokenMasks + ((<usize>block) << 3));
    if (isSparse && block >= load<i32>(scratch)) fetchAhead(tile, first, headEnd, block, min(ownBlock, splitEnd * 8), scratch);
    for (let kvHead = first; kvHead < headEnd; kvHead++) {
      const pages = pageMasks == 0 ? 15 : pagesOf(tile, kvHead, block);
      if (pages == 0) continue;
      const at = headScratch(scratch, kvHead - first);
      begin(tile, at);
      weighSealed(tile, kvHead, from, pages, tokens, at);
    }
    for (let kvHead = first; kvHead < headEnd; kvHead++) {
      const pages = pageMasks == 0 ? 15 : pagesOf(tile, kvHead, block);
      if (pages != 0) addSealed(tile, kvHead, from, pages, headScratch(scratch, kvHead - first));
    }
  }
  if (ownBlock >> 3 != split) return;
  for (let kvHead = first; kvHead < headEnd; kvHead++) {
    const at = headScratch(scratch, kvHead - first);
    begin(tile, at);
    attendOpen(tile, kvHead, position & 63, at);
  }
}

/** Block ids of the layer. */
// @ts-ignore: decorator
@inline
function blockIdsOf(tile: usize): usize {
  return <usize>load<u32>(tile, 12) + <usize>(arg(20) * load<i32>(tile, 40) << 2);
}

// @ts-ignore: decorator
@inline
function maskRowOf(tile: usize, kvHead: i32): usize {
  return <usize>load<u32>(tile, 16) + <usize>kvHead * <usize>load<u32>(tile, 20);
}

// @ts-ignore: decorator
@inline
function pagesOf(tile: usize, kvHead: i32, block: i32): i32 {
  return load<u8>(maskRowOf(tile, kvHead) + <usize>block);
}

/** The split has something: clears its state the first time. */
// @ts-ignore: decorator
@inline
function begin(tile: usize, scratch: usize): void {
  if (load<i32>(scratch) != 0) return;
  store<i32>(scratch, 1);
  clearState(splitStateAt(scratch), splitOutputAt(scratch), load<i32>(tile, 4) * arg(2));
}

/** The chosen tokens of the chosen pages of a sealed block, the same for every query of the tile: scores, then weights. */
function weighSealed(tile: usize, kvHead: i32, block: usize, pages: i32, tokens: u64, scratch: usize): void {
  const headDim = <usize>arg(3);
  const queryCount = load<i32>(tile, 4) * arg(2);
  const isInt8 = arg(9) != 0;
  const pageBytes = isInt8 ? headDim << 4 : headDim << 6;
  const keys = block + (<usize>kvHead << 2) * pageBytes;
  if (isInt8) quantizeQueries(block, kvHead, queryCount, scratch);
  const factors = queryFactorsAt(scratch);
  for (let left = pages; left != 0; left &= left - 1) {
    const page = <usize>ctz(left);
    const to = scoresAt(scratch) + page * 64;
    const from = keys + page * pageBytes;
    if (isInt8) scoreInt8(to, SCORE_BYTES, queryCodesAt(scratch), factors, queryCount, from, headDim);
    else scoreTokens(to, SCORE_BYTES, queriesAt(scratch), queryCount, from, 16, headDim, argF32(6));
  }
  const valueScales = block + argAt(12) + <usize>kvHead * 256;
  for (let query = 0; query < queryCount; query++) {
    const scores = scoresAt(scratch) + <usize>query * SCORE_BYTES;
    if (tokens != <u64>-1) hideTokens(scores, tokens);
    softmaxPages(scores, pages, splitStateAt(scratch) + ((<usize>query) << 3), outputOf(scratch, query));
    if (!isInt8) continue;
    store<f32>(weightFactorsAt(scratch) + ((<usize>query) << 2), quantizeWeights(scores, valueScales, pages));
  }
}

function quantizeQueries(block: usize, kvHead: i32, queryCount: i32, scratch: usize): void {
  const headDim = <usize>arg(3);
  const codeBytes = queryCodeBytes(headDim);
  const scales = block + argAt(10) + <usize>kvHead * headDim * 4;
  for (let query: usize = 0; query < <usize>queryCount; query++) {
    const q = queriesAt(scratch) + query * headDim * 4;
    const unit = quantizeQuery(queryCodesAt(scratch) + query * codeBytes, q, scales, headDim);
    store<f32>(queryFactorsAt(scratch) + (query << 2), unit * argF32(6));
  }
}

/** The values of what {@link weighSealed} weighed. */
function addSealed(tile: usize, kvHead: i32, block: usize, pages: i32, scratch: usize): void {
  const headDim = <usize>arg(3);
  const queryCount = load<i32>(tile, 4) * arg(2);
  const values = block + argAt(11) + <usize>kvHead * 64 * headDim * (arg(9) != 0 ? 1 : 4);
  if (arg(9) != 0) {
    const factors = weightFactorsAt(scratch);
    addValuesInt8(splitOutputAt(scratch), scoresAt(scratch), SCORE_BYTES, factors, queryCount, values, headDim, pages);
    return;
  }
  for (let left = pages; left != 0; left &= left - 1) {
    const page = <usize>ctz(left);
    addValues(splitOutputAt(scratch), scoresAt(scratch), queryCount, values, page * 16, page * 16 + 16, headDim);
  }
}

/**
 * Reads one word of every cache line of the next chosen pages of these KV heads, from `block` on, until there are 16 pieces (keys or values of a
 * page). Line by line across the pieces, so that many pages of memory are looked up and read at once: selected pages lie apart, where no
 * hardware prefetch follows. One thread reads pieces of 1 KiB one after the other at 8 GB/s, 16 in turns at 12.
 */
function fetchAhead(tile: usize, first: i32, headEnd: i32, block: i32, limit: i32, scratch: usize): void {
  const isInt8 = arg(9) != 0;
  const headDim = <usize>arg(3);
  const pageBytes = isInt8 ? headDim << 4 : headDim << 6;
  const ids = blockIdsOf(tile);
  const pieces = scratch + 64;
  let sum = 0;
  let count: usize = 0, total: usize = 0;
  for (; block < limit && total < PIECE_COUNT; block++) {
    const id = load<i32>(ids + ((<usize>block) << 2));
    if (id < 0) continue;
    const from = argAt(7) + <usize>id * argAt(8);
    for (let kvHead = first; kvHead < headEnd; kvHead++) {
      const pages = pagesOf(tile, kvHead, block);
      if (pages == 0) continue;
      if (isInt8) {
        sum += fetchLines(from + argAt(10) + <usize>kvHead * headDim * 4, headDim << 2);
      }
      for (let left = pages; left != 0; left &= left - 1) {
        const keys = from + ((<usize>kvHead << 2) + <usize>ctz(left)) * pageBytes;
        if (isInt8) sum += load<i32>(from + argAt(12) + <usize>kvHead * 256 + (<usize>ctz(left) << 6));
        store<u32>(pieces + (count << 2), <u32>keys);
        store<u32>(pieces + (count << 2), <u32>(keys + argAt(11)), 4);
        count += 2;
        total += 2;
        if (count < PIECE_COUNT) continue;
        sum += fetchAcross(pieces, count, pageBytes);
        count = 0;
      }
    }
  }
  sum += fetchAcross(pieces, count, pageBytes);
  store<i32>(scratch, block);
  // Loads whose result is not used might be left out.
  store<i32>(scratch, sum, 4);
}

/** The block the rows lie in: row i sees tokens up to `first + i`. */
function attendOpen(tile: usize, kvHead: i32, first: i32, scratch: usize): void {
  const headDim = <usize>arg(3);
  const rowCount = load<i32>(tile, 4);
  const group = arg(2);
  const tokenCount = first + rowCount;
  const open = argAt(13) + <usize>load<u32>(tile, 28) * argAt(14) + <usize>kvHead * 256 * headDim;
  const queries = queriesAt(scratch);
  scoreTokens(scoresAt(scratch), SCORE_BYTES, queries, rowCount * group, open + argAt(15), tokenCount, headDim, argF32(6));
  const pages = (1 << ((tokenCount + 15) >> 4)) - 1;
  for (let query = 0; query < rowCount * group; query++) {
    const scores = scoresAt(scratch) + <usize>query * SCORE_BYTES;
    const visible = first + query / group + 1;
    for (let token = visible; token < (tokenCount + 15 & ~15); token++) {
      store<f32>(scores + ((<usize>token) << 2), NEGATIVE_INFINITY);
    }
    softmaxPages(scores, pages, splitStateAt(scratch) + ((<usize>query) << 3), outputOf(scratch, query));
  }
  const values = open + argAt(16);
  addValues(splitOutputAt(scratch), scoresAt(scratch), rowCount * group, values, 0, <usize>tokenCount, headDim);
}

// @ts-ignore: decorator
@inline
function outputOf(scratch: usize, query: i32): usize {
  return splitOutputAt(scratch) + <usize>(query * arg(3)) * 4;
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
  for (let left = pages; left != 0; left &= left - 1) {
    const at = scores + (<usize>ctz(left) << 6);
    const low = f32x4.pmax(v128.load(at), v128.load(at, 16));
    largest = f32x4.pmax(largest, f32x4.pmax(low, f32x4.pmax(v128.load(at, 32), v128.load(at, 48))));
  }
  const before = load<f32>(state);
  const most = max<f32>(before, maxLanes(largest));
  const shift = f32x4.splat(most == NEGATIVE_INFINITY ? 0 : most);
  let sums = f32x4.splat(0);
  for (let left = pages; left != 0; left &= left - 1) {
    sums = weigh16(scores + (<usize>ctz(left) << 6), shift, sums);
  }
  const keep: f32 = before == most ? 1 : before == NEGATIVE_INFINITY ? 0 : exp1(before - most);
  store<f32>(state, most);
  store<f32>(state, load<f32>(state, 4) * keep + sumLanes(sums), 4);
  // The first block finds zeros, and e^0 is exactly 1: nothing to rescale.
  if (keep == 1 || keep == 0 && before == NEGATIVE_INFINITY) return;
  const keeps = f32x4.splat(keep);
  const end = output + <usize>arg(3) * 4;
  for (let at = output; at < end; at += 16) v128.store(at, f32x4.mul(v128.load(at), keeps));
}
