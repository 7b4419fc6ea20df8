/** Rows of a product's input as its kernels read them; by themselves, or on their way out of the op that makes them. */
import { type Kernel, read, write } from "../kernel.ts";
import { EXACT_DIVIDE, SIGNED_BYTES } from "./exact-math.ts";

/** Where codes and scales of {@link quantizeFours} go. */
export const QUANTIZED = { codes: write("u32"), scales: write("vec2u") } as const;

/**
 * `quantize_four(v, block, exists, lid)`: four inputs of a product, of which eight threads beside each other have a block of 32, as codes, one scale and
 * the sum of codes, exactly as `Matrix` says. `block` counts through all rows. To be called by all threads; barriers inside. Reference: quantize-rows.ts.
 *
 * codes u32 [rows, blocks, 8] (4 int8 each), scales (f32 bits, i32 sum of codes) [rows, blocks]; blocks is padded, the padding has scale 0.
 */
export function quantizeFours(threads: number): string {
  return /* wgsl */ `
${EXACT_DIVIDE}
${SIGNED_BYTES}
var<workgroup> largest: array<f32, ${threads}>;
var<workgroup> code_sums: array<i32, ${threads}>;
fn quantize_four(v: vec4f, block: u32, exists: bool, lid: u32) {
  let sizes = abs(v);
  largest[lid] = max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
  workgroupBarrier();
  var most = 0.0;
  for (var i = 0u; i < 8u; i++) { most = max(most, largest[(lid & ~7u) + i]); }
  let scale = divide(most, 127.0);
  let four = vec4i(int8_code(v.x, scale), int8_code(v.y, scale), int8_code(v.z, scale), int8_code(v.w, scale));
  code_sums[lid] = four.x + four.y + four.z + four.w;
  workgroupBarrier();
  if (exists) {
    codes[block * 8u + (lid & 7u)] = pack_bytes(four);
    if ((lid & 7u) == 0u) {
      var sum = 0;
      for (var i = 0u; i < 8u; i++) { sum += code_sums[lid + i]; }
      scales[block] = vec2u(bitcast<u32>(scale), bitcast<u32>(sum));
    }
  }
}
`;
}

/**
 * Inputs of int8 and int4 products that no op before could quantize.
 *
 * x f32 [rows, width]; codes, scales: {@link quantizeFours}. One thread four inputs: grid [ceil(blocks / 8), rows].
 */
export const QUANTIZE_ROWS: Kernel = {
  name: "quantize_rows",
  params: { width: "u32", blocks: "u32" },
  bindings: { x: read("f32"), ...QUANTIZED },
  code: /* wgsl */ `
${quantizeFours(64)}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let block = wg.x * 8u + lid / 8u;
  let k = wg.x * 256u + lid * 4u;
  var four = vec4f(0.0);
  for (var i = 0u; i < 4u; i++) {
    if (k + i < p.width) { four[i] = x[wg.y * p.width + k + i]; }
  }
  quantize_four(four, wg.y * p.blocks + block, block < p.blocks, lid);
}
`,
};

/**
 * Inputs of f32 and bf16 products whose width is not whole stripes: rows padded with zeros.
 *
 * x f32 [rows, width]; padded f32 [rows, paddedWidth]. Grid [ceil(paddedWidth / 64), rows].
 */
export const PAD_ROWS: Kernel = {
  name: "pad_rows",
  params: { width: "u32", padded_width: "u32" },
  bindings: { x: read("f32"), padded: write("f32") },
  code: /* wgsl */ `
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= p.padded_width) { return; }
  var value = 0.0;
  if (id.x < p.width) { value = x[id.y * p.width + id.x]; }
  padded[id.y * p.padded_width + id.x] = value;
}
`,
};
