/**
 * Causal attention over the blocks that a selection left: one online softmax over the blocks of a split, ascending, then over the splits, ascending.
 * A split is SPLIT_BLOCKS blocks of the context, or LIST_BLOCKS of the blocks that a selection lists.
 */
import { type Kernel, type Lane, read, variants, write } from "../kernel.ts";
import {
  AHEAD_DECLARED,
  AHEAD_SCORES,
  aheadDots,
  aheadLoad,
  aheadOnce,
  aheadStage,
  aheadValues,
} from "./attend-ahead.ts";
import {
  ADD_KEY,
  ADD_VALUE,
  type AttendShape,
  addDots,
  addValues,
  MASK_FROM,
  NONE,
  OPEN_KEYS,
  readsAhead,
  SCALE_QUERY_INT8,
  sources,
  TILE_HEADS,
  tokensPerGroup,
  valueScale,
} from "./attend-blocks.ts";
import { ROUNDED, SIGNED_BYTES } from "./exact-math.ts";
import { laneParam, laneWidth, shuffles } from "./reduce.ts";

/** Words of one tile in the tables: see step-layout.ts. */
export const TILE_WORDS = 10;
/** Blocks of a split where all of a context is attended. */
export const SPLIT_BLOCKS = 8;
/** Listed blocks of a split where a selection chose them: fewer, because few are listed, and a page or two of each is read. */
export const LIST_BLOCKS = 4;
/** Words of a listed block: its number, the mask of its tokens, and its place in the pool. */
export const LIST_WORDS = 4;
/** What both kernels know of a tile. */
export const TILE = /* wgsl */ `
struct Tile {
  first_row: u32, row_count: u32, position: u32, block_ids_at: u32, block_ids_stride: u32,
  list_at: u32, head_lists: u32, open_slot: u32, block_end: u32, unused: u32,
}
fn load_tile(index: u32) -> Tile {
  let at = p.tiles_at + index * ${TILE_WORDS}u;
  return Tile(tables[at], tables[at + 1u], tables[at + 2u], tables[at + 3u], tables[at + 4u],
    tables[at + 5u], tables[at + 6u], tables[at + 7u], tables[at + 8u], tables[at + 9u]);
}
/** How many blocks there are to walk, listed or all. */
fn blocks_of(tile: Tile, kv_head: u32) -> u32 {
  if (tile.list_at == 0xffffffffu) { return tile.block_end; }
  return scratch[tile.list_at + kv_head * tile.head_lists];
}
fn split_blocks(tile: Tile) -> u32 { return select(${LIST_BLOCKS}u, ${SPLIT_BLOCKS}u, tile.list_at == 0xffffffffu); }
`;

/**
 * Maximum and sum over the lanes of a query. The sum is a tree over 16 groups of four tokens (n, n + 16, n + 32 and n + 48), (0 + 1) + (2 + 3) and so on, however many
 * lanes share them: by shuffles where a subgroup has all lanes of a query, else through work group memory.
 */
function withinQuery({ subgroups }: Lane): { max: string; sum: string } {
  const max = /* wgsl */ `{
        lanes[lid] = block_max;
        workgroupBarrier();
        for (var i = 0u; i < LANES; i++) { block_max = max(block_max, lanes[my_query * LANES + i]); }
      }`;
  const sum = /* wgsl */ `{
        for (var part = 0u; part < PARTS; part++) {
          fours[my_query * 16u + part * LANES + my_lane] = parts[part];
        }
        workgroupBarrier();
        var sixteen: array<f32, 16>;
        for (var n = 0u; n < 16u; n++) { sixteen[n] = fours[my_query * 16u + n]; }
        for (var d = 1u; d < 16u; d <<= 1u) {
          for (var n = 0u; n < 16u; n += 2u * d) { sixteen[n] = sixteen[n] + sixteen[n + d]; }
        }
        block_sum = sixteen[0];
      }`;
  if (subgroups === "none") return { max, sum };
  return {
    max: /* wgsl */ `      if (lane_width >= LANES) {
        for (var d = 1u; d < LANES; d <<= 1u) { block_max = max(block_max, shuffle_xor(block_max, lid, d)); }
      } else ${max}`,
    sum: /* wgsl */ `      if (lane_width >= LANES) {
        for (var part = 0u; part < PARTS; part++) {
          for (var d = 1u; d < LANES; d <<= 1u) { parts[part] += shuffle_xor(parts[part], lid, d); }
        }
        for (var d = 1u; d < PARTS; d <<= 1u) {
          for (var part = 0u; part < PARTS; part += 2u * d) { parts[part] += parts[part + d]; }
        }
        block_sum = parts[0];
      } else ${sum}`,
  };
}

