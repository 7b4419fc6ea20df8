/** Seeded randomness of the kernel tests. Seeds stand in the test names, so that a failure names its seed. */

/** Set QUIRE_SEED to try other data; the suite must pass for every seed. */
export const SEED = Number(globalThis.process?.env.QUIRE_SEED ?? 1);

/** A small generator (mulberry32), the same numbers for the same seed everywhere. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** Uniform in [0, 1), 32 bits (mulberry32). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** Uniform in [0, end). */
  integer(end: number): number {
    return Math.floor(this.next() * end);
  }

  /** Normal with mean 0 (Box-Muller). */
  normal(deviation = 1): number {
    return deviation * Math.sqrt(-2 * Math.log(1 - this.next())) * Math.cos(2 * Math.PI * this.next());
  }

  normals(count: number, deviation = 1): Float32Array<ArrayBuffer> {
    const values = new Float32Array(count);
    for (let index = 0; index < count; index++) values[index] = this.normal(deviation);
    return values;
  }

  bytes(count: number): Uint8Array<ArrayBuffer> {
    const values = new Uint8Array(count);
    for (let index = 0; index < count; index++) values[index] = this.integer(256);
    return values;
  }

  /** 0 .. count-1 in random order. */
  permutation(count: number): number[] {
    const order = Array.from({ length: count }, (_, index) => index);
    for (let index = count - 1; index > 0; index--) {
      const other = this.integer(index + 1);
      [order[index], order[other]] = [order[other]!, order[index]!];
    }
    return order;
  }
}
