/** Ops of single rows: embedding, activation, copies. */
import type { MatrixEncoding } from "../../contract.ts";
import { type Binding, type Kernel, read, variants, write } from "../kernel.ts";
import { SIGNED_BYTES } from "./exact-math.ts";
import { halfPair } from "./half.ts";
import { hasScales } from "./matmul-common.ts";
import { QUANTIZED, quantizeFours } from "./quantize-rows.ts";

/** Where channel `k` of a packed row lies: `at` is (row group * steps + step), `place` the thread of that row and lane. */
const DECODE: Record<MatrixEncoding, string> = {
  f32: "bitcast<f32>(weights[(at * 512u + (i / 4u) * 64u + place) * 4u + i % 4u])",
  bf16: "bitcast<f32>((weights[(at * 256u + (i / 8u) * 64u + place) * 4u + (i % 8u) / 2u] << select(16u, 0u, (i & 1u) == 1u)) & 0xffff0000u)",
  f16: "half_pair(weights[(at * 256u + (i / 8u) * 64u + place) * 4u + (i % 8u) / 2u])[i & 1u]",
  int8: "weight_scales[at * 64u + place] * signed_bytes(weights[(at * 128u + (i / 16u) * 64u + place) * 4u + (i % 16u) / 4u])[i % 4u]",
  int4: "weight_scales[at * 64u + place] * f32(i32((weights[(at * 64u + place) * 4u + (i % 16u) / 4u] >> ((i % 4u) * 8u + (i / 16u) * 4u)) & 15u) - 8)",
};

/**
 * `out[r] = table[tokens[r]]`, decoded; `f32(code * scale)` for int8 and int4, to the bit. Rows of a token outside of the part are left.
 *
 * weights: packed-matrix.ts as words; tables u32: token ids from tokens_at on; out f32 [rows, width]. Grid [ceil(width / 64), rows].
 */
export const embed = variants((encoding: MatrixEncoding): Kernel => {
  const scales: Record<string, Binding> = hasScales(encoding) ? { weight_scales: read("f32") } : {};
  return {
    name: `embed_${encoding}`,
    params: { width: "u32", steps: "u32", tokens_at: "u32", row_first: "u32", row_count: "u32" },
    bindings: { weights: read("u32"), ...scales, tables: read("u32"), out: write("f32") },
    code: (lane) => /* wgsl */ `
${SIGNED_BYTES}
${halfPair(lane)}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let k = id.x;
  let row = tables[p.tokens_at + id.y] - p.row_first;
  if (k >= p.width || row >= p.row_count) { return; }
  let block = k / 32u;
  let i = k % 32u;
  let at = (row / 8u) * p.steps + block % p.steps;
  let place = (row % 8u) * 8u + block / p.steps;
  out[id.y * p.width + k] = ${DECODE[encoding]};
}
`,
  };
});

/** The activation of a gate, times what it gates. */
export const SILU = (gate: string, up: string): string => `${gate} / (1.0 + exp(-${gate})) * ${up}`;

function silu(name: string, bindings: Record<string, Binding>, gate: string): Kernel {
  return {
    name,
    params: { count: "u32", row_threads: "u32" },
    bindings,
    code: /* wgsl */ `
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.y * p.row_threads + id.x;
  if (i >= p.count) { return; }
  out[i] = ${SILU(`${gate}[i]`, "up[i]")};
}
`,
  };
}

/** `out = gate / (1 + exp(-gate)) * up`. All f32 [count]. Grid [x, y] with x * 64 = row_threads. Reference: silu-mul.ts. */
export const SILU_MUL = silu("silu_mul", { gate: read("f32"), up: read("f32"), out: write("f32") }, "gate");
/** The same where `out` is `gate`. */
export const SILU_MUL_IN_PLACE = silu("silu_mul_in_place", { up: read("f32"), out: write("f32") }, "out");

/**
 * The same, with `out` as quantize-rows.ts wants it for the product behind. gate f32 [rows, width] in place. Grid [ceil(blocks / 8), rows].
 */
export const SILU_MUL_QUANTIZE: Kernel = {
  name: "silu_mul_quantize",
  params: { width: "u32", blocks: "u32" },
  bindings: { up: read("f32"), out: write("f32"), ...QUANTIZED },
  code: /* wgsl */ `
${quantizeFours(64)}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let block = wg.x * 8u + lid / 8u;
  var four = vec4f(0.0);
  for (var i = 0u; i < 4u; i++) {
    let k = wg.x * 256u + lid * 4u + i;
    if (k < p.width) {
      let at = wg.y * p.width + k;
      four[i] = ${SILU("out[at]", "up[at]")};
      out[at] = four[i];
    }
  }
  quantize_four(four, wg.y * p.blocks + block, block < p.blocks, lid);
}
`,
};

function copy(name: string, bindings: Record<string, Binding>, from: string): Kernel {
  return {
    name,
    params: { count: "u32", row_threads: "u32", from_at: "u32", to_at: "u32" },
    bindings,
    code: /* wgsl */ `
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.y * p.row_threads + id.x;
  if (i < p.count) { out[p.to_at + i] = ${from}[p.from_at + i]; }
}
`,
  };
}

/** Copies `count` words. Grid [x, y] with x * 64 = row_threads. */
export const COPY = copy("copy", { x: read("u32"), out: write("u32") }, "x");
/** The same in pieces of 16 bytes: count, from_at and to_at count those. */
export const COPY4 = copy("copy4", { x: read("vec4u"), out: write("vec4u") }, "x");
/** The same within one buffer; the ranges do not overlap. */
export const COPY_WITHIN = copy("copy_within", { out: write("u32") }, "out");

/** `out[i] = x[indices[i]]` in words; tables: the indices from indices_at on. Grid [ceil(width / 64), rows]. */
export const GATHER_ROWS: Kernel = {
  name: "gather_rows",
  params: { width: "u32", indices_at: "u32" },
  bindings: { x: read("u32"), tables: read("u32"), out: write("u32") },
  code: /* wgsl */ `
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= p.width) { return; }
  out[id.y * p.width + id.x] = x[tables[p.indices_at + id.y] * p.width + id.x];
}
`,
};
