/** Weights quantized and laid out by the GPU. */
import { type Kernel, read, write } from "../kernel.ts";
import { EXACT_DIVIDE, SIGNED_BYTES } from "./exact-math.ts";

const INT8 = /* wgsl */ `
  var largest = 0.0;
  for (var i = 0u; i < count; i++) { largest = max(largest, abs(x[first + i])); }
  let scale = divide(largest, 127.0);
  for (var half = 0u; half < 2u; half++) {
    var words: vec4u;
    for (var word = 0u; word < 4u; word++) {
      var codes = vec4i(0);
      for (var i = 0u; i < 4u; i++) {
        let at = half * 16u + word * 4u + i;
        if (at < count) { codes[i] = int8_code(x[first + at], scale); }
      }
      words[word] = pack_bytes(codes);
    }
    weights[place * 128u + half * 64u + lid] = words;
  }`;

/** The value that is largest in size becomes -8, so a scale has its opposite sign; the quotient is that of both with their signs changed. */
const INT4 = /* wgsl */ `
  var largest = 0.0;
  for (var i = 0u; i < count; i++) {
    let value = x[first + i];
    if (abs(value) > abs(largest)) { largest = value; }
  }
  let scale = largest * -0.125;
  var words: vec4u;
  for (var word = 0u; word < 4u; word++) {
    for (var i = 0u; i < 8u; i++) {
      let at = i / 4u * 16u + word * 4u + i % 4u;
      if (at < count) {
        let value = x[first + at];
        let code = i32(clamp(nearest(select(value, -value, scale < 0.0), abs(scale)), -8.0, 7.0)) + 8;
        words[word] |= u32(code) << (i % 4u * 8u + i / 4u * 4u);
      }
    }
  }
  weights[place * 64u + lid] = words;`;

/**
 * Rows of a matrix as packed-matrix.ts has them, with the codes and scales that `Matrix` says, to the bit (scales below the normal range become 0). Thread 8 r + l has
 * row r and lane l of a group.
 *
 * x f32 [rows, width]; weights vec4u, scales f32 of a part, written from group group_first on. Grid [steps, groups of 8 rows]. Reference: quantize-rows.ts.
 */
export function packRows(encoding: "int8" | "int4"): Kernel {
  return {
    name: `pack_rows_${encoding}`,
    params: { rows: "u32", width: "u32", steps: "u32", group_first: "u32" },
    bindings: { x: read("f32"), weights: write("vec4u"), scales: write("f32") },
    code: () => /* wgsl */ `
${EXACT_DIVIDE}
${SIGNED_BYTES}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let row = wg.y * 8u + lid / 8u;
  let k = (lid % 8u * p.steps + wg.x) * 32u;
  let first = row * p.width + k;
  let count = select(0u, min(32u, p.width - k), row < p.rows && k < p.width);
  let place = (p.group_first + wg.y) * p.steps + wg.x;
${encoding === "int8" ? INT8 : INT4}
  scales[place * 64u + lid] = scale;
}
`,
  };
}
