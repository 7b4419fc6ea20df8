/**
 * Matrix products. One definition of the sum for any number of rows: the blocks of 32 inputs are dealt to 8 lanes (lane l has blocks
 * l * steps to (l + 1) * steps - 1, see packed-matrix.ts), a lane adds its blocks in ascending order with one fused multiply-add each, and
 * the lanes are added in ascending order. So a row's result does not depend on which of the two kernels computes it.
 *
 * f32, bf16 and f16: a lane has four sums, of the inputs that are 0, 1, 2 and 3 modulo 4, added as (0 + 1) + (2 + 3).
 * int8 and int4: the products of a block are exact integers; the block adds `f32(dot) * (scaleW * scaleX)`.
 */
import type { MatrixEncoding } from "../../contract.ts";
import { type Kernel, type Lane, variants } from "../kernel.ts";
import { halfPair } from "./half.ts";
import {
  everyMatrix,
  hasScales,
  type MatrixCount,
  matmulBindings,
  matmulParams,
  OWN,
  ofMatrices,
  ofMatrix,
  ownMatrix,
} from "./matmul-common.ts";
import { laneParam, laneWidth, shuffles } from "./reduce.ts";

/** Rows of the input that one work group of the small kernel takes: a kernel for each, and one for a product of as few. */
export const GEMV_ROWS = [1, 4, 8] as const;
/** One of {@link GEMV_ROWS}. */
export type GemvRows = (typeof GEMV_ROWS)[number];
/** Groups of 8 rows of the matrix that one work group of the small kernel takes. */
export type GemvGroups = 1 | 2;
/** Rows of an int8 or int4 matrix from which on, with several rows of the input, a work group takes two groups: fewer would leave a GPU without work. */
export const GEMV_TWO_GROUPS_MIN = 8192;
/** Rows of the input, and of the matrix, that one work group of the large kernel takes. */
export const GEMM_TILE = 32;

/** The eight weights of four words of bf16 or f16, as f32. */
function halves(encoding: MatrixEncoding, lane: Lane): string {
  if (encoding !== "bf16" && encoding !== "f16") return "";
  return /* wgsl */ `
${halfPair(lane)}
fn bf16_pair(word: u32) -> vec2f { return vec2f(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u)); }
fn low_half(words: vec4u) -> vec4f { return vec4f(${encoding === "bf16" ? "bf16_pair(words.x), bf16_pair(words.y)" : "half_pair(words.x), half_pair(words.y)"}); }
fn high_half(words: vec4u) -> vec4f { return vec4f(${encoding === "bf16" ? "bf16_pair(words.z), bf16_pair(words.w)" : "half_pair(words.z), half_pair(words.w)"}); }
`;
}

/**
 * What one thread of the small kernel does with its block in step `s` of some that it goes through at once, `ahead` at most: first it reads them all, because one read of
 * 16 bytes a thread does not keep memory busy, then it adds them in order. f16 as bf16.
 */
interface GemvStep {
  ahead: (rows: GemvRows) => number;
  /** `#` stands for the number of the step and of the thread's row of the matrix. */
  load: string;
  /** For all rows of the matrix: what precedes the rows of the input, what is read of one, and what each row of the matrix does with it. */
  before?: string;
  input?: string;
  add: string;
}

/** Where the input's row for sum j begins, in blocks; rows that are not there are computed and not stored. */
const ROW_BLOCKS = "min(first + j, p.rows - 1u) * blocks + block";

const INTEGER_INPUT = /* wgsl */ `
        let x_at = ${ROW_BLOCKS};
        let x_low = x[x_at * 2u];
        let x_high = x[x_at * 2u + 1u];
        let x_scale = x_scales[x_at];`;

