// The best K of a unit, and what they mean for its pages. The unit record is described in units.ts.
import { arg, argAt, scratchOf } from "./control";
import { at, candidateLanes, UNIT_BYTES, word } from "./units";

const NEGATIVE_INFINITY: f32 = -Infinity;
const BIN_BITS: u32 = 8;
const BIN_COUNT: u32 = 1 << BIN_BITS;

/**
 * Chooses the best K items of a unit: by score descending, ties to the lower item, NaN below everything. Page units then get their page masks,
 * counts and bitmap. Task = unit. args: units, layer
 */
export function chooseTask(task: i32, thread: i32): void {
  const unit = argAt(0) + <usize>task * UNIT_BYTES;
  const count = word(unit, 24) - word(unit, 20);
  const wanted = word(unit, 44);
  const isPages = word(unit, 76) != 0;
  if (word(unit, 60) == 0) {
    if (isPages) memory.fill(at(unit, 76), 0, at(unit, 80));
    if (wanted >= count) chooseAll(unit);
    else if (wanted > 0) chooseBest(unit, wanted, scratchOf(thread));
    if (isPages) addForced(unit);
  }
  if (isPages) countPages(unit);
}

function chooseAll(unit: usize): void {
  const end = word(unit, 24);
  for (let item = word(unit, 20) & ~3; item < end; item += 4) {
    store<u8>(at(unit, 56) + <usize>(item >> 2), i32x4.bitmask(candidateLanes(unit, item)));
  }
}

function chooseBest(unit: usize, wanted: i32, scratch: usize): void {
  const begin = word(unit, 20);
  const end = word(unit, 24);
  const scores = at(unit, 28);
  clean(unit);
  const found = kthLargest(scores + (<usize>begin << 2), end - begin, wanted, scratch);
  const threshold = f32x4.splat(scoreOf(load<i32>(found)));
  let ties = load<i32>(found, 4);
  for (let item = begin & ~3; item < end; item += 4) {
    const four = v128.load(scores + (<usize>item << 2));
    const lanes = candidateLanes(unit, item);
    let chosen = i32x4.bitmask(v128.and(f32x4.gt(four, threshold), lanes));
    if (ties > 0) {
      for (let equal = i32x4.bitmask(v128.and(f32x4.eq(four, threshold), lanes)); equal != 0 && ties > 0; ties--) {
        chosen |= equal & -equal;
        equal &= equal - 1;
      }
    }
    store<u8>(at(unit, 56) + <usize>(item >> 2), chosen);
  }
}

/** NaN becomes -Infinity and -0 becomes 0, so that scores compare as they rank. */
function clean(unit: usize): void {
  const scores = at(unit, 28);
  const end = scores + (at(unit, 24) << 2);
  for (let i = scores + ((at(unit, 20) & ~3) << 2); i < end; i += 16) {
    const four = v128.load(i);
    const numbers = v128.bitselect(four, f32x4.splat(NEGATIVE_INFINITY), f32x4.eq(four, four));
    v128.store(i, f32x4.add(numbers, f32x4.splat(0)));
  }
}

