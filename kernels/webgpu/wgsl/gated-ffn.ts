/** The first half of a gated FFN for few rows: two products, the activation and its quantization in one kernel. */
import { type Kernel, read, variants, write } from "../kernel.ts";
import { DOT16, type GemvRows, gemvAhead, gemvLoop } from "./matmul.ts";
import { QUANTIZED, quantizeFours } from "./quantize-rows.ts";
import { SILU } from "./row-ops.ts";

/** Storage buffers of the kernel. */
export const GATED_BUFFERS = 10;
/** Rows of either matrix that a work group has: one block of the product behind. */
const COLUMNS = 32;
const THREADS = COLUMNS * 8;

/**
 * `out = silu(x . gate^T) * (x . up^T)`, `out_1 = x . up^T`, and codes and scales of `out` as quantize-rows.ts says. To the bit what the kernels of
 * matmul.ts and row-ops.ts give one after the other.
 *
 * A work group has 32 rows of either matrix and `rows` of the input; thread 8 r + l has lane l of row r of both, so that what is read of the input serves both,
 * as with two groups in `gemv`. As many bytes of a thread are on their way at once as there: of each matrix half as many blocks where there is one row of
 * input. The 8 lanes are added through work group memory (1 KiB a row of the input), then a thread has one row of the matrix and of the input.
 *
 * x, x_scales, weights and weight_scales (of the gate), weights_1 and weight_scales_1 as `gemv` has them; out and out_1 f32 [rows, width]; codes and scales of rows of
 * `blocks` blocks, other memory than x and x_scales. Grid [blocks, ceil(rows of the input / rows)]: blocks of padding become 0.
 */
export const gatedFfn = variants((encoding: "int8" | "int4", rows: GemvRows): Kernel => {
  const own = [0, 1].map((matrix) => ({ group: "own_group", matrix }));
  const ahead = gemvAhead(encoding, rows) / (rows === 1 ? 2 : 1);
  return {
    name: `gated_ffn_${encoding}_${rows}`,
    params: { rows: "u32", steps: "u32", width: "u32", blocks: "u32" },
    bindings: {
      ...{ x: read("vec4u"), x_scales: read("vec2u") },
      ...{ weights: read("vec4u"), weight_scales: read("f32"), out: write("f32") },
      ...{ weights_1: read("vec4u"), weight_scales_1: read("f32"), out_1: write("f32") },
      ...QUANTIZED,
    },
    code: /* wgsl */ `
${DOT16}${quantizeFours(THREADS)}
const ROWS = ${rows}u;
var<workgroup> lanes: array<f32, ${rows * THREADS}>;
var<workgroup> hidden: array<f32, ${rows * COLUMNS}>;
fn sum_of_lanes(j: u32, column: u32) -> f32 {
  var sum = 0.0;
  for (var lane = 0u; lane < 8u; lane++) { sum += lanes[j * ${THREADS}u + column * 8u + lane]; }
  return sum;
}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let blocks = p.steps * 8u;
  let first = wg.y * ROWS;
  let count = min(ROWS, p.rows - first);
  let own_group = min(wg.x * 4u + (lid >> 6u), (p.width + 7u) / 8u - 1u);
  let place = lid & 63u;
  var acc: array<f32, ${rows * 2}>;
  if (wg.x * ${COLUMNS}u < p.width) {
${gemvLoop(encoding, own, { ahead, place: "place" })}
  }
  let j = lid / ${COLUMNS}u;
  let column = lid % ${COLUMNS}u;
  for (var i = 0u; i < ROWS; i++) { lanes[i * ${THREADS}u + lid] = acc[i]; }
  workgroupBarrier();
  var gate = 0.0;
  if (j < count) { gate = sum_of_lanes(j, column); }
  workgroupBarrier();
  for (var i = 0u; i < ROWS; i++) { lanes[i * ${THREADS}u + lid] = acc[i + ROWS]; }
  workgroupBarrier();
  if (j < count) {
    let up = sum_of_lanes(j, column);
    let k = wg.x * ${COLUMNS}u + column;
    var value = 0.0;
    if (k < p.width) {
      let at = (first + j) * p.width + k;
      value = ${SILU("gate", "up")};
      out[at] = value;
      out_1[at] = up;
    }
    hidden[j * ${COLUMNS}u + column] = value;
  }
  workgroupBarrier();
  var four = vec4f(0.0);
  let row = lid >> 3u;
  if (row < count) {
    for (var i = 0u; i < 4u; i++) { four[i] = hidden[row * ${COLUMNS}u + (lid & 7u) * 4u + i]; }
  }
  quantize_four(four, (first + row) * p.blocks + wg.x, row < count, lid);
}
`,
  };
});