const GEMV_STEP: Record<Exclude<MatrixEncoding, "f16">, GemvStep> = {
  f32: {
    ahead: () => 1,
    load: "",
    add: /* wgsl */ `
      let at = (own.x * p.steps + s) * 512u + lid;
      for (var i = 0u; i < 8u; i++) {
        let w = weights[at + i * 64u];
        for (var j = 0u; j < ROWS; j++) { acc[j] = fma(w, x[(${ROW_BLOCKS}) * 8u + i], acc[j]); }
      }`,
  },
  bf16: {
    ahead: () => 1,
    load: "",
    add: /* wgsl */ `
      let at = (own.x * p.steps + s) * 256u + lid;
      for (var i = 0u; i < 4u; i++) {
        let words = weights[at + i * 64u];
        for (var j = 0u; j < ROWS; j++) {
          let x_at = (${ROW_BLOCKS}) * 8u + i * 2u;
          acc[j] = fma(low_half(words), x[x_at], acc[j]);
          acc[j] = fma(high_half(words), x[x_at + 1u], acc[j]);
        }
      }`,
  },
  int8: {
    ahead: () => 4,
    load: /* wgsl */ `
    let low# = weights[at# * 2u - lid];
    let high# = weights[at# * 2u - lid + 64u];
    let scale# = weight_scales[at#];`,
    input: INTEGER_INPUT,
    add: /* wgsl */ `
        {
          let dot = dot16(low#, x_low) + dot16(high#, x_high);
          acc[#sum] = fma(f32(dot), scale# * bitcast<f32>(x_scale.x), acc[#sum]);
        }`,
  },
  int4: {
    ahead: (rows) => (rows === 1 ? 8 : 4),
    load: /* wgsl */ `
    let words# = weights[at#];
    let scale# = weight_scales[at#];`,
    before: /* wgsl */ `
      let low# = words# & vec4u(0x0f0f0f0fu);
      let high# = (words# >> vec4u(4u)) & vec4u(0x0f0f0f0fu);`,
    input: INTEGER_INPUT,
    add: /* wgsl */ `
        {
          let dot = dot16(low#, x_low) + dot16(high#, x_high) - 8 * bitcast<i32>(x_scale.y);
          acc[#sum] = fma(f32(dot), scale# * bitcast<f32>(x_scale.x), acc[#sum]);
        }`,
  },
};

/** The rows of matrices that a thread has: of each the group of 8, and the matrix that it is of. */
export interface GemvRow {
  group: string;
  matrix: number;
}

/**
 * The loop over a thread's blocks, of `own` rows of matrices: the sum for row g of those and row j of the input is `acc[j + g * ROWS]`. The code around it
 * has `first`, `blocks`, `ROWS` and the thread's place among the 64 of a group, whose lane is that of `lid`.
 * @param ahead blocks of each row that are read before the first of them is added
 */
export function gemvLoop(
  encoding: MatrixEncoding,
  own: readonly GemvRow[],
  { ahead, place }: { ahead: number; place: string },
): string {
  const { load, before, input, add } = GEMV_STEP[encoding === "f16" ? "bf16" : encoding];
  const steps = Array.from({ length: ahead }, (_, n) => n);
  const each = (n: number, text: string): string =>
    own
      .map((_, g) => text.replaceAll("#sum", g === 0 ? "j" : `j + ${g}u * ROWS`).replaceAll("#", `${n}_${g}`))
      .join("");
  const loads = steps.flatMap((n) =>
    own.map(({ group, matrix }, g) => {
      if (load === "") return "";
      const at = `    let at# = (${group} * p.steps + min(from_s + ${n}u, p.steps - 1u)) * 64u + lid;`;
      const text = `${at}${load}`.replaceAll("#", `${n}_${g}`).replace(/\blid\b/g, place);
      return ofMatrix(matrix, text);
    }),
  );
  const adds = steps.map((n) => {
    const sums =
      input === undefined
        ? add
        : `${each(n, before ?? "")}\n      for (var j = 0u; j < ROWS; j++) {${input}${each(n, add)}\n      }`;
    return /* wgsl */ `    if (from_s + ${n}u < p.steps) {
      let s = from_s + ${n}u;
      let block = (lid & 7u) * p.steps + s;${sums}
    }`;
  });
  return /* wgsl */ `  for (var from_s = 0u; from_s < p.steps; from_s += ${steps.length}u) {
${loads.join("\n")}
${adds.join("\n")}
  }`;
}

/** Blocks of a row of the matrix that a thread reads before it adds the first. */
export function gemvAhead(encoding: MatrixEncoding, rows: GemvRows): number {
  return GEMV_STEP[encoding === "f16" ? "bf16" : encoding].ahead(rows);
}

/** The lanes' sums without work group memory, where a subgroup has the eight lanes of a row. `laneSum`: of this thread, for row j of the input and g of the matrix. */
const GEMV_SHUFFLE = (laneSum: string, groups: GemvGroups): string => /* wgsl */ `
  if (lane_width >= 8u) {
    for (var g = 0u; g < ${groups}u; g++) {
      var mine = 0.0;
      for (var j = 0u; j < count; j++) {
        let own = ${laneSum};
        var sum = 0.0;
        for (var i = 0u; i < 8u; i++) { sum += shuffle(own, lid, lane_width, (lid & ~7u) + i); }
        if ((lid & 7u) == j) { mine = sum; }
      }
      let column = (own.x * ${groups}u + g) * 8u + (lid >> 3u);
      if ((lid & 7u) < count && column < own.width) { store(own, first + (lid & 7u), column, mine); }
    }
    return;
  }`;

/** `dot16(a, b)`: of 16 pairs of codes. */
export const DOT16 = /* wgsl */ `
fn dot16(a: vec4u, b: vec4u) -> i32 {
  return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}
`;

