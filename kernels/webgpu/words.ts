/** A growing table of u32, uploaded once per step and kept from step to step. */
export class Words {
  #data = new Uint32Array(1024);
  #length = 0;

  /** Begins anew; the memory stays. */
  clear(): void {
    this.#length = 0;
  }

  /** Words so far: where the next one goes. */
  get length(): number {
    return this.#length;
  }

  /** Appends words (i32 as their bits) and returns where they begin. */
  push(values: ArrayLike<number>): number {
    const at = this.#length;
    this.#length += values.length;
    if (this.#length > this.#data.length) {
      const grown = new Uint32Array(Math.max(this.#length, this.#data.length * 2));
      grown.set(this.#data);
      this.#data = grown;
    }
    this.#data.set(values, at);
    return at;
  }

  /** Appends a record: the value of every field, in the fields' order. */
  record<Field extends string>(fields: readonly Field[], values: Readonly<Record<Field, number>>): number {
    return this.push(fields.map((field) => values[field]));
  }

  /** Not a copy. */
  bytes(): Uint8Array {
    return new Uint8Array(this.#data.buffer, 0, Math.max(1, this.#length) * 4);
  }
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
