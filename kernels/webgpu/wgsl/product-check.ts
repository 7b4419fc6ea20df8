/** A small product of int8 or int4, by which features.ts compares one kernel with another. */

const ROWS = 33;
const WIDTH = 72;
const STEPS = 2;
const BLOCKS = 8 * STEPS;
const GROUPS = WIDTH / 8;

/** Memory of the kernels of matmul.ts, by the names of their bindings. */
export interface ProductCheck {
  params: Readonly<Record<"rows" | "out_width" | "out_first" | "part_width" | "steps" | "accumulate", number>>;
  inputs: Readonly<Record<"weights" | "x" | "weight_scales" | "x_scales", Uint32Array<ArrayBuffer>>>;
}

/**
 * 33 rows times a matrix of 72 rows, 512 inputs: neither is a whole number of tiles, every lane has two blocks. Row 0 and matrix row 0 have the
 * codes of largest magnitude, so that a block comes to the largest sum there is.
 */
export function productCheck(encoding: "int8" | "int4"): ProductCheck {
  const [least, most] = encoding === "int8" ? [-127, 127] : [-8, 7];
  const codeX = (row: number, k: number): number => (row === 0 ? 127 : (mix(row * 512 + k) % 255) - 127);
  const codeW = (row: number, k: number): number =>
    row === 0 ? least : (mix(row * 512 + k + 0x10_0000) % (most - least + 1)) + least;
  const scale = (at: number): number => ((mix(at) % 1000) + 1) / 3000;
  const x = Int8Array.from({ length: ROWS * BLOCKS * 32 }, (_, at) => codeX(Math.floor(at / 512), at % 512));
  const xScales = new DataView(new ArrayBuffer(ROWS * BLOCKS * 8));
  for (let at = 0; at < ROWS * BLOCKS; at++) {
    xScales.setFloat32(at * 8, scale(at), true);
    const sum = x.subarray(at * 32, at * 32 + 32).reduce((a, b) => a + b, 0);
    xScales.setInt32(at * 8 + 4, sum, true);
  }
  const weights = new Uint8Array(GROUPS * STEPS * 64 * (encoding === "int8" ? 32 : 16));
  const weightScales = Float32Array.from({ length: GROUPS * STEPS * 64 }, (_, at) => scale(at + 7_000));
  for (let row = 0; row < WIDTH; row++) {
    for (let k = 0; k < BLOCKS * 32; k++) {
      const [block, i] = [Math.floor(k / 32), k % 32];
      const step = Math.floor(row / 8) * STEPS + (block % STEPS);
      const place = (row % 8) * 8 + Math.floor(block / STEPS);
      const at = encoding === "int8" ? ((step * 2 + (i >> 4)) * 64 + place) * 16 : (step * 64 + place) * 16;
      const code = codeW(row, k);
      const byte = encoding === "int8" ? code : (code + 8) << (i < 16 ? 0 : 4);
      weights[at + (i & 15)] = (weights[at + (i & 15)] as number) | byte;
    }
  }
  return {
    params: { rows: ROWS, out_width: WIDTH, out_first: 0, part_width: WIDTH, steps: STEPS, accumulate: 0 },
    inputs: {
      weights: new Uint32Array(weights.buffer),
      x: new Uint32Array(x.buffer),
      weight_scales: new Uint32Array(weightScales.buffer),
      x_scales: new Uint32Array(xScales.buffer),
    },
  };
}

/** A hash of 31 bits. */
function mix(value: number): number {
  const h = Math.imul(value ^ (value >>> 16), 0x85eb_ca6b);
  return Math.imul(h ^ (h >>> 13), 0xc2b2_ae35) >>> 1;
}
