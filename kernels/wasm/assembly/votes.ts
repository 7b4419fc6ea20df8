// Soft votes: each query's scores go through a softmax over the candidates, then they are added. The unit record is described in units.ts.
import { arg, argAt, argF32 } from "./control";
import { at, UNIT_BYTES, word } from "./units";
import { exp4, maxLanes, sumLanes } from "./vector";

const NEGATIVE_INFINITY: f32 = -Infinity;

/** Softmax of one query over the items: the largest score and the sum. Task = unit * tile + query of the tile. args: units, tile, scale */
export function voteStatsTask(task: i32): void {
  const unit = argAt(0) + <usize>(task / arg(1)) * UNIT_BYTES;
  const query = task % arg(1);
  if (query >= word(unit, 8)) return;
  // Rows of raw scores are padded to fours with -Infinity.
  const end = (at(unit, 24) + 3 & ~3) << 2;
  const raw = at(unit, 32) + <usize>query * (at(unit, 40) << 2);
  const scale = argF32(2);
  let largest = f32x4.splat(NEGATIVE_INFINITY);
  for (let i: usize = 0; i < end; i += 16) largest = f32x4.max(largest, v128.load(raw + i));
  const most = maxLanes(largest);
  // No finite score: any finite maximum keeps e^(-inf) = 0 and avoids inf - inf.
  const shift: f32 = most == NEGATIVE_INFINITY ? 0 : most * scale;
  let sums = f32x4.splat(0);
  for (let i: usize = 0; i < end; i += 16) {
    sums = f32x4.add(sums, exp4(f32x4.sub(f32x4.mul(v128.load(raw + i), f32x4.splat(scale)), f32x4.splat(shift))));
  }
  const sum = sumLanes(sums);
  const stats = at(unit, 36) + ((<usize>query) << 3);
  store<f32>(stats, shift);
  store<f32>(stats, sum == 0 ? <f32>1 : sum, 4);
}

/** Adds the tile's softmaxes to the scores, queries ascending. Task = unit * chunks + chunk. args: units, chunks, items of a chunk, scale */
export function voteSumTask(task: i32): void {
  const unit = argAt(0) + <usize>(task / arg(1)) * UNIT_BYTES;
  const first = (task % arg(1)) * arg(2);
  const end = min(word(unit, 24), first + arg(2));
  const stride = at(unit, 40) << 2;
  const scales = f32x4.splat(argF32(3));
  const isFirst = at(unit, 4) == 0;
  for (let item = first; item < end; item += 4) {
    const offset = (<usize>item) << 2;
    let total = isFirst ? f32x4.splat(0) : v128.load(at(unit, 28) + offset);
    let raw = at(unit, 32) + offset;
    let stats = at(unit, 36);
    for (let query = at(unit, 8); query > 0; query--) {
      const e = exp4(f32x4.sub(f32x4.mul(v128.load(raw), scales), v128.load32_splat(stats)));
      total = f32x4.add(total, f32x4.div(e, v128.load32_splat(stats, 4)));
      raw += stride;
      stats += 8;
    }
    v128.store(at(unit, 28) + offset, total);
  }
}