/**
 * Product for few rows: one work group has 8 rows of the matrix (16 with two groups) and `rows` of the input; thread 8 r + l has lane l of row r (and of row
 * r + 8), and the 64 threads read the packed matrix without a gap.
 *
 * weights and weight_scales: packed-matrix.ts; x as quantize-rows.ts leaves it (f32: [rows, blocks * 32]); out f32 [rows, outWidth], columns
 * from out_first on. Grid [ceil(partWidth / 8 / groups) of each matrix, ceil(rows of the input / rows)]. 256 * rows bytes of work group memory.
 * @param groups two, for int8 and int4: what is read of the input serves twice as many weights
 * @param matrices of which each has work groups of its own: see matmul-common.ts
 */
export const gemv = variants(
  (encoding: MatrixEncoding, rows: GemvRows, groups: GemvGroups = 1, matrices: MatrixCount = 1): Kernel => {
    const integer = hasScales(encoding);
    const own = Array.from({ length: groups }, (_, g) => {
      return { group: groups === 1 ? "own.x" : `min(own.x * ${groups}u + ${g}u, group_last)`, matrix: 0 };
    });
    const laneSum = integer ? "acc[j + g * ROWS]" : "(acc[j].x + acc[j].y) + (acc[j].z + acc[j].w)";
    return {
      name: `gemv_${encoding}_${rows}${groups === 1 ? "" : `x${groups}`}${ofMatrices(matrices)}`,
      params: matmulParams(matrices),
      bindings: matmulBindings(encoding, matrices),
      code: (lane) => /* wgsl */ `
${halves(encoding, lane)}${integer ? DOT16 : ""}${ownMatrix(matrices)}
${laneWidth(lane)}${shuffles(lane, 64)}
const ROWS = ${rows}u;
var<workgroup> lanes: array<f32, ${rows * 64}>;
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
${OWN}
  let blocks = p.steps * 8u;
  let first = wg.y * ROWS;
  let count = min(ROWS, p.rows - first);
  let group_last = (own.width + 7u) / 8u - 1u;
  var acc: array<${integer ? "f32" : "vec4f"}, ${rows * groups}>;
${everyMatrix(matrices, gemvLoop(encoding, own, { ahead: gemvAhead(encoding, rows), place: "lid" }))}
${lane.subgroups === "none" ? "" : GEMV_SHUFFLE(laneSum, groups)}
  for (var g = 0u; g < ${groups}u; g++) {
    for (var j = 0u; j < ROWS; j++) { lanes[j * 64u + lid] = ${laneSum}; }
    workgroupBarrier();
    let column = (own.x * ${groups}u + g) * 8u + (lid & 7u);
    let j = lid >> 3u;
    if (j < count && column < own.width) {
      var sum = 0.0;
      for (var lane = 0u; lane < 8u; lane++) { sum += lanes[j * 64u + (lid & 7u) * 8u + lane]; }
      store(own, first + j, column, sum);
    }
    workgroupBarrier();
  }
}
`,
    };
  },
);

/** How the large kernel brings block `lane * steps + s` of 32 rows of the matrix into its tile; f16 as bf16. */
const GEMM_LOAD: Record<Exclude<MatrixEncoding, "f16">, string> = {
  f32: /* wgsl */ `
      for (var n = lid; n < 256u; n += 64u) {
        let row = n >> 3u;
        let i = n & 7u;
        w_tile[row * 9u + i] = weights[((group_first + min(row >> 3u, group_last)) * p.steps + s) * 512u + i * 64u + (row & 7u) * 8u + lane];
        x_tile[row * 9u + i] = x[min(first + row, p.rows - 1u) * blocks * 8u + block * 8u + i];
      }`,
  bf16: /* wgsl */ `
      for (var n = lid; n < 256u; n += 64u) {
        let row = n >> 3u;
        let i = n & 7u;
        let words = weights[((group_first + min(row >> 3u, group_last)) * p.steps + s) * 256u + (i >> 1u) * 64u + (row & 7u) * 8u + lane];
        w_tile[row * 9u + i] = select(low_half(words), high_half(words), (i & 1u) == 1u);
        x_tile[row * 9u + i] = x[min(first + row, p.rows - 1u) * blocks * 8u + block * 8u + i];
      }`,
  int8: /* wgsl */ `
      let row = lid >> 1u;
      let half = lid & 1u;
      w_tile[row * 3u + half] = weights[((group_first + min(row >> 3u, group_last)) * p.steps + s) * 128u + half * 64u + (row & 7u) * 8u + lane];
      x_tile[row * 3u + half] = x[(min(first + row, p.rows - 1u) * blocks + block) * 2u + half];`,
  int4: /* wgsl */ `
      let row = lid >> 1u;
      let half = lid & 1u;
      let words = weights[((group_first + min(row >> 3u, group_last)) * p.steps + s) * 64u + (row & 7u) * 8u + lane];
      w_tile[row * 3u + half] = (words >> vec4u(half * 4u)) & vec4u(0x0f0f0f0fu);
      x_tile[row * 3u + half] = x[(min(first + row, p.rows - 1u) * blocks + block) * 2u + half];`,
};

