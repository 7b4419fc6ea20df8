/** Centres of blocks, for plans that score blocks before pages (`coarseFactor` in contract.ts). */
import { type Kernel, read, variants, write } from "../kernel.ts";
import { SEAL_PARAMS } from "./append.ts";
import { EXACT_DIVIDE, FLOAT_BITS, ROUNDED, SIGNED_BYTES } from "./exact-math.ts";

/**
 * Centres of sealed blocks from the summaries of their pages, to the bit of `blockCentre` in summary-codec.ts. A block with a page whose scale is
 * not finite gets a NaN scale.
 *
 * summaries, centres u32, of one kind and one layer (pool.ts); tables as for the seal in append.ts. One work group a (sealed block, KV head): grid
 * [sealed blocks, kvHeadCount]. 4 * headDim bytes of work group memory.
 */
export const writeCentres = variants((headDim: number): Kernel => {
  return {
    name: `write_centres_${headDim}`,
    params: SEAL_PARAMS,
    bindings: { summaries: read("u32"), centres: write("u32"), tables: read("u32") },
    code: /* wgsl */ `
${EXACT_DIVIDE}
${SIGNED_BYTES}
${ROUNDED}
${FLOAT_BITS}
const HEAD_DIM = ${headDim}u;
var<workgroup> centre: array<f32, ${headDim}>;
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let slot = tables[p.sealed_at + wg.x * 3u + 2u];
  if (slot == 0xffffffffu) { return; }
  let head = slot * p.kv_head_count + wg.y;
  let from_at = head * (2u * HEAD_DIM + 8u);
  let to_at = head * (HEAD_DIM / 4u + 1u);
  var is_whole = true;
  for (var page = 0u; page < 4u; page++) {
    if (!is_finite(bitcast<f32>(summaries[from_at + 2u * HEAD_DIM + page * 2u]))) { is_whole = false; }
  }
  for (var i = lid; i < HEAD_DIM; i += 64u) {
    var sum = 0.0;
    for (var page = 0u; page < 4u; page++) {
      let code = signed_bytes(summaries[from_at + page * (HEAD_DIM / 2u) + i / 4u])[i % 4u];
      sum = sum + rounded(code * bitcast<f32>(summaries[from_at + 2u * HEAD_DIM + page * 2u]));
    }
    centre[i] = sum * 0.25;
  }
  workgroupBarrier();
  var largest = 0.0;
  for (var i = 0u; i < HEAD_DIM; i++) { largest = max(largest, abs(centre[i])); }
  let scale = divide(largest, 127.0);
  for (var word = lid; word < HEAD_DIM / 4u; word += 64u) {
    var codes = vec4i(0);
    for (var i = 0u; i < 4u; i++) {
      if (is_whole) { codes[i] = int8_code(centre[word * 4u + i], scale); }
    }
    centres[to_at + word] = pack_bytes(codes);
  }
  if (lid == 0u) { centres[to_at + HEAD_DIM / 4u] = select(0x7fc00000u, bitcast<u32>(scale), is_whole); }
}
`,
  };
});
