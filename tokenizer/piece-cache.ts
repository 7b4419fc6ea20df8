/**
 * Remembers the ids of recent pieces in flat tables, found by the units of the text itself: a hit makes no string and no
 * object. When a table is full everything is forgotten; memory is fixed (2 MiB), whatever the texts are. Probing is bounded,
 * so that pieces chosen to collide cost nothing but their place in the cache.
 */
const SLOT_COUNT = 65_536;
const SLOT_WORDS = 4;
const PROBES_MAX = 8;
const ENTRY_COUNT_MAX = 32_768;
const UNIT_COUNT_MAX = 262_144;
const ID_COUNT_MAX = 131_072;
/** Longer pieces are rare and not remembered. */
const PIECE_LENGTH_MAX = 64;

/** Pieces are ranges `units[from..end]` of a text. */
export class PieceCache {
  /** Hash, place of the units, place of the ids, and length of both (units + 65,536 * ids; 0 in a free slot). */
  readonly #slots = new Int32Array(SLOT_COUNT * SLOT_WORDS);
  readonly #units = new Uint16Array(UNIT_COUNT_MAX);
  readonly #ids = new Int32Array(ID_COUNT_MAX);
  #entryCount = 0;
  #unitCount = 0;
  #idCount = 0;

  /** Appends the ids of the piece to `out` and returns true, or returns false when they are not known. */
  get(units: Uint16Array, from: number, end: number, out: number[]): boolean {
    const length = end - from;
    if (length > PIECE_LENGTH_MAX) return false;
    const slots = this.#slots;
    const hash = hashOf(units, from, end);
    for (let probe = 0; probe < PROBES_MAX; probe++) {
      const slot = ((hash + probe) & (SLOT_COUNT - 1)) * SLOT_WORDS;
      const lengths = slots[slot + 3] as number;
      if (lengths === 0) return false;
      if (slots[slot] !== hash || (lengths & 0xffff) !== length) continue;
      if (!this.#equals(slots[slot + 1] as number, units, from, length)) continue;
      const first = slots[slot + 2] as number;
      const last = first + (lengths >>> 16);
      for (let at = first; at < last; at++) out.push(this.#ids[at] as number);
      return true;
    }
    return false;
  }

  /** Remembers `ids[first..]` as the ids of a piece that {@link get} did not know. */
  set(units: Uint16Array, from: number, end: number, ids: readonly number[], first: number): void {
    const length = end - from;
    const idCount = ids.length - first;
    if (length === 0 || length > PIECE_LENGTH_MAX) return;
    if (
      this.#entryCount === ENTRY_COUNT_MAX ||
      this.#unitCount + length > UNIT_COUNT_MAX ||
      this.#idCount + idCount > ID_COUNT_MAX
    ) {
      this.#forget();
    }
    const hash = hashOf(units, from, end);
    for (let probe = 0; probe < PROBES_MAX; probe++) {
      const slot = ((hash + probe) & (SLOT_COUNT - 1)) * SLOT_WORDS;
      if (this.#slots[slot + 3] !== 0) continue;
      this.#slots[slot] = hash;
      this.#slots[slot + 1] = this.#unitCount;
      this.#slots[slot + 2] = this.#idCount;
      this.#slots[slot + 3] = length | (idCount << 16);
      for (let at = from; at < end; at++) this.#units[this.#unitCount++] = units[at] as number;
      for (let at = first; at < ids.length; at++) this.#ids[this.#idCount++] = ids[at] as number;
      this.#entryCount++;
      return;
    }
  }

  #equals(held: number, units: Uint16Array, from: number, length: number): boolean {
    for (let at = 0; at < length; at++) if (this.#units[held + at] !== units[from + at]) return false;
    return true;
  }

  #forget(): void {
    this.#slots.fill(0);
    this.#entryCount = 0;
    this.#unitCount = 0;
    this.#idCount = 0;
  }
}

function hashOf(units: Uint16Array, from: number, end: number): number {
  let hash = 0x811c9dc5;
  for (let at = from; at < end; at++) hash = Math.imul(hash ^ (units[at] as number), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  return hash ^ (hash >>> 13);
}
