import { type RowRange, type TensorSource, tensorSizes } from "../../models/tensor-source.ts";

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
  async readRows(name: string, { first, count }: RowRange): Promise<Float32Array> {
    const { shape, data } = this.#tensors.get(name)!;
    const { rowValues } = tensorSizes(shape);
    return data.slice(first * rowValues, (first + count) * rowValues);
  }
  async close(): Promise<void> {}
}