/** From a block to the scores of a thread's query and four tokens for each of its parts: `block_max`, and what says the one numbered i. */
interface Scores {
  scores: string;
  score: string;
}

function scoresAhead(shape: AttendShape): Scores {
  return {
    scores: /* wgsl */ `
${aheadLoad(shape)}
${aheadStage(shape)}
      workgroupBarrier();
${aheadDots(shape, OPEN_KEYS)}
      value_scales[token] = value_scale;
      workgroupBarrier();
${AHEAD_SCORES}`,
    score: "select(select(score0, score1, i == 1u), select(score2, score3, i == 3u), i >= 2u)",
  };
}

function scoresOf(shape: AttendShape): Scores {
  return {
    scores: /* wgsl */ `
${valueScale(shape)}
      for (var i = lid; i < QUERIES * FOURS; i += 64u) {
        let j = i / FOURS;
        let head = head_first + j % HEADS;
        var four = vec4f(0.0);
        if (j / HEADS < tile.row_count && head < head_end) {
          four = q[((tile.first_row + j / HEADS) * p.head_count + head) * FOURS + i % FOURS];
        }
${shape.encoding === "int8" ? SCALE_QUERY_INT8 : ""}
        query[i] = four;
      }
      workgroupBarrier();

      var dots: array<f32, QUERIES>;
      for (var j = 0u; j < QUERIES; j++) { dots[j] = 0.0; }
      if (is_chosen && token <= last_token) {
${addDots(shape)}
      }
      for (var j = 0u; j < QUERIES; j++) {
        let sees = is_chosen && (is_sealed || token <= tile.position % 64u + j / HEADS);
        weights[token * QUERIES + j] = select(${NONE}, dots[j] * p.scale, sees);
      }
      value_scales[token] = value_scale;
      workgroupBarrier();

      var block_max = ${NONE};
      for (var n = my_lane; n < 16u; n += LANES) {
        for (var i = 0u; i < 4u; i++) {
          block_max = max(block_max, weights[(n + i * 16u) * QUERIES + my_query]);
        }
      }`,
    score: "weights[at]",
  };
}

/**
 * Attention of one tile: up to `rows` rows of a query group within one block of positions, times TILE_HEADS query heads of one KV head.
 *
 * q, out vec4f [rows, headCount, headDim / 4]; blocks0.. the parts of the pool; open vec4f, one layer (pool.ts); tables: tiles
 * (step-layout.ts) and block ids; scratch: lists of chosen blocks u32 [unit](count, [LIST_WORDS] each), partial results. 64 threads: for scores one a
 * token (decoding over int8: attend-ahead.ts), for values one (token group, 4 channels), for weights 64 / queries a query.
 *
 * With `is_split` each work group has one split and leaves (max, sum, output) in scratch for `mergeSplits`: grid
 * [most splits, tiles, kvHeadCount * head chunks]; else it walks all splits and writes `out`: grid [1, ...]. Both add in the same order and give the
 * same bits. Blocks that are not resident or without a chosen token are skipped; no attended token: zeros. Reference: attend.ts.
 */
