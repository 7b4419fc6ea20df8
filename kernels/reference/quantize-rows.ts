/** Rows quantized in blocks of 32 (see `Matrix` in contract.ts): weights when packed, inputs when they enter a product. */
import { int8Code, int8Scale, roundHalfEven } from "../block-codec.ts";

/** Elements that share a scale; the last group of a row may be shorter. */
export const SCALE_GROUP = 32;

/** Quantized rows: an element is `f32(code * scale)` of its group. */
export interface Int8Rows {
  /** `[rows, width]` */
  codes: Int8Array;
  /** f32 `[rows, ceil(width / 32)]` */
  scales: Float32Array;
}

/** Chooses a scale for the elements `[start, end)` of `data`, and codes under it. */
interface Quantizer {
  scale(data: Float32Array, start: number, end: number): number;
  code(value: number, scale: number): number;
}

const INT8: Quantizer = {
  scale(data, start, end) {
    let maxAbs = 0;
    for (let at = start; at < end; at++) maxAbs = Math.max(maxAbs, Math.abs(data[at] as number));
    return int8Scale(maxAbs);
  },
  code: int8Code,
};

const INT4: Quantizer = {
  scale(data, start, end) {
    let largest = 0;
    for (let at = start; at < end; at++) {
      const value = data[at] as number;
      if (Math.abs(value) > Math.abs(largest)) largest = value;
    }
    return Math.fround(largest / -8);
  },
  code: (value, scale) => (scale === 0 ? 0 : Math.max(-8, Math.min(7, roundHalfEven(Math.fround(value / scale))))),
};

/** Quantizes `rows` rows of `width` from the start of `data`, in 8 bits: inputs, and weights of that encoding. */
export function quantizeRows(data: Float32Array, rows: number, width: number): Int8Rows {
  return quantize(INT8, data, { rows, width });
}

/** As {@link quantizeRows}, in 4 bits: codes -8..7. */
export function quantizeRowsInt4(data: Float32Array, rows: number, width: number): Int8Rows {
  return quantize(INT4, data, { rows, width });
}

function quantize(
  quantizer: Quantizer,
  data: Float32Array,
  { rows, width }: { rows: number; width: number },
): Int8Rows {
  const groups = Math.ceil(width / SCALE_GROUP);
  const codes = new Int8Array(rows * width);
  const scales = new Float32Array(rows * groups);
  for (let row = 0; row < rows; row++) {
    for (let group = 0; group < groups; group++) {
      const start = row * width + group * SCALE_GROUP;
      const end = row * width + Math.min(width, (group + 1) * SCALE_GROUP);
      const scale = quantizer.scale(data, start, end);
      scales[row * groups + group] = scale;
      for (let at = start; at < end; at++) codes[at] = quantizer.code(data[at] as number, scale);
    }
  }
  return { codes, scales };
}

/** f32 values rounded to bf16 (nearest even); NaN stays NaN. */
export function roundToBf16(data: Float32Array): Float32Array {
  const words = new Uint32Array(data.slice().buffer);
  for (let at = 0; at < words.length; at++) {
    const bits = words[at] as number;
    const rounded = Number.isNaN(data[at]) ? bits | 0x40_0000 : bits + 0x7fff + ((bits >>> 16) & 1);
    words[at] = rounded & 0xffff_0000;
  }
  return new Float32Array(words.buffer);
}
