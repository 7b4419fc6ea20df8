/// <reference types="@webgpu/types" />
/** Shorter runs are written again rather than compared. */
const KEPT_WORDS_MIN = 256;

/** Rows of i32 in an array: `rows` of `count`, each `stride` behind the one before. */
export interface RowShape {
  rows: number;
  stride: number;
  count: number;
}

interface Rows {
  at: number;
  end: number;
  owner: object | undefined;
}

/**
 * A growing table of u32, sent to a GPU once per step and kept from step to step: of long runs that the step before had in the same place nothing is sent
 * again. Ids of blocks are such runs: 130,000 of eight sequences of 32K, of which a step changes a few.
 */
export class Words {
  #data = new Int32Array(1024);
  #length = 0;
  /** The buffer that has what the step before pushed. */
  #sentTo: GPUBuffer | undefined;
  /** Runs of rows of the step before, by where they begin; none where that was given up. */
  #before: ReadonlyMap<number, Rows> = new Map();
  #runs = new Map<number, Rows>();
  /** Of this step's, those that lay there, ascending. */
  readonly #kept: Rows[] = [];
  #isSent = false;

  /** Begins anew; the memory stays. */
  clear(): void {
    this.#before = this.#isSent ? this.#runs : new Map();
    this.#runs = new Map();
    this.#isSent = false;
    this.#length = 0;
    this.#kept.length = 0;
  }

  /** Words so far: where the next one goes. */
  get length(): number {
    return this.#length;
  }

  /** Appends words (i32 as their bits) and returns where they begin. */
  push(values: ArrayLike<number>): number {
    const at = this.#take(values.length);
    this.#data.set(values, at);
    return at;
  }

  /** Appends rows without what lies between them; says where they begin, and whether the step before had the same ones there, for which this owner vouched. */
  pushRows(values: Int32Array, { rows, stride, count }: RowShape, owner: object): { at: number; isKept: boolean } {
    const at = this.#take(rows * count);
    const run: Rows = { at, end: this.#length, owner: undefined };
    this.#runs.set(at, run);
    const before = this.#before.get(at);
    const isKnown = before?.end === run.end && before.owner === owner && run.end - at >= KEPT_WORDS_MIN;
    if (isKnown && this.#hasRows(at, values, { rows, stride, count })) {
      this.#kept.push(run);
      return { at, isKept: true };
    }
    for (let row = 0; row < rows; row++) {
      this.#data.set(values.subarray(row * stride, row * stride + count), at + row * count);
    }
    return { at, isKept: false };
  }

  /** The rows that begin at `at` are right for an owner. */
  vouch(at: number, owner: object): void {
    const run = this.#runs.get(at);
    if (run !== undefined) run.owner = owner;
  }

  /** Whether a value is among `count` words from `at` on. */
  includes(value: number, at: number, count: number): boolean {
    return this.#data.subarray(at, at + count).includes(value);
  }

  /** Appends a record: the value of every field, in the fields' order. */
  record<Field extends string>(fields: readonly Field[], values: Readonly<Record<Field, number>>): number {
    return this.push(fields.map((field) => values[field]));
  }

  /** Bytes of the whole table; a table has a word at least. */
  get bytes(): number {
    return Math.max(1, this.#length) * 4;
  }

  /** Writes into `buffer` what it has not, ahead of what is submitted next. */
  sendTo(buffer: GPUBuffer, queue: GPUQueue): void {
    let from = 0;
    for (const { at, end } of buffer === this.#sentTo ? this.#kept : []) {
      this.#send(buffer, queue, from, at);
      from = end;
    }
    this.#send(buffer, queue, from, this.bytes / 4);
    this.#sentTo = buffer;
    this.#isSent = true;
  }

  #send(buffer: GPUBuffer, queue: GPUQueue, from: number, end: number): void {
    if (end > from) queue.writeBuffer(buffer, from * 4, this.#data, from, end - from);
  }

  #hasRows(at: number, values: Int32Array, { rows, stride, count }: RowShape): boolean {
    if (values.length < (rows - 1) * stride + count) return false;
    for (let row = 0; row < rows; row++) {
      if (!isSame(this.#data, at + row * count, values, row * stride, count)) return false;
    }
    return true;
  }

  #take(count: number): number {
    const at = this.#length;
    this.#length += count;
    if (this.#length > this.#data.length) {
      const grown = new Int32Array(Math.max(this.#length, this.#data.length * 2));
      grown.set(this.#data);
      this.#data = grown;
    }
    return at;
  }
}

function isSame(a: Int32Array, aAt: number, b: Int32Array, bAt: number, count: number): boolean {
  for (let index = 0; index < count; index++) if (a[aAt + index] !== b[bAt + index]) return false;
  return true;
}

/** Hands out addresses, in words. */
export class Addresses {
  #end = 0;

  get end(): number {
    return this.#end;
  }

  /** Reserves `count` words, beginning at a multiple of 4. */
  take(count: number): number {
    const at = Math.ceil(this.#end / 4) * 4;
    this.#end = at + count;
    return at;
  }
}

const oneFloat = new Float32Array(1);
const itsBits = new Uint32Array(oneFloat.buffer);

/** The bits of an f32. */
export function floatBits(value: number): number {
  oneFloat[0] = value;
  return itsBits[0] as number;
}
