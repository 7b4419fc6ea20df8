/** Named tensors, read one at a time as f32. */
export interface TensorSource {
  readonly names: readonly string[];
  /** Undefined where there is no such tensor. */
  shape(name: string): readonly number[] | undefined;
  /**
   * The tensor, row-major; a fresh array that the caller owns.
   * @throws {QuireError} `invalid_request` when it is missing or cannot be read in full.
   */
  read(name: string): Promise<Float32Array>;
  close(): Promise<void>;
}
