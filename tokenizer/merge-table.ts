/**
 * The merges of a byte-pair encoding: (left id, right id) -> (rank, merged id), as one open-addressing table of 32-bit
 * words (16 bytes a slot), because a `Map` of 150,000 pairs costs several times that at the edge. The words are the file
 * format (`docs/tokenizer-format.md`): a table is a view of them.
 */
import { isPowerOfTwo, slotCountFor } from "./slots.ts";

const WORDS = 4;

/** Words of a table of `merges` in order of rank; of equal pairs the last counts, as in the reference. Keeps nothing. */
export function buildMergeSlots(merges: readonly { left: number; right: number; merged: number }[]): Int32Array {
  const slots = new Int32Array(slotCountFor(merges.length) * WORDS).fill(-1);
  const table = new MergeTable(slots);
  for (const [rank, { left, right, merged }] of merges.entries()) {
    slots.set([left, right, rank, merged], table.find(left, right));
  }
  return slots;
}

/** What is wrong with the words of a table over ids below `idCount`, or undefined: then every look-up ends. */
export function faultOfMergeSlots(slots: Int32Array, idCount: number): string | undefined {
  const count = slots.length / WORDS;
  if (!isPowerOfTwo(count)) return "the size of the merges is not a power of two";
  let free = 0;
  for (let at = 0; at < slots.length; at += WORDS) {
    if (slots[at] === -1) {
      free++;
      if (slots[at + 2] !== -1) return "a free slot of the merges has a rank";
      continue;
    }
    for (const id of [slots[at], slots[at + 1], slots[at + 3]]) {
      if ((id as number) < 0 || (id as number) >= idCount) return "a merge has an id outside of the vocabulary";
    }
    if ((slots[at + 2] as number) < 0) return "a merge has no rank";
  }
  return free === 0 ? "the merges have no free slot" : undefined;
}

/** Looks up pairs. */
export class MergeTable {
  /** Slots of four words: left, right, rank, merged; all are -1 in a free slot. */
  readonly #slots: Int32Array;
  readonly #mask: number;
  /** True when no pair merges. */
  readonly isEmpty: boolean;

  /** `slots`: as of {@link buildMergeSlots}; kept. */
  constructor(slots: Int32Array) {
    this.#slots = slots;
    this.#mask = slots.length / WORDS - 1;
    this.isEmpty = slots.every((word) => word === -1);
  }

  /** Handle of the slot where the pair is, or where it would be: pass it to {@link rankAt} and {@link mergedAt}. */
  find(left: number, right: number): number {
    const slots = this.#slots;
    let index = (Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b)) >>> 0;
    index = (index ^ (index >>> 15)) & this.#mask;
    while (true) {
      const slot = index * WORDS;
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
