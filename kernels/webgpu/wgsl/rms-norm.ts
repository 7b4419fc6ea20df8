/** RMSNorm, by itself or with the quantization of its result for the product behind it. */
import { type Kernel, read, variants, write } from "../kernel.ts";
import { QUANTIZED, quantizeFours } from "./quantize-rows.ts";
import { laneParam, laneWidth, sumOf } from "./reduce.ts";

/** Rows up to this width (heads) go to a work group of 64, wider ones to one of 256. */
const NARROW_MAX = 256;

/**
 * `out = x / sqrt(mean(x^2) + eps) * weight`. With T threads, thread t adds the squares of channels 4 t .. 4 t + 3 of every 4 T, ascending; the T
 * sums are added by the tree of reduce.ts, so the order depends on the width only. A row of zeros gives zeros.
 *
 * x, out f32 [rows, width], weight f32 [width]; with `quantizes` also codes and scales of the row as quantize-rows.ts says, from what is written to
 * `out`. One work group a row: grid [rows]. Reference: rms-norm.ts.
 */
export const rmsNorm = variants((width: number, quantizes: boolean): Kernel => {
  const threads = width <= NARROW_MAX ? 64 : 256;
  return {
    name: `rms_norm_${threads}${quantizes ? "_quantize" : ""}`,
    params: { width: "u32", blocks: "u32", eps: "f32" },
    bindings: { x: read("f32"), weight: read("f32"), out: write("f32"), ...(quantizes ? QUANTIZED : {}) },
    code: (lane) => /* wgsl */ `
${laneWidth(lane)}${sumOf(lane, threads)}${quantizes ? quantizeFours(threads) : ""}
const STRIDE = ${threads * 4}u;
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let start = wg.x * p.width;
  var mine = 0.0;
  for (var first = lid * 4u; first < p.width; first += STRIDE) {
    for (var k = first; k < min(first + 4u, p.width); k++) {
      let value = x[start + k];
      mine = fma(value, value, mine);
    }
  }
  let root = sqrt(sum_of(mine, lid, lane_width) / f32(p.width) + p.eps);
  for (var from_k = 0u; from_k < ${quantizes ? "p.blocks * 32u" : "p.width"}; from_k += STRIDE) {
    let first = from_k + lid * 4u;
    var four = vec4f(0.0);
    for (var i = 0u; i < 4u; i++) {
      let k = first + i;
      if (k < p.width) {
        four[i] = x[start + k] / root * weight[k];
        out[start + k] = four[i];
      }
    }
${quantizes ? "    quantize_four(four, wg.x * p.blocks + first / 32u, first < p.blocks * 32u, lid);" : ""}
  }
}
`,
  };
});
