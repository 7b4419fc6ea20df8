import { assert } from "../../protocol/assert.ts";

/** Ids 0..count-1 of which some are free; lowest-numbered reuse is not promised, giving back twice is an assertion. */
export class FreeList {
  readonly count: number;
  readonly #free: number[];
  readonly #taken: Uint8Array;

  constructor(count: number) {
    this.count = count;
    this.#free = Array.from({ length: count }, (_, index) => count - 1 - index);
    this.#taken = new Uint8Array(count);
  }

  get freeCount(): number {
    return this.#free.length;
  }

  /** @throws {AssertionError} when none is free: callers make room first. */
  take(): number {
    const id = this.#free.pop();
    assert(id !== undefined, "free list is empty");
    this.#taken[id] = 1;
    return id;
  }

  give(id: number): void {
    assert(this.#taken[id] === 1, `id ${id} was not taken`);
    this.#taken[id] = 0;
    this.#free.push(id);
  }
}
