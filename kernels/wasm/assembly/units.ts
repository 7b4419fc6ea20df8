// The record of a unit: what is ranked for one query group, in one KV head or in the whole layer. Mirrored in kernels/wasm/unit-records.ts.
//
//   0 index of the first row and head among the step's query vectors   4 first query of the tile   8 queries of the tile
//   12 query heads of the unit in a row   16 first KV head
//   20 first candidate item   24 end of the candidates   28 scores f32 [items]   32 raw scores f32 [queries of the tile][stride]
//   36 sums of exponentials [queries of the tile]   40 stride of raw scores (elements)   44 K   48 combine (0 max, 1 softmax-sum)
//   52 radius weight (f32)   56 choice: a byte for four items, bit i for the i-th of them   60 was the choice taken over?
// Page units: item i is page 4 * first block + i.
//   64 first block   68 summary slots of the slice   72 summaries of the kind   76 page masks, a byte for every block before the last one
//   80 their number   84 sink pages   88 first recent page   92 counts [layer]{chosen blocks that are not resident, resident ones, their tokens}
//   96 bitmap of chosen blocks [layer][words] (0: none)   100 words of a layer
//   104 block ids of the slice [layer][capacity]   108 capacity
//   112 form of the summaries (0 centre and radius, 1 two keys, 2 sign bits, 4 residual signs)
//   116 blocks that a coarse pass left (0: item i is as said above): item i is page i % 4 of the (i / 4)-th of them
// Coarse units: item i is block first block + i.
//   64, 68, 84, 88 as above   72 centres of blocks   76 0   112 3   120 list of blocks to be written: the choice, with the blocks
//   before and behind it of which only some pages are candidates
// Token units: item i is token i % 16 of the (i / 16)-th kept page.
//   64 kept pages   104, 108 as above
// Items are padded to fours: scores of items that are no candidates are -Infinity while votes are counted, and never chosen.
// A query is a (row, head) pair of the unit, rows first. Queries run in tiles, so that raw scores stay small.

export const UNIT_BYTES: usize = 128;

/** A word of a record as an address or count. */
// @ts-ignore: decorator
@inline
export function at(unit: usize, offset: usize): usize {
  return <usize>load<u32>(unit + offset);
}

/** A word of a record. */
// @ts-ignore: decorator
@inline
export function word(unit: usize, offset: usize): i32 {
  return load<i32>(unit + offset);
}

/** Lanes of four items from `item` on that are candidates, all bits set. */
// @ts-ignore: decorator
@inline
export function candidateLanes(unit: usize, item: i32): v128 {
  const items = i32x4.add(i32x4.splat(item), i32x4(0, 1, 2, 3));
  const begins = i32x4.ge_s(items, i32x4.splat(word(unit, 20)));
  return v128.and(begins, i32x4.lt_s(items, i32x4.splat(word(unit, 24))));
}
