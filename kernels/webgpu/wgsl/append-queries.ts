/** Append where page scores follow: queries are turned and quantized for them at once. */
import { type Kernel, variants, write } from "../kernel.ts";
import { APPEND, TURN_AND_APPEND } from "./append.ts";
import { EXACT_DIVIDE, ROUNDED, SIGNED_BYTES } from "./exact-math.ts";
import { laneParam, laneWidth, maxOf } from "./reduce.ts";
import { turnOfCodes } from "./residual-signs.ts";
import { QUERY_CODES } from "./score.ts";

/** What page scores take of queries: their codes, or these turned for residual signs as well. */
export type QueryForm = "codes" | "turned";

/**
 * {@link APPEND}, `QUANTIZE_QUERIES` and, for `turned`, `turnQueries` at once, for layers whose pages are scored next: a work group has a head anyway,
 * and its threads the channels of which the largest makes the scale. In the scoring kernel it would be done once for every 64 pages, thousands of times
 * a layer: exact divisions, 6 a thread, cost more there than the summaries. Here a head does once what was a dispatch, whose start and end cost more
 * than the two divisions a thread behind each other that are left. To the bit of the kernels apart.
 *
 * Bindings of both. One work group of 64 a head, a thread one pair of channels (two of heads of more than 128), KV heads after the query heads: grid
 * [headCount + kvHeadCount, rows]. 4 * headDim bytes of work group memory and the maximum's. 8 storage buffers. References: append.ts, score.ts.
 */
export const appendQueries = variants((headDim: number, form: QueryForm): Kernel => {
  const isTurned = form === "turned";
  return {
    name: `append_${isTurned ? "turned" : "queries"}_${headDim}`,
    params: { ...APPEND.params, codes_at: "u32", scales_at: "u32", ...(isTurned ? { turned_at: "u32" } : {}) },
    bindings: { ...APPEND.bindings, scratch: write("u32") },
    code: (lane) => /* wgsl */ `
${EXACT_DIVIDE}
${SIGNED_BYTES}
${ROUNDED}
${laneWidth(lane)}${maxOf(lane, 64, "f32")}
${TURN_AND_APPEND}
${QUERY_CODES}
/** Of a query's channels: its values as bits, then their codes. */
var<workgroup> values: array<i32, ${headDim}>;
${isTurned ? turnOfCodes(headDim) : ""}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let row = wg.y;
  if (wg.x >= p.head_count) {
    for (var channel = lid; channel < p.half; channel += 64u) {
      append_key(row, wg.x - p.head_count, channel, angle_of(row, channel));
    }
    return;
  }
  let query = row * p.head_count + wg.x;
  let first = query * ${headDim}u;
  var mine = 0.0;
  for (var channel = lid; channel < p.half; channel += 64u) {
    let pair = turned(q[first + channel], q[first + channel + p.half], angle_of(row, channel));
    q[first + channel] = pair.x;
    q[first + channel + p.half] = pair.y;
    values[channel] = bitcast<i32>(pair.x);
    values[channel + p.half] = bitcast<i32>(pair.y);
    mine = max(mine, max(abs(pair.x), abs(pair.y)));
  }
  let scale = divide(max_of(mine, lid, lane_width), 32767.0);
  for (var channel = lid; channel < p.half; channel += 64u) {
    values[channel] = query_code(bitcast<f32>(values[channel]), scale);
    values[channel + p.half] = query_code(bitcast<f32>(values[channel + p.half]), scale);
  }
  workgroupBarrier();
  if (lid == 0u) { scratch[p.scales_at + query] = bitcast<u32>(scale); }
  for (var channel = lid * 4u; channel < ${headDim}u; channel += 256u) {
    store_query_codes(
      p.codes_at + first + channel,
      vec4i(values[channel], values[channel + 1u], values[channel + 2u], values[channel + 3u]),
    );
  }
${isTurned ? "  turn_codes(query, scale, lid);" : ""}
}
`,
  };
});
