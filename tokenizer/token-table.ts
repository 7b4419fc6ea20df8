/**
 * Byte strings of a vocabulary by id, and ids by byte string, without an object per token: one blob with offsets, and an
 * open-addressing table of ids. The words and bytes are the file format (`docs/tokenizer-format.md`).
 */
import { isPowerOfTwo, slotCountFor } from "./slots.ts";

/** Byte strings by id: those of id i are `bytes[offsets[i]..offsets[i + 1]]`. */
export interface ByteStrings {
  /** [count + 1] */
  offsets: Uint32Array;
  bytes: Uint8Array;
}

/** Lays out byte strings one after another; an id without one has an empty one. */
export function layOutByteStrings(strings: readonly (Uint8Array | undefined)[]): ByteStrings {
  const offsets = new Uint32Array(strings.length + 1);
  for (let id = 0; id < strings.length; id++) offsets[id + 1] = (offsets[id] as number) + (strings[id]?.length ?? 0);
  const bytes = new Uint8Array(offsets[strings.length] as number);
  for (let id = 0; id < strings.length; id++) {
    const string = strings[id];
    if (string !== undefined) bytes.set(string, offsets[id]);
  }
  return { offsets, bytes };
}

/** What is wrong with byte strings, or undefined. */
export function faultOfByteStrings({ offsets, bytes }: ByteStrings): string | undefined {
  if (offsets[0] !== 0 || offsets.at(-1) !== bytes.length) return "the offsets of the tokens do not span their bytes";
  for (let id = 1; id < offsets.length; id++) {
    if ((offsets[id] as number) < (offsets[id - 1] as number)) return "the offsets of the tokens go backwards";
  }
  return undefined;
}

/** Words of a table that finds `ids` by their byte strings; of equal strings the first id counts. */
export function buildTokenSlots(ids: readonly number[], strings: ByteStrings): Int32Array {
  const slots = new Int32Array(slotCountFor(ids.length)).fill(-1);
  const table = new TokenTable(slots, strings);
  for (const id of ids) {
    const bytes = strings.bytes.subarray(strings.offsets[id], strings.offsets[id + 1]);
    const slot = table.slotOf(bytes, bytes.length);
    if (slots[slot] === -1) slots[slot] = id;
  }
  return slots;
}

/** What is wrong with the words of a table over ids below `idCount`, or undefined: then every look-up ends. */
export function faultOfTokenSlots(slots: Int32Array, idCount: number): string | undefined {
  if (!isPowerOfTwo(slots.length)) return "the size of the token table is not a power of two";
  let free = 0;
  for (const id of slots) {
    if (id === -1) free++;
    else if (id < 0 || id >= idCount) return "the token table has an id outside of the vocabulary";
  }
  return free === 0 ? "the token table has no free slot" : undefined;
}

/** Finds ids by byte strings. */
export class TokenTable {
  readonly #slots: Int32Array;
  readonly #strings: ByteStrings;

  /** Keeps both. */
  constructor(slots: Int32Array, strings: ByteStrings) {
    this.#slots = slots;
    this.#strings = strings;
  }

  /** The id whose byte string is the first `length` of `bytes`, or -1. */
  find(bytes: Uint8Array, length: number): number {
    return this.#slots[this.slotOf(bytes, length)] as number;
  }

  /** Where the id of a byte string is in the table, or would be. */
  slotOf(bytes: Uint8Array, length: number): number {
    const mask = this.#slots.length - 1;
    let hash = 0x811c9dc5;
    for (let at = 0; at < length; at++) hash = Math.imul(hash ^ (bytes[at] as number), 0x01000193);
    let slot = (hash ^ (hash >>> 15)) & mask;
    while (true) {
      const id = this.#slots[slot] as number;
      if (id === -1 || this.#holds(id, bytes, length)) return slot;
      slot = (slot + 1) & mask;
    }
  }

  #holds(id: number, bytes: Uint8Array, length: number): boolean {
    const { offsets, bytes: held } = this.#strings;
    const start = offsets[id] as number;
    if ((offsets[id + 1] as number) - start !== length) return false;
    for (let at = 0; at < length; at++) if (held[start + at] !== bytes[at]) return false;
    return true;
  }
}
