import type { ReferenceMatrix } from "./memory.ts";
import { quantizeRows, SCALE_GROUP } from "./quantize-rows.ts";

/**
 * `out = x . matrix^T`, or `out += ...`; the finished product is rounded to f32 before it is added.
 * f32 and bf16: accumulated in f64, so that this is closer to the truth than any device it judges. int8 and int4: exactly as `Matrix` says.
 */
export function matmul(
  out: Float32Array,
  x: Float32Array,
  matrix: ReferenceMatrix,
  rows: number,
  accumulate: boolean,
): void {
  const product = matrix.isFloat ? floatProduct(x, matrix) : quantizedProduct(x, matrix, rows);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < matrix.outWidth; column++) {
      const at = row * matrix.outWidth + column;
      const value = Math.fround(product(row, column));
      out[at] = accumulate ? (out[at] as number) + value : value;
    }
  }
}

type Product = (row: number, column: number) => number;

function floatProduct(x: Float32Array, matrix: ReferenceMatrix): Product {
  const { inWidth, floats } = matrix;
  return (row, column) => {
    let sum = 0;
    for (let k = 0; k < inWidth; k++) {
      sum += (x[row * inWidth + k] as number) * (floats[column * inWidth + k] as number);
    }
    return sum;
  };
}

function quantizedProduct(x: Float32Array, matrix: ReferenceMatrix, rows: number): Product {
  const { inWidth, codes, scales } = matrix;
  const groups = Math.ceil(inWidth / SCALE_GROUP);
  const input = quantizeRows(x, rows, inWidth);
  return (row, column) => {
    let sum = 0;
    for (let group = 0; group < groups; group++) {
      const end = Math.min(inWidth, (group + 1) * SCALE_GROUP);
      let dot = 0;
      for (let k = group * SCALE_GROUP; k < end; k++) {
        dot += (input.codes[row * inWidth + k] as number) * (codes[column * inWidth + k] as number);
      }
      const scale = Math.fround(
        (scales[column * groups + group] as number) * (input.scales[row * groups + group] as number),
      );
      sum = Math.fround(sum + Math.fround(dot * scale));
    }
    return sum;
  };
}
