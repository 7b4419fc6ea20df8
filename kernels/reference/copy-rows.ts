import { assert } from "../../protocol/assert.ts";

/** Which rows go where; `width` in elements. */
export interface CopyShape {
  outRow: number;
  xRow: number;
  rows: number;
  width: number;
}

/** Copies `rows` rows of `width` elements. */
export function copyRows(out: Float32Array, x: Float32Array, { outRow, xRow, rows, width }: CopyShape): void {
  out.set(x.subarray(xRow * width, (xRow + rows) * width), outRow * width);
}

/** `out[i] = x[indices[i]]`, rows of `width` elements. */
export function gatherRows(out: Float32Array, x: Float32Array, indices: Uint32Array, width: number): void {
  indices.forEach((index, row) => {
    assert((index + 1) * width <= x.length, `row ${index} is outside the buffer`);
    out.set(x.subarray(index * width, (index + 1) * width), row * width);
  });
}
