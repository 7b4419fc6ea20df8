/**
 * Byte-pair merging of one piece: repeatedly the pair of lowest rank, leftmost first among equals. Short pieces by scanning
 * (quadratic, but without allocation), long ones by a heap over a linked list, O(n log n) whatever the text is: 100,000
 * equal letters must not hold a Worker.
 */
import type { MergeTable } from "./merge-table.ts";

const SCAN_LENGTH_MAX = 48;
const NO_RANK = 0x7fffffff;

/** Merges pieces over one table. One call at a time: the scratch of short pieces is used again. */
export class PieceMerger {
  readonly #table: MergeTable;
  /** Slot and rank of the pair that begins at each place of a short piece. */
  readonly #slots = new Int32Array(SCAN_LENGTH_MAX);
  readonly #ranks = new Int32Array(SCAN_LENGTH_MAX);

  constructor(table: MergeTable) {
    this.#table = table;
  }

  /**
   * Merges the first `length` of `ids` in place and returns how many ids are left at its front.
   * `ids` beyond that is scratch afterwards.
   */
  merge(ids: Int32Array, length: number): number {
    if (length < 2 || this.#table.isEmpty) return length;
    return length <= SCAN_LENGTH_MAX ? this.#mergeByScan(ids, length) : mergeByHeap(ids, length, this.#table);
  }

  #mergeByScan(ids: Int32Array, length: number): number {
    const ranks = this.#ranks;
    let count = length;
    for (let at = 0; at + 1 < count; at++) this.#look(ids, at);
    while (count > 1) {
      let best = NO_RANK;
      let bestAt = 0;
      for (let at = 0; at + 1 < count; at++) {
        const rank = ranks[at] as number;
        if (rank < best) {
          best = rank;
          bestAt = at;
        }
      }
      if (best === NO_RANK) break;
      ids[bestAt] = this.#table.mergedAt(this.#slots[bestAt] as number);
      count--;
      for (let at = bestAt + 1; at < count; at++) {
        ids[at] = ids[at + 1] as number;
        this.#slots[at] = this.#slots[at + 1] as number;
        ranks[at] = ranks[at + 1] as number;
      }
      if (bestAt > 0) this.#look(ids, bestAt - 1);
      if (bestAt + 1 < count) this.#look(ids, bestAt);
    }
    return count;
  }

  #look(ids: Int32Array, at: number): void {
    const slot = this.#table.find(ids[at] as number, ids[at + 1] as number);
    const rank = this.#table.rankAt(slot);
    this.#slots[at] = slot;
    this.#ranks[at] = rank < 0 ? NO_RANK : rank;
  }
}

function mergeByHeap(ids: Int32Array, length: number, table: MergeTable): number {
  const next = new Int32Array(length);
  const previous = new Int32Array(length);
  /** Slot of the pair that begins at a position; -1 when it does not merge or the position is merged away. */
  const pairSlot = new Int32Array(length).fill(-1);
  const heap = new PositionHeap(length);

  const look = (at: number): void => {
    const right = next[at] as number;
    pairSlot[at] = -1;
    if (right >= length) return;
    const slot = table.find(ids[at] as number, ids[right] as number);
    const rank = table.rankAt(slot);
    if (rank < 0) return;
    pairSlot[at] = slot;
    heap.push(rank, at);
  };

  for (let at = 0; at < length; at++) {
    next[at] = at + 1;
    previous[at] = at - 1;
  }
  for (let at = 0; at + 1 < length; at++) look(at);

  while (heap.pop()) {
    const at = heap.position;
    const slot = pairSlot[at] as number;
    if (slot < 0 || table.rankAt(slot) !== heap.rank) continue;
    const right = next[at] as number;
    const after = next[right] as number;
    ids[at] = table.mergedAt(slot);
    pairSlot[right] = -1;
    next[at] = after;
    if (after < length) previous[after] = at;
    look(at);
    const before = previous[at] as number;
    if (before >= 0) look(before);
  }

  let count = 0;
  for (let at = 0; at < length; at = next[at] as number) ids[count++] = ids[at] as number;
  return count;
}

/** A binary min-heap of (rank, position), packed into one exact double each: rank * 2^28 + position. */
class PositionHeap {
  static readonly #POSITIONS = 2 ** 28;
  #keys: Float64Array;
  #size = 0;
  /** What the last {@link pop} took. */
  rank = -1;
  position = -1;

  constructor(capacity: number) {
    this.#keys = new Float64Array(capacity);
  }

  push(rank: number, position: number): void {
    if (this.#size === this.#keys.length) {
      const grown = new Float64Array(this.#size * 2);
      grown.set(this.#keys);
      this.#keys = grown;
    }
    const keys = this.#keys;
    const key = rank * PositionHeap.#POSITIONS + position;
    let index = this.#size++;
    while (index > 0) {
      const parent = (index - 1) >> 1;
      const parentKey = keys[parent] as number;
      if (parentKey <= key) break;
      keys[index] = parentKey;
      index = parent;
    }
    keys[index] = key;
  }

  pop(): boolean {
    if (this.#size === 0) return false;
    const keys = this.#keys;
    const top = keys[0] as number;
    this.rank = Math.floor(top / PositionHeap.#POSITIONS);
    this.position = top - this.rank * PositionHeap.#POSITIONS;
    const size = --this.#size;
    const key = keys[size] as number;
    let index = 0;
    while (true) {
      let child = index * 2 + 1;
      if (child >= size) break;
      if (child + 1 < size && (keys[child + 1] as number) < (keys[child] as number)) child++;
      const childKey = keys[child] as number;
      if (childKey >= key) break;
      keys[index] = childKey;
      index = child;
    }
    keys[index] = key;
    return true;
  }
}
