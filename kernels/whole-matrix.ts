/** `Device.matrix`, the same on every device: an empty matrix whose rows are all written. */
import { assert } from "../protocol/assert.ts";
import type { Device, Matrix, MatrixEncoding } from "./contract.ts";

/** Packs `data`, f32 `[outWidth, inWidth]`, into a new matrix. @throws {AssertionError} when it does not have that shape. */
export function wholeMatrix(
  device: Pick<Device, "emptyMatrix" | "writeRows">,
  {
    label,
    encoding,
    outWidth,
    inWidth,
  }: { label: string; encoding: MatrixEncoding; outWidth: number; inWidth: number },
  data: Float32Array,
): Matrix {
  assert(data.length === outWidth * inWidth, `matrix ${label}: data does not have its shape`);
  const matrix = device.emptyMatrix(label, encoding, { outWidth, inWidth });
  device.writeRows(matrix, 0, data);
  return matrix;
}
