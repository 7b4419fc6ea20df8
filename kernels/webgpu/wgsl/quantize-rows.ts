import { type Kernel, read, write } from "../kernel.ts";
import { EXACT_DIVIDE, SIGNED_BYTES } from "./exact-math.ts";

/**
 * Inputs of int8 and int4 products: rows cut into blocks of 32, each with one scale, codes to nearest even, exactly as `Matrix` says.
 *
 * x f32 [rows, width]; codes u32 [rows, blocks, 8] (4 int8 each), scales (f32 bits, i32 sum of codes) [rows, blocks]; blocks is padded, the
 * padding has scale 0. One thread a block: grid [ceil(blocks / 64), rows]. Reference: quantize-rows.ts.
 */
export const QUANTIZE_ROWS: Kernel = {
  name: "quantize_rows",
  params: { width: "u32", blocks: "u32" },
  bindings: { x: read("f32"), codes: write("u32"), scales: write("vec2u") },
  code: /* wgsl */ `
${EXACT_DIVIDE}
${SIGNED_BYTES}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let block = id.x;
  if (block >= p.blocks) { return; }
  let first = block * 32u;
  let count = select(0u, min(32u, p.width - first), first < p.width);
  let from_at = id.y * p.width + first;
  var largest = 0.0;
  for (var i = 0u; i < count; i++) { largest = max(largest, abs(x[from_at + i])); }
  let scale = divide(largest, 127.0);
  let to = id.y * p.blocks + block;
  var sum = 0;
  for (var word = 0u; word < 8u; word++) {
    var four = vec4i(0);
    for (var i = 0u; i < 4u; i++) {
      let at = word * 4u + i;
      if (at < count) { four[i] = int8_code(x[from_at + at], scale); }
    }
    sum += four.x + four.y + four.z + four.w;
    codes[to * 8u + word] = pack_bytes(four);
  }
  scales[to] = vec2u(bitcast<u32>(scale), bitcast<u32>(sum));
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
