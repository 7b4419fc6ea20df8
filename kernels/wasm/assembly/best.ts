// The best K of a unit, and what they mean for its pages. The unit record is described in units.ts.
import { arg, argAt } from "./control";
import { at, candidateLanes, UNIT_BYTES, word } from "./units";

const NEGATIVE_INFINITY: f32 = -Infinity;

/**
 * Chooses the best K items of a unit: by score descending, ties to the lower item, NaN below everything. Page units then get their page masks,
 * counts and bitmap. Task = unit. args: units, layer
 */
export function chooseTask(task: i32): void {
  const unit = argAt(0) + <usize>task * UNIT_BYTES;
  const count = word(unit, 24) - word(unit, 20);
  const wanted = word(unit, 44);
  const isPages = word(unit, 76) != 0;
  if (word(unit, 60) == 0) {
    if (isPages) memory.fill(at(unit, 76), 0, at(unit, 80));
    if (wanted >= count) chooseAll(unit);
    else if (wanted > 0) chooseBest(unit, wanted);
    if (at(unit, 116) != 0 && wanted > 0) spreadChoice(unit);
    if (isPages) addForced(unit);
  }
  if (isPages) countPages(unit);
  if (at(unit, 120) != 0) writeList(unit);
}

/** Takes a choice among listed blocks to their masks. */
function spreadChoice(unit: usize): void {
  const masks = at(unit, 76);
  const list = at(unit, 116);
  const count = (at(unit, 24) + 3) >> 2;
  for (let index: usize = 0; index < count; index++) {
    store<u8>(masks + load<u32>(list + (index << 2)), load<u8>(at(unit, 56) + index));
  }
}

/** Lists the chosen blocks, and those before and behind them of which only some pages are candidates. */
function writeList(unit: usize): void {
  const first = word(unit, 64);
  const end = word(unit, 24);
  let to = at(unit, 120);
  if ((word(unit, 84) & 3) != 0) {
    store<i32>(to, first - 1);
    to += 4;
  }
  for (let item = 0; item < end; item += 4) {
    for (let chosen = <i32>load<u8>(at(unit, 56) + <usize>(item >> 2)); chosen != 0; chosen &= chosen - 1) {
      store<i32>(to, first + item + ctz(chosen));
      to += 4;
    }
  }
  if ((word(unit, 88) & 3) != 0) store<i32>(to, first + end);
}

function chooseAll(unit: usize): void {
  const end = word(unit, 24);
  for (let item = word(unit, 20) & ~3; item < end; item += 4) {
    store<u8>(at(unit, 56) + <usize>(item >> 2), i32x4.bitmask(candidateLanes(unit, item)));
  }
}

/**
 * The scores become integers that rank as they do, in place. Then the K-th largest is closed in on by halves of the range that is left, at
 * first from the least key to the largest, at most 32 of them, each a count of four keys at a time: K or more keys reach `low`, fewer `high`.
 */
function chooseBest(unit: usize, wanted: i32): void {
  const keys = at(unit, 28) + ((at(unit, 20) & ~3) << 2);
  const keysEnd = at(unit, 28) + ((at(unit, 24) + 3 & ~3) << 2);
  let low = writeKeys(unit, keys, keysEnd);
  let high = largest(keys, keysEnd) + 1;
  let above = 0;
  while (<u32>high - <u32>low > 1) {
    const middle = low + <i32>((<u32>high - <u32>low) >> 1);
    const count = countFrom(keys, keysEnd, middle);
    if (count >= wanted) {
      low = middle;
      if (count == wanted) {
        high = low;
        above = count;
        break;
      }
    } else {
      high = middle;
      above = count;
    }
  }
  writeChoice(unit, keys, keysEnd, high, low, wanted - above);
}

/** Writes the choice: keys from `high` on, and the first `ties` of those that equal `low`. */
function writeChoice(unit: usize, keys: usize, keysEnd: usize, high: i32, low: i32, ties: i32): void {
  const least = i32x4.splat(high);
  const equals = i32x4.splat(low);
  let to = at(unit, 56) + (at(unit, 20) >> 2);
  for (let i = keys; i < keysEnd; i += 16) {
    const four = v128.load(i);
    let chosen = i32x4.bitmask(i32x4.ge_s(four, least));
    if (ties > 0) {
      for (let equal = i32x4.bitmask(i32x4.eq(four, equals)) & ~chosen; equal != 0 && ties > 0; ties--) {
        chosen |= equal & -equal;
        equal &= equal - 1;
      }
    }
    store<u8>(to++, chosen);
  }
}

/**
 * Integers that rank as the scores do: NaN as -Infinity, -0 as 0; items that are no candidates get the least of all, which no score has.
 * Returns the least key of a candidate.
 */
function writeKeys(unit: usize, keys: usize, keysEnd: usize): i32 {
  const none = i32x4.splat(i32.MIN_VALUE);
  let lows = i32x4.splat(i32.MAX_VALUE);
  let item = word(unit, 20) & ~3;
  for (let i = keys; i < keysEnd; i += 16) {
    const four = v128.load(i);
    const numbers = v128.bitselect(four, f32x4.splat(NEGATIVE_INFINITY), f32x4.eq(four, four));
    const bits = f32x4.add(numbers, f32x4.splat(0));
    const ranked = v128.xor(bits, v128.and(i32x4.shr_s(bits, 31), i32x4.splat(0x7fffffff)));
    const lanes = candidateLanes(unit, item);
    lows = i32x4.min_s(lows, v128.bitselect(ranked, lows, lanes));
    v128.store(i, v128.bitselect(ranked, none, lanes));
    item += 4;
  }
  const low = min(i32x4.extract_lane(lows, 0), i32x4.extract_lane(lows, 1));
  return min(low, min(i32x4.extract_lane(lows, 2), i32x4.extract_lane(lows, 3)));
}

/** The largest key; there is one, and none is the largest integer. */
function largest(keys: usize, keysEnd: usize): i32 {
  let most = i32x4.splat(i32.MIN_VALUE);
  for (let i = keys; i < keysEnd; i += 16) most = i32x4.max_s(most, v128.load(i));
  const high = max(i32x4.extract_lane(most, 0), i32x4.extract_lane(most, 1));
  return max(high, max(i32x4.extract_lane(most, 2), i32x4.extract_lane(most, 3)));
}

/** How many keys are at least `least`. */
function countFrom(keys: usize, keysEnd: usize, least: i32): i32 {
  const bound = i32x4.splat(least);
  let one = i32x4.splat(0), other = i32x4.splat(0);
  let i = keys;
  for (; i + 32 <= keysEnd; i += 32) {
    one = i32x4.sub(one, i32x4.ge_s(v128.load(i), bound));
    other = i32x4.sub(other, i32x4.ge_s(v128.load(i, 16), bound));
  }
  if (i < keysEnd) one = i32x4.sub(one, i32x4.ge_s(v128.load(i), bound));
  const sums = i32x4.add(one, other);
  const low = i32x4.extract_lane(sums, 0) + i32x4.extract_lane(sums, 1);
  return low + i32x4.extract_lane(sums, 2) + i32x4.extract_lane(sums, 3);
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
  const counts = at(unit, 92) + <usize>arg(1) * 12;
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
