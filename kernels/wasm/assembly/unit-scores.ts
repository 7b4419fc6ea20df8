// Where scores of a unit's blocks go. The unit record is described in units.ts.
import { at, candidateLanes, word } from "./units";

const NEGATIVE_INFINITY: f32 = -Infinity;

/** Address of a block's summaries. `slots`: slots of the unit's blocks; `list`: where these are listed, or 0; `headBytes`: those of a block. */
// @ts-ignore: decorator
@inline
export function summaryOf(summaries: usize, headBytes: usize, slots: usize, list: usize, block: i32): usize {
  const slotAt = slots + (<usize>(list == 0 ? block : load<i32>(list + (<usize>block << 2))) << 2);
  return summaries + <usize>load<u32>(slotAt) * headBytes;
}

/** The place of raw scores of a query of the unit, of its first item; 0 where scores combine by their largest. */
// @ts-ignore: decorator
@inline
export function rawAt(unit: usize, query: i32): usize {
  return word(unit, 48) == 0 ? 0 : at(unit, 32) + <usize>(query - word(unit, 4)) * (at(unit, 40) << 2);
}

/**
 * Scores of four items from `4 * block` on, of query `query` and, if there is a pair, the next one: largest ones are kept at once, others left at `raw`
 * and `stride` bytes on.
 */
// @ts-ignore: decorator
@inline
export function storeScores(unit: usize, raw: usize, stride: usize, query: i32, isPair: bool, block: i32, one: v128, other: v128): void {
  const offset = <usize>block << 4;
  if (raw == 0) {
    const scores = at(unit, 28) + offset;
    const best = f32x4.max(one, other);
    v128.store(scores, query == 0 ? best : f32x4.max(v128.load(scores), best));
  } else {
    storeRaw(unit, raw + offset, one, block);
    if (isPair) storeRaw(unit, raw + stride + offset, other, block);
  }
}

/** Pages of the range's first and last block that are no candidates weigh nothing. */
// @ts-ignore: decorator
@inline
function storeRaw(unit: usize, to: usize, scores: v128, block: i32): void {
  const isWhole = block * 4 >= word(unit, 20) && block * 4 + 4 <= word(unit, 24);
  v128.store(to, isWhole ? scores : v128.bitselect(scores, f32x4.splat(NEGATIVE_INFINITY), candidateLanes(unit, block << 2)));
}
