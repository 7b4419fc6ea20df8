/**
 * The merges of a byte-pair encoding: (left id, right id) -> (rank, merged id), as one open-addressing table of 32-bit
 * words (16 bytes a slot, at most half full), because a `Map` of 150,000 pairs costs several times that at the edge.
 */
export class MergeTable {
  /** Slots of four words: left, right, rank, merged; left is -1 in a free slot. */
  readonly #slots: Int32Array;
  readonly #mask: number;
  readonly count: number;

  /** Keeps nothing of `merges`; of equal pairs the first (lowest rank) counts, as in the reference. */
  constructor(merges: readonly { left: number; right: number; merged: number }[]) {
    let slotCount = 4;
    while (slotCount < merges.length * 2) slotCount *= 2;
    this.#slots = new Int32Array(slotCount * 4).fill(-1);
    this.#mask = slotCount - 1;
    this.count = merges.length;
    for (const [rank, { left, right, merged }] of merges.entries()) {
      const slot = this.find(left, right);
      if (this.#slots[slot] !== -1) continue;
      this.#slots.set([left, right, rank, merged], slot);
    }
  }

  /** Handle of the slot where the pair is, or where it would be: pass it to {@link rankAt} and {@link mergedAt}. */
  find(left: number, right: number): number {
    const slots = this.#slots;
    let index = (Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b)) >>> 0;
    index = (index ^ (index >>> 15)) & this.#mask;
    while (true) {
      const slot = index * 4;
      const held = slots[slot];
      if (held === -1 || (held === left && slots[slot + 1] === right)) return slot;
      index = (index + 1) & this.#mask;
    }
  }

  /** Rank of the pair at a handle, lower merges first; -1 when the pair does not merge. */
  rankAt(slot: number): number {
    return this.#slots[slot + 2] as number;
  }

  /** The id that the pair at a handle becomes. */
  mergedAt(slot: number): number {
    return this.#slots[slot + 3] as number;
  }
}
