/** Sizes of open-addressing tables with linear probing. */

/** Slots for `count` entries: a power of two, at most two thirds full, never without a free one. */
export function slotCountFor(count: number): number {
  let slots = 4;
  while (slots * 2 < count * 3) slots *= 2;
  return slots;
}

/** True for 1, 2, 4, ... */
export function isPowerOfTwo(count: number): boolean {
  return Number.isInteger(count) && count > 0 && count < 2 ** 31 && (count & (count - 1)) === 0;
}
