import type { TensorSource } from "../../models/tensor-source.ts";

/** Row-major. */
export interface MemoryTensor {
  shape: number[];
  data: Float32Array;
}

/** Tensors in memory. */
export class MemoryTensors implements TensorSource {
  readonly #tensors: ReadonlyMap<string, MemoryTensor>;
  constructor(tensors: ReadonlyMap<string, MemoryTensor>) {
    this.#tensors = tensors;
  }
  get names(): string[] {
    return [...this.#tensors.keys()];
  }
  shape(name: string): readonly number[] | undefined {
    return this.#tensors.get(name)?.shape;
  }
  async read(name: string): Promise<Float32Array> {
    return this.#tensors.get(name)!.data.slice();
  }
  async close(): Promise<void> {}
}
