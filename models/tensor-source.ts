/** Which rows of a tensor: of its first dimension. */
export interface RowRange {
  first: number;
  count: number;
}

/** Named tensors, read as f32, a piece at a time where they are large. */
export interface TensorSource {
  readonly names: readonly string[];
  /** Undefined where there is no such tensor. */
  shape(name: string): readonly number[] | undefined;
  /**
   * The tensor, row-major; a fresh array that the caller owns.
   * @throws {QuireError} `invalid_request` when it is missing or cannot be read in full.
   */
  read(name: string): Promise<Float32Array>;
  /** As {@link read}, some rows of it; they must lie within the shape. */
  readRows(name: string, rows: RowRange): Promise<Float32Array>;
  close(): Promise<void>;
}

/** How many rows a tensor has, and values in each; a scalar is one row of one. */
export function tensorSizes(shape: readonly number[]): { rowCount: number; rowValues: number } {
  return { rowCount: shape[0] ?? 1, rowValues: shape.slice(1).reduce((a, b) => a * b, 1) };
}
