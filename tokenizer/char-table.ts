/** Ids of single characters: code point -> id, as open-addressing slots of two words. */
import { isPowerOfTwo, slotCountFor } from "./slots.ts";

const WORDS = 2;

/** Words of a table of `entries`: [code point, id], each code point once. */
export function buildCharSlots(entries: readonly (readonly [number, number])[]): Int32Array {
  const slots = new Int32Array(slotCountFor(entries.length) * WORDS).fill(-1);
  const table = new CharTable(slots);
  for (const entry of entries) slots.set(entry, table.slotOf(entry[0]));
  return slots;
}

/** What is wrong with the words of a table over ids below `idCount`, or undefined: then every look-up ends. */
export function faultOfCharSlots(slots: Int32Array, idCount: number): string | undefined {
  if (!isPowerOfTwo(slots.length / WORDS)) return "the size of the character table is not a power of two";
  let free = 0;
  for (let at = 0; at < slots.length; at += WORDS) {
    const id = slots[at + 1] as number;
    if (slots[at] === -1) free++;
    else if (id < 0 || id >= idCount) return "the character table has an id outside of the vocabulary";
  }
  return free === 0 ? "the character table has no free slot" : undefined;
}

/** Looks up characters. */
export class CharTable {
  readonly #slots: Int32Array;
  readonly #mask: number;

  /** Keeps `slots`. */
  constructor(slots: Int32Array) {
    this.#slots = slots;
    this.#mask = slots.length / WORDS - 1;
  }

  /** Id of a code point, or -1. */
  find(codePoint: number): number {
    const slot = this.slotOf(codePoint);
    return this.#slots[slot] === -1 ? -1 : (this.#slots[slot + 1] as number);
  }

  /** Where a code point is in the words, or would be. */
  slotOf(codePoint: number): number {
    const hash = Math.imul(codePoint, 0x9e3779b1);
    let index = (hash ^ (hash >>> 15)) & this.#mask;
    while (true) {
      const held = this.#slots[index * WORDS];
      if (held === -1 || held === codePoint) return index * WORDS;
      index = (index + 1) & this.#mask;
    }
  }
}
