// Soft votes: each query's scores go through a softmax over the candidates, then they are added. The unit record is described in units.ts.
import { arg, argAt, argF32 } from "./control";
import { at, UNIT_BYTES, word } from "./units";
import { exp4, maxLanes, sumLanes, weigh16 } from "./vector";

const NEGATIVE_INFINITY: f32 = -Infinity;

/**
 * Softmax of one query over the items: raw scores become their exponentials, whose sum is noted. Task = unit * tile + query of the tile.
 * args: units, tile, scale
 */
export function voteStatsTask(task: i32): void {
  const unit = argAt(0) + <usize>(task / arg(1)) * UNIT_BYTES;
  const query = task % arg(1);
  if (query >= word(unit, 8)) return;
  // Rows of raw scores are padded to fours with -Infinity.
  const end = (at(unit, 24) + 3 & ~3) << 2;
  const raw = at(unit, 32) + <usize>query * (at(unit, 40) << 2);
  const scale = argF32(2);
  // Scaled, largest first: rounding keeps the order, so the largest scaled score is the largest one scaled. A NaN is largest of all.
  let largest = f32x4.splat(NEGATIVE_INFINITY), other = largest;
  let broken = i32x4.splat(0);
  const scales = f32x4.splat(scale);
  let i: usize = 0;
  for (; i + 32 <= end; i += 32) {
    const one = f32x4.mul(v128.load(raw + i), scales);
    const next = f32x4.mul(v128.load(raw + i, 16), scales);
    v128.store(raw + i, one);
    v128.store(raw + i, next, 16);
    largest = f32x4.pmax(one, largest);
    other = f32x4.pmax(next, other);
    broken = v128.or(broken, v128.or(f32x4.ne(one, one), f32x4.ne(next, next)));
  }
  for (; i < end; i += 16) {
    const one = f32x4.mul(v128.load(raw + i), scales);
    v128.store(raw + i, one);
    largest = f32x4.pmax(one, largest);
    broken = v128.or(broken, f32x4.ne(one, one));
  }
  const most: f32 = v128.any_true(broken) ? f32.NaN : maxLanes(f32x4.max(largest, other));
  // No finite score: any finite maximum keeps e^(-inf) = 0 and avoids inf - inf.
  const shift = f32x4.splat(most == NEGATIVE_INFINITY ? 0 : most);
  let sums = f32x4.splat(0);
  for (i = 0; i + 64 <= end; i += 64) sums = weigh16(raw + i, shift, sums);
  for (; i < end; i += 16) {
    const e = exp4(f32x4.sub(v128.load(raw + i), shift));
    v128.store(raw + i, e);
    sums = f32x4.add(sums, e);
  }
  const sum = sumLanes(sums);
  store<f32>(at(unit, 36) + ((<usize>query) << 2), sum == 0 ? <f32>1 : sum);
}

/** Adds the tile's softmaxes to the scores, queries ascending. Task = unit * chunks + chunk. args: units, chunks, items of a chunk */
export function voteSumTask(task: i32): void {
  const unit = argAt(0) + <usize>(task / arg(1)) * UNIT_BYTES;
  const first = (task % arg(1)) * arg(2);
  const end = min(word(unit, 24), first + arg(2));
  const stride = at(unit, 40) << 2;
  const isFirst = at(unit, 4) == 0;
  for (let item = first; item < end; item += 4) {
    const offset = (<usize>item) << 2;
    let total = isFirst ? f32x4.splat(0) : v128.load(at(unit, 28) + offset);
    let raw = at(unit, 32) + offset;
    let sums = at(unit, 36);
    for (let query = at(unit, 8); query > 0; query--) {
      total = f32x4.add(total, f32x4.div(v128.load(raw), v128.load32_splat(sums)));
      raw += stride;
      sums += 4;
    }
    v128.store(at(unit, 28) + offset, total);
  }
}