const GEMM_FLOAT_STEP = /* wgsl */ `
      for (var i = 0u; i < 8u; i++) {
        var w4: array<vec4f, 4>;
        for (var c = 0u; c < 4u; c++) { w4[c] = w_tile[(c * 8u + tx) * 9u + i]; }
        for (var j = 0u; j < 4u; j++) {
          let x4 = x_tile[(j * 8u + ty) * 9u + i];
          for (var c = 0u; c < 4u; c++) { acc[j * 4u + c] = fma(w4[c], x4, acc[j * 4u + c]); }
        }
      }`;

function gemmIntegerStep(encoding: MatrixEncoding): string {
  const offset = encoding === "int4" ? " - 8 * bitcast<i32>(x_scale.y)" : "";
  return /* wgsl */ `
      var w_scale: array<f32, 4>;
      for (var c = 0u; c < 4u; c++) {
        w_scale[c] = weight_scales[((group_first + min(c, group_last)) * p.steps + s) * 64u + tx * 8u + lane];
      }
      for (var j = 0u; j < 4u; j++) {
        let x_scale = x_scales[min(first + j * 8u + ty, p.rows - 1u) * blocks + block];
        let x0 = x_tile[(j * 8u + ty) * 3u];
        let x1 = x_tile[(j * 8u + ty) * 3u + 1u];
        for (var c = 0u; c < 4u; c++) {
          let at = (c * 8u + tx) * 3u;
          let dot = dot16(w_tile[at], x0) + dot16(w_tile[at + 1u], x1)${offset};
          acc[j * 4u + c] = fma(f32(dot), w_scale[c] * bitcast<f32>(x_scale.x), acc[j * 4u + c]);
        }
      }`;
}

/** The lanes of a tile, each with its blocks in turn. */
function gemmLoop(encoding: MatrixEncoding): string {
  const integer = hasScales(encoding);
  const zero = integer ? "0.0" : "vec4f(0.0)";
  return /* wgsl */ `  for (var lane = 0u; lane < 8u; lane++) {
    var acc: array<${integer ? "f32" : "vec4f"}, 16>;
    for (var n = 0u; n < 16u; n++) { acc[n] = ${zero}; }
    for (var s = 0u; s < p.steps; s++) {
      let block = lane * p.steps + s;
${GEMM_LOAD[encoding === "f16" ? "bf16" : encoding]}
      workgroupBarrier();
${integer ? gemmIntegerStep(encoding) : GEMM_FLOAT_STEP}
      workgroupBarrier();
    }
    for (var n = 0u; n < 16u; n++) { total[n] += ${integer ? "acc[n]" : "(acc[n].x + acc[n].y) + (acc[n].z + acc[n].w)"}; }
  }`;
}

/**
 * Product for many rows: one work group has GEMM_TILE rows of the matrix and as many of the input, a thread four of each; a block of 32
 * inputs at a time goes through work group memory (3 KiB, f32 and halves 9 KiB).
 *
 * Bindings as {@link gemv}. Grid [ceil(partWidth / GEMM_TILE) of each matrix, ceil(rows / GEMM_TILE)].
 */
export const gemm = variants((encoding: MatrixEncoding, matrices: MatrixCount = 1): Kernel => {
  const integer = hasScales(encoding);
  const tile = integer ? `array<vec4u, ${GEMM_TILE * 3}>` : `array<vec4f, ${GEMM_TILE * 9}>`;
  return {
    name: `gemm_${encoding}${ofMatrices(matrices)}`,
    params: matmulParams(matrices),
    bindings: matmulBindings(encoding, matrices),
    code: (lane) => /* wgsl */ `
${halves(encoding, lane)}${integer ? DOT16 : ""}${ownMatrix(matrices)}
var<workgroup> w_tile: ${tile};
var<workgroup> x_tile: ${tile};
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
${OWN}
  let blocks = p.steps * 8u;
  let first = wg.y * ${GEMM_TILE}u;
  let group_first = own.x * ${GEMM_TILE / 8}u;
  let group_last = (own.width + 7u) / 8u - 1u - group_first;
  let tx = lid & 7u;
  let ty = lid >> 3u;
  var total: array<f32, 16>;
${everyMatrix(matrices, gemmLoop(encoding))}
  for (var j = 0u; j < 4u; j++) {
    for (var c = 0u; c < 4u; c++) {
      let row = first + j * 8u + ty;
      let column = own.x * ${GEMM_TILE}u + c * 8u + tx;
      if (row < p.rows && column < own.width) { store(own, row, column, total[j * 4u + c]); }
    }
  }
}
`,
  };
});
