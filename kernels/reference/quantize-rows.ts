/** Rows quantized in blocks of 32 (see `Matrix` in contract.ts): weights when packed, inputs when they enter a product. */
import { int8Code, int8Scale, roundHalfEven } from "../block-codec.ts";

/** Elements that share a scale; the last group of a row may be shorter. */
export const SCALE_GROUP = 32;

/** The largest finite f16, and the f32 bits of the least normal one, 2^-14. */
const F16_MAX = 65_504;
const F16_NORMAL_BITS = 0x3880_0000;

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

/** f32 values rounded to f16 (nearest even); a finite one to at most 65504, NaN stays NaN. */
export function roundToF16(data: Float32Array): Float32Array {
  return data.map((value) => {
    const magnitude = Math.abs(value);
    if (!(magnitude < F16_MAX)) return magnitude < Number.POSITIVE_INFINITY ? Math.sign(value) * F16_MAX : value;
    // Adding and taking away 2^(e + 13) rounds to 2^(e - 10), where 2^e is the value's power of two, -14 at least: f32 additions do the rest.
    const words = new Uint32Array(Float32Array.of(magnitude).buffer);
    words[0] = (Math.max(words[0] as number, F16_NORMAL_BITS) & 0x7f80_0000) + (13 << 23);
    const large = new Float32Array(words.buffer)[0] as number;
    return Math.sign(value) * (Math.fround(magnitude + large) - large);
  });
}

/** The bits of values that are f16. */
export function f16Bits(data: Float32Array): Uint16Array {
  const bits = new Uint32Array(data.buffer, data.byteOffset, data.length);
  return Uint16Array.from(bits, (word, at) => {
    const sign = (word >>> 16) & 0x8000;
    const magnitude = word & 0x7fff_ffff;
    if (magnitude >= 0x7f80_0000) return sign | 0x7c00 | (magnitude > 0x7f80_0000 ? 0x200 : 0);
    if (magnitude >= F16_NORMAL_BITS) return sign | ((magnitude - F16_NORMAL_BITS + (1 << 23)) >>> 13);
    return sign | (Math.abs(data[at] as number) * 2 ** 24);
  });
}
