/** Rows quantized in blocks of 32 (see `Matrix` in contract.ts): weights when packed, inputs when they enter a product. */
import { int8Code, int8Scale } from "../block-codec.ts";

/** Elements that share a scale; the last group of a row may be shorter. */
export const SCALE_GROUP = 32;

/** Quantized rows: an element is `f32(code * scale)` of its group. */
export interface Int8Rows {
  /** `[rows, width]` */
  codes: Int8Array;
  /** f32 `[rows, ceil(width / 32)]` */
  scales: Float32Array;
}

/** Quantizes `rows` rows of `width` from the start of `data`. */
export function quantizeRows(data: Float32Array, rows: number, width: number): Int8Rows {
  const groups = Math.ceil(width / SCALE_GROUP);
  const codes = new Int8Array(rows * width);
  const scales = new Float32Array(rows * groups);
  for (let row = 0; row < rows; row++) {
    for (let group = 0; group < groups; group++) {
      const start = row * width + group * SCALE_GROUP;
      const end = row * width + Math.min(width, (group + 1) * SCALE_GROUP);
      let maxAbs = 0;
      for (let at = start; at < end; at++) maxAbs = Math.max(maxAbs, Math.abs(data[at] as number));
      const scale = int8Scale(maxAbs);
      scales[row * groups + group] = scale;
      for (let at = start; at < end; at++) codes[at] = int8Code(data[at] as number, scale);
    }
  }
  return { codes, scales };
}
