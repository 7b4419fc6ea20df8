import type { Device, RopeTable } from "../kernels/contract.ts";
import type { RopeFrequencies } from "./rope-frequencies.ts";

/** Positions computed at a time. */
const CHUNK_POSITIONS = 1024;

/**
 * cos and sin of every position, as HF computes them in f32: `angle = position * invFreq_i` rounded to f32; see rope-frequencies.ts. Device memory for all positions is taken at once; values are filled in where a step needs them first,
 * since a model of 128K positions would otherwise spend its start-up on cosines.
 */
export class RopePositions {
  readonly table: RopeTable;
  readonly #device: Device;
  readonly #invFreq: Float32Array;
  readonly #magnitude: number;
  readonly #filled: Uint8Array;

  constructor(device: Device, { inverse, magnitude, positionCount }: RopeFrequencies & { positionCount: number }) {
    const bytes = positionCount * inverse.byteLength;
    this.#device = device;
    this.#invFreq = inverse;
    this.#magnitude = magnitude;
    this.#filled = new Uint8Array(Math.ceil(positionCount / CHUNK_POSITIONS));
    this.table = {
      cos: device.buffer("rope.cos", bytes),
      sin: device.buffer("rope.sin", bytes),
      positionCount,
    };
  }

  /** Makes sure that the positions `[first, last]` are filled in. Call between steps. */
  ensure(first: number, last: number): void {
    for (let chunk = Math.floor(first / CHUNK_POSITIONS); chunk <= Math.floor(last / CHUNK_POSITIONS); chunk++) {
      if (this.#filled[chunk] === 0) this.#fill(chunk);
    }
  }

  #fill(chunk: number): void {
    const half = this.#invFreq.length;
    const start = chunk * CHUNK_POSITIONS;
    const count = Math.min(CHUNK_POSITIONS, this.table.positionCount - start);
    const cos = new Float32Array(count * half);
    const sin = new Float32Array(count * half);
    for (let position = 0; position < count; position++) {
      for (let i = 0; i < half; i++) {
        const angle = Math.fround((start + position) * this.#invFreq[i]!);
        cos[position * half + i] = Math.fround(Math.cos(angle)) * this.#magnitude;
        sin[position * half + i] = Math.fround(Math.sin(angle)) * this.#magnitude;
      }
    }
    this.#device.write(this.table.cos, start * half * 4, new Uint8Array(cos.buffer));
    this.#device.write(this.table.sin, start * half * 4, new Uint8Array(sin.buffer));
    this.#filled[chunk] = 1;
  }
}
