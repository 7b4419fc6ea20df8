/**
 * Products of int8 and int4 matrices with many rows by subgroup matrices (tensor cores): WGSL's `chromium_experimental_subgroup_matrix`.
 *
 * To the bit the large kernel of matmul.ts: codes are exact in f16, and the 32 products of a block come to at most 32 * 127 * 127 < 2^24, so that
 * f32 sums of them are exact in any order; a block's sum then meets its scales, lane by lane, as there.
 */
import type { MatrixEncoding } from "../../contract.ts";
import type { Kernel, MatrixShape } from "../kernel.ts";
import { SIGNED_BYTES } from "./exact-math.ts";
import {
  everyMatrix,
  type MatrixCount,
  matmulBindings,
  matmulParams,
  OWN,
  ofMatrices,
  ownMatrix,
} from "./matmul-common.ts";

/** Rows of the input that one work group takes. */
export const MATRIX_ROWS = 32;
/** Rows of the matrix that one work group takes. */
export const MATRIX_COLUMNS = 64;
/** A multiple of every size that a subgroup has. */
const THREADS = 128;
/** Codes from one row of a tile to the next: no two rows begin in the same bank, all at a multiple of 16 bytes. */
const STRIDE = 40;
const PER_THREAD = (MATRIX_ROWS * MATRIX_COLUMNS) / THREADS;

/** Whether this kernel's tiles are whole numbers of such matrices. */
export function fitsTiles({ m, n, k }: MatrixShape): boolean {
  return MATRIX_ROWS % m === 0 && MATRIX_COLUMNS % n === 0 && 32 % k === 0;
}

/** What the kernel says for the operations on matrices. */
interface Ops {
  declared: string;
  code: "f16" | "f32";
  params: string;
}

const nativeOps = ({ m, n, k }: MatrixShape): Ops => ({
  code: "f16",
  params: ", @builtin(subgroup_id) group: u32, @builtin(num_subgroups) group_count: u32",
  declared: /* wgsl */ `
alias Sums = subgroup_matrix_result<f32, ${n}, ${m}>;
fn add_products(x_at: u32, w_at: u32, sums: Sums) -> Sums {
  let left = subgroupMatrixLoad<subgroup_matrix_left<f16, ${k}, ${m}>, row_major>(&x_tile, x_at, ${STRIDE}u);
  let right = subgroupMatrixLoad<subgroup_matrix_right<f16, ${n}, ${k}>, col_major>(&w_tile, w_at, ${STRIDE}u);
  return subgroupMatrixMultiplyAccumulate(left, right, sums);
}
fn store_sums(at: u32, sums: Sums) { subgroupMatrixStore<row_major>(&dots, at, sums, ${MATRIX_COLUMNS}u); }
`,
});

/** Every thread a subgroup of its own, which adds one product after the other: for tests. */
const simulatedOps = ({ m, n, k }: MatrixShape): Ops => ({
  code: "f32",
  params: "",
  declared: /* wgsl */ `
alias Sums = array<f32, ${m * n}>;
fn add_products(x_at: u32, w_at: u32, sums: Sums) -> Sums {
  var added = sums;
  for (var i = 0u; i < ${m}u; i++) {
    for (var j = 0u; j < ${n}u; j++) {
      for (var c = 0u; c < ${k}u; c++) { added[i * ${n}u + j] += x_tile[x_at + i * ${STRIDE}u + c] * w_tile[w_at + j * ${STRIDE}u + c]; }
    }
  }
  return added;
}
fn store_sums(at: u32, sums: Sums) {
  for (var i = 0u; i < ${m}u; i++) {
    for (var j = 0u; j < ${n}u; j++) { dots[at + i * ${MATRIX_COLUMNS}u + j] = sums[i * ${n}u + j]; }
  }
}
`,
});

/** Sixteen codes into a tile, as numbers. */
const store16 = (tile: string, code: Ops["code"], codes: string): string => /* wgsl */ `
      for (var i = 0u; i < 4u; i++) {
        let word = words[i];
        let codes = vec4<${code}>(${codes});
        let at = row * ${STRIDE}u + half * 16u + i * 4u;
        for (var j = 0u; j < 4u; j++) { ${tile}[at + j] = codes[j]; }
      }`;

const LOAD: Readonly<Record<"int8" | "int4", (code: Ops["code"]) => string>> = {
  int8: (code) => /* wgsl */ `
      let words = weights[((group_first + min(row >> 3u, group_last)) * p.steps + s) * 128u + half * 64u + (row & 7u) * 8u + lane];
${store16("w_tile", code, "signed_codes(word)")}`,
  int4: (code) => /* wgsl */ `
      let both = weights[((group_first + min(row >> 3u, group_last)) * p.steps + s) * 64u + (row & 7u) * 8u + lane];
      let words = (both >> vec4u(half * 4u)) & vec4u(0x0f0f0f0fu);
${store16("w_tile", code, "signed_codes(word) - vec4i(8)")}`,
};

