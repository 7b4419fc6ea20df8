/** The second half of split attention. */
import { type Kernel, read, variants, write } from "../kernel.ts";
import { TILE } from "./attend.ts";
import { NONE } from "./attend-blocks.ts";
import { QUANTIZED, quantizeFours } from "./quantize-rows.ts";

/** Splits whose results are on their way at once. */
const AHEAD = 8;

/** A head's blocks, and behind the last head's the padding of the row. */
const QUANTIZE = /* wgsl */ `
  let row_block = (tile.first_row + wg.y) * p.blocks;
  quantize_four(four, row_block + wg.z * (FOURS / 8u) + lid / 8u, true, lid);
  if (wg.z == p.head_count - 1u) {
    for (var block = p.head_count * (FOURS / 8u) + lid / 8u; block < p.blocks; block += FOURS / 8u) {
      codes[(row_block + block) * 8u + (lid & 7u)] = 0u;
      if ((lid & 7u) == 0u) { scales[row_block + block] = vec2u(0u); }
    }
  }`;

/**
 * Merges the splits of every row of a tile, ascending; empty ones change nothing. Results of AHEAD splits are read before the first of them is merged.
 *
 * scratch: what `attend` left; tables: tiles; out vec4f [rows, headCount, headDim / 4]; with `quantizes` also codes and scales of the rows as
 * quantize-rows.ts says, from what is written to `out`: headDim is a multiple of 32 then, so that a head has whole blocks, and the last head's work group
 * writes the padding of its row. One work group a (tile, row, head), a thread four channels: grid [tiles, rows of a tile, headCount].
 */
export const mergeSplits = variants((headDim: number, quantizes: boolean): Kernel => {
  const threads = Math.max(4, headDim / 4);
  const each = (text: (n: number) => string): string => Array.from({ length: AHEAD }, (_, n) => text(n)).join("\n");
  return {
    name: `merge_splits_${headDim}${quantizes ? "_quantize" : ""}`,
    params: {
      ...{ head_count: "u32", kv_head_count: "u32", tiles_at: "u32", partials_at: "u32", split_count: "u32" },
      blocks: "u32",
    },
    bindings: { scratch: read("u32"), tables: read("u32"), out: write("vec4f"), ...(quantizes ? QUANTIZED : {}) },
    code: () => /* wgsl */ `
const HEAD_DIM = ${headDim}u;
const FOURS = ${headDim / 4}u;
${TILE}${quantizes ? quantizeFours(threads) : ""}
struct Merged { sum: f32, largest: f32, output: vec4f }
fn merged(all: Merged, largest: f32, sum: f32, output: vec4f) -> Merged {
  if (sum <= 0.0) { return all; }
  let now = max(all.largest, largest);
  let keep = exp(all.largest - now);
  let add = exp(largest - now);
  return Merged(fma(all.sum, keep, sum * add), now, fma(all.output, vec4f(keep), output * add));
}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let tile = load_tile(wg.x);
  if (wg.y >= tile.row_count${quantizes ? "" : " || lid >= FOURS"}) { return; }
  let per_split = split_blocks(tile);
  let splits = (blocks_of(tile, wg.z / (p.head_count / p.kv_head_count)) + per_split - 1u) / per_split;
  let query = (tile.first_row + wg.y) * p.head_count + wg.z;
  var all = Merged(0.0, ${NONE}, vec4f(0.0));
  for (var first = 0u; first < splits; first += ${AHEAD}u) {
${each(
  (n) => `    let at${n} = p.partials_at + (query * p.split_count + min(first + ${n}u, splits - 1u)) * (HEAD_DIM + 4u);
    let max${n} = bitcast<f32>(scratch[at${n}]);
    let sum${n} = bitcast<f32>(scratch[at${n} + 1u]);
    let from${n} = at${n} + 4u + lid * 4u;
    let output${n} = bitcast<vec4f>(vec4u(scratch[from${n}], scratch[from${n} + 1u], scratch[from${n} + 2u], scratch[from${n} + 3u]));`,
)}
${each((n) => `    all = merged(all, max${n}, select(0.0, sum${n}, first + ${n}u < splits), output${n});`)}
  }
  let four = select(vec4f(0.0), all.output / all.sum, all.sum > 0.0);
  out[query * FOURS + lid] = four;
${quantizes ? QUANTIZE : ""}
}
`,
  };
});