export const attend = variants(
  (encoding: AttendShape["encoding"], headDim: number, partCount: number, rows: number): Kernel => {
    const shape = { encoding, headDim, partCount, rows };
    const int8 = encoding === "int8";
    const queries = rows * TILE_HEADS;
    const parts = Array.from({ length: partCount }, (_, part) => [`blocks${part}`, read("vec4u")] as const);
    const tokens = tokensPerGroup(headDim);
    const ahead = readsAhead(shape);
    const { scores, score } = ahead ? scoresAhead(shape) : scoresOf(shape);
    return {
      name: `attend_${encoding}_${headDim}_${partCount}_${rows}`,
      params: {
        ...{ layer: "u32", head_count: "u32", kv_head_count: "u32", head_chunks: "u32", tiles_at: "u32" },
        ...{ block_words: "u32", blocks_per_part: "u32", is_split: "u32" },
        ...{ partials_at: "u32", split_count: "u32", scale: "f32" },
      },
      bindings: {
        ...{ q: read("vec4f"), out: write("vec4f"), open: read("vec4f"), tables: read("u32"), scratch: write("u32") },
        ...Object.fromEntries(parts),
      },
      code: (lane) => /* wgsl */ `
${SIGNED_BYTES}
${laneWidth(lane)}${shuffles(lane, 64)}
const HEAD_DIM = ${headDim}u;
const FOURS = ${headDim / 4}u;
const HEADS = ${TILE_HEADS}u;
const QUERIES = ${queries}u;
const LANES = ${64 / queries}u;
const PARTS = ${queries / 4}u;
const TOKEN_GROUPS = ${Math.floor(64 / (headDim / 4))}u;
const TOKENS_PER_GROUP = ${tokens}u;
const WORD_BITS = ${tokens >= 32 ? 0xffff_ffff : 2 ** tokens - 1}u;
var<workgroup> query: array<vec4f, ${queries * (headDim / 4)}>;
/** [token][query]; first scores, then weights, those of int8 blocks times the scale of the value. */
var<workgroup> weights: array<f32, ${queries * 64}>;
var<workgroup> value_scales: array<f32, 64>;
var<workgroup> lanes: array<f32, 64>;
var<workgroup> fours: array<f32, ${queries * 16}>;
var<workgroup> gather: array<vec4f, 64>;
var<workgroup> infos: array<vec4u, ${SPLIT_BLOCKS}>;
var<workgroup> block_count: u32;
var<workgroup> split_max: array<f32, QUERIES>;
var<workgroup> split_sum: array<f32, QUERIES>;
var<workgroup> total_max: array<f32, QUERIES>;
var<workgroup> total_sum: array<f32, QUERIES>;
var<workgroup> keep: array<f32, QUERIES>;
var<workgroup> add: array<f32, QUERIES>;
${sources(shape)}
fn add_dot(a: vec4f, b: vec4f, sum: f32) -> f32 { return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum)))); }
${int8 ? `${MASK_FROM}${headDim % 16 === 0 ? ADD_KEY : ""}` : ""}${ADD_VALUE}${TILE}${ahead ? `${ROUNDED}${AHEAD_DECLARED}` : ""}
/** (mask low, mask high, 0 nothing 1 sealed 2 open + 4 * part, base in elements of its buffer) of block number index of those to walk. */
fn block_info(tile: Tile, kv_head: u32, index: u32) -> vec4u {
  var block = index;
  var mask = vec2u(0xffffffffu);
  var id = 0u;
  if (tile.list_at == 0xffffffffu) {
    if (block < tile.block_end - 1u) { id = tables[tile.block_ids_at + p.layer * tile.block_ids_stride + block]; }
  } else {
    let at = tile.list_at + kv_head * tile.head_lists + 1u + index * ${LIST_WORDS}u;
    block = scratch[at];
    mask = vec2u(scratch[at + 1u], scratch[at + 2u]);
    id = scratch[at + 3u];
  }
  if (block == tile.block_end - 1u) { return vec4u(mask, 2u, tile.open_slot * p.kv_head_count * 128u * FOURS); }
  if (block >= tile.block_end || id == 0xffffffffu) { return vec4u(0u); }
  return vec4u(mask, 1u + 4u * (id / p.blocks_per_part), (id % p.blocks_per_part) * p.block_words${int8 ? "" : " / 4u"});
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let tile = load_tile(wg.y);
  let kv_head = wg.z / p.head_chunks;
  let group = p.head_count / p.kv_head_count;
  let head_first = kv_head * group + (wg.z % p.head_chunks) * HEADS;
  let head_end = (kv_head + 1u) * group;
  if (lid == 0u) { block_count = blocks_of(tile, kv_head); }
  let count = workgroupUniformLoad(&block_count);
  let per_split = split_blocks(tile);
  var split_first = 0u;
  var split_end = (count + per_split - 1u) / per_split;
  if (p.is_split != 0u) {
    split_first = wg.x;
    split_end = min(wg.x + 1u, split_end);
  }
  let four = lid % FOURS;
  let token_group = lid / FOURS;
  let token_first = token_group * TOKENS_PER_GROUP;
  let my_query = lid / LANES;
  let my_lane = lid % LANES;
  let is_mine = my_query / HEADS < tile.row_count && head_first + my_query % HEADS < head_end;
  var total: array<vec4f, QUERIES>;
  for (var j = 0u; j < QUERIES; j++) { total[j] = vec4f(0.0); }
  if (lid < QUERIES) {
    total_max[lid] = ${NONE};
    total_sum[lid] = 0.0;
  }

${ahead ? aheadOnce(shape) : ""}
  for (var split = split_first; split < split_end; split++) {
    if (lid < ${SPLIT_BLOCKS}u) {
      let index = split * per_split + lid;
      var info = vec4u(0u);
      if (lid < per_split && index < count) { info = block_info(tile, kv_head, index); }
      infos[lid] = info;
    }
    let blocks = workgroupUniformLoad(&infos);
    var acc: array<vec4f, QUERIES>;
    for (var j = 0u; j < QUERIES; j++) { acc[j] = vec4f(0.0); }
    // Every lane of a query has them.
    var my_max = ${NONE};
    var my_sum = 0.0;
    var any = false;
    for (var index = 0u; index < ${SPLIT_BLOCKS}u; index++) {
      let info = blocks[index];
      if (info.z == 0u) { continue; }
      any = true;
      let is_sealed = (info.z & 3u) == 1u;
      let part = info.z >> 2u;
      let base = info.w;
      let last_token = select(tile.position % 64u + tile.row_count - 1u, 63u, is_sealed);
      let token = lid;
      let is_chosen = ((select(info.x, info.y, token >= 32u) >> (token & 31u)) & 1u) == 1u;
${scores}
${withinQuery(lane).max}
      let now = max(my_max, block_max);
      var parts: array<f32, PARTS>;
      for (var part = 0u; part < PARTS; part++) {
        var sum = 0.0;
        for (var i = 0u; i < 4u; i++) {
          let token = part * LANES + my_lane + i * 16u;
          let at = token * QUERIES + my_query;
          let score = ${score};
          var weight = 0.0;
          if (score > ${NONE} && is_mine) { weight = exp(score - now); }
          sum += weight;
          weights[at] = select(0.0, weight * value_scales[token], weight > 0.0);
        }
        parts[part] = sum;
      }
      var block_sum = 0.0;
${withinQuery(lane).sum}
      let kept = exp(my_max - now);
      my_max = now;
      my_sum = fma(my_sum, kept, block_sum);
      if (my_lane == 0u) { keep[my_query] = kept; }
      workgroupBarrier();

      for (var j = 0u; j < QUERIES; j++) { acc[j] *= keep[j]; }
${ahead ? aheadValues(shape, addValues(shape)) : addValues(shape)}
    }
    if (my_lane == 0u) {
      split_max[my_query] = my_max;
      split_sum[my_query] = my_sum;
    }
    workgroupBarrier();
    if (!any && p.is_split == 0u) { continue; }

    if (lid < QUERIES) {
      let before = total_max[lid];
      let now = max(before, split_max[lid]);
      keep[lid] = 1.0;
      add[lid] = 0.0;
      if (split_sum[lid] > 0.0) {
        keep[lid] = exp(before - now);
        add[lid] = exp(split_max[lid] - now);
        total_max[lid] = now;
        total_sum[lid] = fma(total_sum[lid], keep[lid], split_sum[lid] * add[lid]);
      }
    }
    for (var j = 0u; j < QUERIES; j++) {
      gather[lid] = acc[j];
      workgroupBarrier();
      let row = j / HEADS;
      let head = head_first + j % HEADS;
      if (lid < FOURS && row < tile.row_count && head < head_end) {
        var output = vec4f(0.0);
        for (var g = 0u; g < TOKEN_GROUPS; g++) { output += gather[g * FOURS + lid]; }
        if (p.is_split == 0u) {
          total[j] = fma(total[j], vec4f(keep[j]), output * add[j]);
        } else {
          let to_at = p.partials_at + (((tile.first_row + row) * p.head_count + head) * p.split_count + split) * (HEAD_DIM + 4u);
          if (lid == 0u) {
            scratch[to_at] = bitcast<u32>(split_max[j]);
            scratch[to_at + 1u] = bitcast<u32>(split_sum[j]);
          }
          for (var i = 0u; i < 4u; i++) { scratch[to_at + 4u + lid * 4u + i] = bitcast<u32>(output[i]); }
        }
      }
      workgroupBarrier();
    }
  }
  if (p.is_split != 0u || lid >= FOURS) { return; }
  for (var j = 0u; j < QUERIES; j++) {
    let row = j / HEADS;
    let head = head_first + j % HEADS;
    if (row >= tile.row_count || head >= head_end) { continue; }
    let sum = total_sum[j];
    out[((tile.first_row + row) * p.head_count + head) * FOURS + lid] = select(vec4f(0.0), total[j] / sum, sum > 0.0);
  }
}
`,
    };
  },
);