/** Integers that rank as the scores do, and back; the map is its own inverse. */
// @ts-ignore: decorator
@inline
function keyOf(bits: i32): i32 {
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// @ts-ignore: decorator
@inline
function scoreOf(key: i32): f32 {
  return reinterpret<f32>(keyOf(key));
}

/**
 * Returns the address of {key of the K-th largest of `count` scores, how many equal to it are among the K}. Radix select over the range that the
 * keys really span: a histogram of 256 bins, then the same over the keys of the bin that holds the K-th. `scratch`: 1 KiB, the
 * result, and the keys.
 */
function kthLargest(scores: usize, count: i32, wanted: i32, scratch: usize): usize {
  const result = scratch + <usize>BIN_COUNT * 4;
  const keys = result + 16;
  let low = i32.MAX_VALUE, high = i32.MIN_VALUE;
  for (let i: usize = 0; i < <usize>count << 2; i += 4) {
    const key = keyOf(load<i32>(scores + i));
    store<i32>(keys + i, key);
    low = min(low, key);
    high = max(high, key);
  }
  let left = wanted;
  let rest = count;
  for (;;) {
    const span = <u32>high - <u32>low;
    const shift = <u32>max(0, 32 - <i32>BIN_BITS - <i32>clz(span));
    const bin = binOfKth(keys, rest, left, low, shift, scratch);
    left = load<i32>(result);
    if (shift == 0) {
      store<i32>(result, low + <i32>bin);
      store<i32>(result, left, 4);
      break;
    }
    rest = keepBin(keys, rest, bin, low, shift);
    low += <i32>(bin << shift);
    high = low + <i32>((1 << shift) - 1);
  }
  return result;
}

/** The bin that holds the K-th largest key; writes behind the histogram how many of that bin are among the K. */
function binOfKth(keys: usize, count: i32, wanted: i32, low: i32, shift: u32, histogram: usize): u32 {
  memory.fill(histogram, 0, <usize>BIN_COUNT * 4);
  const end = keys + (<usize>count << 2);
  for (let i = keys; i < end; i += 4) {
    const bin = histogram + (<usize>((<u32>load<i32>(i) - <u32>low) >> shift) << 2);
    store<i32>(bin, load<i32>(bin) + 1);
  }
  let left = wanted;
  let bin = BIN_COUNT - 1;
  for (; bin > 0; bin--) {
    const inBin = load<i32>(histogram + (<usize>bin << 2));
    if (inBin >= left) break;
    left -= inBin;
  }
  store<i32>(histogram + <usize>BIN_COUNT * 4, left);
  return bin;
}

/** Moves the keys of a bin to the front and returns how many there are. */
function keepBin(keys: usize, count: i32, bin: u32, low: i32, shift: u32): i32 {
  const end = keys + (<usize>count << 2);
  let to = keys;
  for (let i = keys; i < end; i += 4) {
    const key = load<i32>(i);
    if ((<u32>key - <u32>low) >> shift != bin) continue;
    store<i32>(to, key);
    to += 4;
  }
  return <i32>((to - keys) >> 2);
}

/** Adds forced pages to the masks. */
function addForced(unit: usize): void {
  const masks = at(unit, 76);
  const blockEnd = word(unit, 80);
  const sinkEnd = word(unit, 84);
  const recentStart = word(unit, 88);
  for (let block = 0; block * 4 < sinkEnd && block < blockEnd; block++) addPages(masks + <usize>block, ~fromPage(block, sinkEnd));
  for (let block = recentStart >> 2; block < blockEnd; block++) addPages(masks + <usize>block, fromPage(block, recentStart));
}

/** Pages of a block that are not before `page`. */
// @ts-ignore: decorator
@inline
function fromPage(block: i32, page: i32): i32 {
  const skip = min(4, max(0, page - block * 4));
  return 15 & (15 << skip);
}

// @ts-ignore: decorator
@inline
function addPages(mask: usize, pages: i32): void {
  store<u8>(mask, <i32>load<u8>(mask) | (pages & 15));
}

/** Counts what the masks reach in this layer, and notes the blocks of chosen candidates. */
function countPages(unit: usize): void {
  const masks = at(unit, 76);
  const blockEnd = word(unit, 80);
  const ids = at(unit, 104) + (<usize>arg(1) * at(unit, 108) << 2);
  let missing = 0, blocks = 0, pages = 0;
  for (let block = 0; block < blockEnd; block++) {
    const mask = <i32>load<u8>(masks + <usize>block);
    if (mask == 0) continue;
    if (load<i32>(ids + (<usize>block << 2)) < 0) {
      missing++;
    } else {
      blocks++;
      pages += popcnt(mask);
    }
  }
  const counts = at(unit, 92);
  store<i32>(counts, missing);
  store<i32>(counts, blocks, 4);
  store<i32>(counts, pages << 4, 8);
  if (at(unit, 96) != 0) noteChosen(unit);
}

/** Sets the bits of blocks with a chosen candidate; other KV heads set bits of the same words. */
function noteChosen(unit: usize): void {
  const masks = at(unit, 76);
  const bitmap = at(unit, 96) + (<usize>arg(1) * at(unit, 100) << 2);
  const sinkEnd = word(unit, 84);
  const recentStart = word(unit, 88);
  for (let block = sinkEnd >> 2; block * 4 < recentStart; block++) {
    const candidates = fromPage(block, sinkEnd) & ~fromPage(block, recentStart);
    if ((<i32>load<u8>(masks + <usize>block) & candidates) == 0) continue;
    atomic.or<u32>(bitmap + (<usize>(block >> 5) << 2), <u32>1 << <u32>(block & 31));
  }
}