/** The lanes of a tile, each with its blocks in turn. */
function loop(encoding: "int8" | "int4", { m, n, k }: MatrixShape, code: Ops["code"]): string {
  const columnTiles = MATRIX_COLUMNS / n;
  return /* wgsl */ `  for (var lane = 0u; lane < 8u; lane++) {
    var acc: array<f32, ${PER_THREAD}>;
    for (var j = 0u; j < ${PER_THREAD}u; j++) { acc[j] = 0.0; }
    for (var s = 0u; s < p.steps; s++) {
      let block = lane * p.steps + s;
${LOAD[encoding](code)}
      if (row < ${MATRIX_ROWS}u) {
        let words = x[(min(first + row, p.rows - 1u) * blocks + block) * 2u + half];
${store16("x_tile", code, "signed_codes(word)")}
      }
      if (lid < ${MATRIX_ROWS}u) {
        row_scales[scales_at + lid] = bitcast<f32>(x_scales[min(first + lid, p.rows - 1u) * blocks + block].x);
      }
      workgroupBarrier();
      for (var tile = group; tile < ${(MATRIX_ROWS / m) * columnTiles}u; tile += group_count) {
        let x_at = tile / ${columnTiles}u * ${m * STRIDE}u;
        let w_at = tile % ${columnTiles}u * ${n * STRIDE}u;
        var sums = Sums();
        for (var c = 0u; c < 32u; c += ${k}u) { sums = add_products(x_at + c, w_at + c, sums); }
        store_sums(tile / ${columnTiles}u * ${m * MATRIX_COLUMNS}u + tile % ${columnTiles}u * ${n}u, sums);
      }
      workgroupBarrier();
      let scale = weight_scales[((group_first + min(column >> 3u, group_last)) * p.steps + s) * 64u + (column & 7u) * 8u + lane];
      for (var j = 0u; j < ${PER_THREAD}u; j++) {
        acc[j] = fma(dots[(row_first + j) * ${MATRIX_COLUMNS}u + column], scale * row_scales[scales_at + row_first + j], acc[j]);
      }
      // The next block's scales lie beside these, which other threads may still read.
      scales_at = ${MATRIX_ROWS}u - scales_at;
    }
    for (var j = 0u; j < ${PER_THREAD}u; j++) { total[j] += acc[j]; }
  }`;
}

/**
 * Product for many rows of int8 or int4 matrices. A block of 32 inputs at a time goes through work group memory as f16; the subgroups share its
 * matrices of sums, which go through work group memory to the threads: thread t has column t % 64 and 16 rows. 16 KiB of work group memory.
 *
 * Bindings as `gemv` of matmul.ts. Grid [ceil(partWidth / MATRIX_COLUMNS) of each matrix, ceil(rows / MATRIX_ROWS)].
 */
export function gemmByMatrices(
  encoding: MatrixEncoding & ("int8" | "int4"),
  shape: MatrixShape,
  matrices: MatrixCount = 1,
): Kernel {
  const { m, n, k, isSimulated } = shape;
  const { declared, code, params } = isSimulated ? simulatedOps(shape) : nativeOps(shape);
  return {
    name: `gemm_${encoding}_${m}x${n}x${k}${ofMatrices(matrices)}`,
    params: matmulParams(matrices),
    bindings: matmulBindings(encoding, matrices),
    extensions: isSimulated ? [] : ["subgroups", "f16", "chromium_experimental_subgroup_matrix"],
    code: () => /* wgsl */ `
${SIGNED_BYTES}${ownMatrix(matrices)}
var<workgroup> x_tile: array<${code}, ${MATRIX_ROWS * STRIDE}>;
var<workgroup> w_tile: array<${code}, ${MATRIX_COLUMNS * STRIDE}>;
var<workgroup> dots: array<f32, ${MATRIX_ROWS * MATRIX_COLUMNS}>;
var<workgroup> row_scales: array<f32, ${2 * MATRIX_ROWS}>;
${declared}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${params}) {
${isSimulated ? `  let group = lid;\n  let group_count = ${THREADS}u;` : ""}
${OWN}
  let blocks = p.steps * 8u;
  let first = wg.y * ${MATRIX_ROWS}u;
  let group_first = own.x * ${MATRIX_COLUMNS / 8}u;
  let group_last = (own.width + 7u) / 8u - 1u - group_first;
  let column = lid % ${MATRIX_COLUMNS}u;
  let row_first = lid / ${MATRIX_COLUMNS}u * ${PER_THREAD}u;
  let row = lid >> 1u;
  let half = lid & 1u;
  var scales_at = 0u;
  var total: array<f32, ${PER_THREAD}>;
  for (var j = 0u; j < ${PER_THREAD}u; j++) { total[j] = 0.0; }
${everyMatrix(matrices, loop(encoding, shape, code))}
  for (var j = 0u; j < ${PER_THREAD}u; j++) {
    let place = own.x * ${MATRIX_COLUMNS}u + column;
    if (first + row_first + j < p.rows && place < own.width) { store(own, first + row_first + j, place, total[j]); }
  }
}
`,
  };
}
