/**
 * Causal attention over the blocks that a selection left, in the contract's order: one online softmax per block, blocks of a split ascending,
 * splits ascending.
 */
import type { KvEncoding } from "../../contract.ts";
import { type Kernel, type Lane, read, write } from "../kernel.ts";
import { SIGNED_BYTES } from "./exact-math.ts";
import { laneParam, laneWidth, shuffles } from "./reduce.ts";

/** Query heads of one KV head that a work group takes. */
export const TILE_HEADS = 4;
/** Words of one tile in the tables: see step-tables.ts. */
export const TILE_WORDS = 10;
/** A score that no dot product of finite values reaches; exp of it is 0. */
const NONE = "-3.0e38";

/** What fixes the code of the kernel. */
export interface AttendShape {
  encoding: KvEncoding;
  headDim: number;
  /** Buffers that hold the pool's blocks. */
  partCount: number;
  /** Rows of one tile: 1 in decoding. */
  rows: number;
}

/** Reads of the sealed block at hand, 16 bytes at a time; a word of it, for what is not aligned. */
function sources({ encoding, partCount }: AttendShape): string {
  const cases = Array.from({ length: partCount }, (_, part) => `    case ${part}u: { return blocks${part}[at]; }`);
  const choose = `switch (part) {\n${cases.join("\n")}\n    default: { return vec4u(0u); }\n  }`;
  return /* wgsl */ `
fn block4(part: u32, at: u32) -> vec4u { ${partCount === 1 ? "return blocks0[at];" : choose} }
${
  encoding === "f32"
    ? "fn sealed4(part: u32, base: u32, offset: u32) -> vec4f { return bitcast<vec4f>(block4(part, base + offset)); }"
    : "fn block_word(part: u32, at: u32) -> u32 { return block4(part, at >> 2u)[at & 3u]; }"
}
`;
}

/** One int8 key: 16 channels a load where rows are aligned, else 4. */
function sealedKeys(headDim: number): string {
  const dots = (four: string): string =>
    `for (var j = 0u; j < QUERIES; j++) { dots[j] = add_dot(key, query[j * FOURS + ${four}], dots[j]); }`;
  if (headDim % 16 !== 0) {
    return /* wgsl */ `
        for (var four = 0u; four < FOURS; four++) {
          let key = signed_bytes(block_word(part, words_at + four));
          ${dots("four")}
        }`;
  }
  return /* wgsl */ `
        for (var four = 0u; four < FOURS; four += 4u) {
          let words = block4(part, (words_at + four) >> 2u);
          for (var i = 0u; i < 4u; i++) {
            let key = signed_bytes(words[i]);
            ${dots("four + i")}
          }
        }`;
}

const keysInt8 = (headDim: number): string => /* wgsl */ `
      if (is_sealed) {
        let words_at = base + (kv_head * 64u + token) * FOURS;
${sealedKeys(headDim)}
      } else {
        let open_at = base + (kv_head * 64u + token) * FOURS;
        for (var four = 0u; four < FOURS; four++) {
          let key = open[open_at + four];
          for (var j = 0u; j < QUERIES; j++) { dots[j] = add_dot(key, query[j * FOURS + four], dots[j]); }
        }
      }`;

const KEYS_F32 = /* wgsl */ `
      let keys_at = (kv_head * 64u + token) * FOURS;
      for (var four = 0u; four < FOURS; four++) {
        var key: vec4f;
        if (is_sealed) { key = sealed4(part, base, keys_at + four); } else { key = open[base + keys_at + four]; }
        for (var j = 0u; j < QUERIES; j++) { dots[j] = add_dot(key, query[j * FOURS + four], dots[j]); }
      }`;

const VALUES_INT8 = /* wgsl */ `
        if (is_sealed) {
          let values_at = base + p.kv_head_count * (16u * HEAD_DIM + HEAD_DIM);
          value = signed_bytes(block_word(part, values_at + (kv_head * 64u + token) * FOURS + four));
          value *= bitcast<f32>(block_word(part, values_at + p.kv_head_count * 16u * HEAD_DIM + kv_head * 64u + token));
        } else {
          value = open[base + ((p.kv_head_count + kv_head) * 64u + token) * FOURS + four];
        }`;

const VALUES_F32 = /* wgsl */ `
        let offset = ((p.kv_head_count + kv_head) * 64u + token) * FOURS + four;
        if (is_sealed) { value = sealed4(part, base, offset); } else { value = open[base + offset]; }`;

/** An int8 block's key scales go into the query. */
const SCALE_QUERY_INT8 = /* wgsl */ `
        if (is_sealed) {
          let scales_at = base + p.kv_head_count * 16u * HEAD_DIM + kv_head * HEAD_DIM + (i % FOURS) * 4u;
          four *= vec4f(
            bitcast<f32>(block_word(part, scales_at)), bitcast<f32>(block_word(part, scales_at + 1u)),
            bitcast<f32>(block_word(part, scales_at + 2u)), bitcast<f32>(block_word(part, scales_at + 3u)));
        }`;

/**
 * Maximum and sum over the lanes of a query. The sum is a tree over the 16 groups of four tokens, (0 + 1) + (2 + 3) and so on, however many
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

/**
 * Attention of one tile: up to `rows` rows of a query group within one block of positions, times TILE_HEADS query heads of one KV head.
 *
 * q, out vec4f [rows, headCount, headDim / 4]; blocks0.. the parts of the pool; open vec4f, one layer (pool.ts); tables: tiles
 * (step-tables.ts) and block ids; scratch: masks u32 [unit][block][2], partial results. 64 threads: for scores one a token, for values one
 * (token group, 4 channels), for weights 64 / queries a query.
 *
 * With `is_split` each work group has one split and leaves (max, sum, output) in scratch for {@link mergeSplits}: grid
 * [splits, tiles, kvHeadCount * head chunks]; else it walks all splits and writes `out`: grid [1, ...]. Both add in the same order and give the
 * same bits. Blocks that are not resident or without a chosen token are skipped; no attended token: zeros. Reference: attend.ts.
 */
export function attend(shape: AttendShape): Kernel {
  const { encoding, headDim, partCount, rows } = shape;
  const int8 = encoding === "int8";
  const parts = Array.from({ length: partCount }, (_, part) => [`blocks${part}`, read("vec4u")] as const);
  return {
    name: `attend_${encoding}_${headDim}_${partCount}_${rows}`,
    params: {
      ...{ layer: "u32", head_count: "u32", kv_head_count: "u32", head_chunks: "u32", tiles_at: "u32" },
      ...{
        block_words: "u32",
        blocks_per_part: "u32",
        is_split: "u32",
        partials_at: "u32",
        split_count: "u32",
        scale: "f32",
      },
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
const ROWS = ${rows}u;
const HEADS = ${TILE_HEADS}u;
const QUERIES = ${rows * TILE_HEADS}u;
const LANES = ${64 / (rows * TILE_HEADS)}u;
const PARTS = ${(rows * TILE_HEADS) / 4}u;
const TOKEN_GROUPS = ${Math.floor(64 / (headDim / 4))}u;
const TOKENS_PER_GROUP = ${Math.ceil(64 / Math.floor(64 / (headDim / 4)))}u;
var<workgroup> query: array<vec4f, ${rows * TILE_HEADS * (headDim / 4)}>;
var<workgroup> weights: array<f32, ${rows * TILE_HEADS * 64}>;
var<workgroup> lanes: array<f32, 64>;
var<workgroup> fours: array<f32, ${rows * TILE_HEADS * 16}>;
var<workgroup> gather: array<vec4f, 64>;
var<workgroup> infos: array<vec4u, 8>;
var<workgroup> split_max: array<f32, QUERIES>;
var<workgroup> split_sum: array<f32, QUERIES>;
var<workgroup> total_max: array<f32, QUERIES>;
var<workgroup> total_sum: array<f32, QUERIES>;
var<workgroup> keep: array<f32, QUERIES>;
var<workgroup> add: array<f32, QUERIES>;
${sources(shape)}
fn add_dot(a: vec4f, b: vec4f, sum: f32) -> f32 { return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum)))); }

struct Tile {
  first_row: u32, row_count: u32, position: u32, block_ids_at: u32, block_ids_stride: u32,
  masks_at: u32, head_masks: u32, open_slot: u32, block_end: u32, unused: u32,
}

/** (mask low, mask high, 0 nothing 1 sealed 2 open + 4 * part, base in elements of its buffer) of a block. */
fn block_info(tile: Tile, kv_head: u32, block: u32) -> vec4u {
  if (block >= tile.block_end) { return vec4u(0u); }
  var mask = vec2u(0xffffffffu);
  if (tile.masks_at != 0xffffffffu) {
    let at = tile.masks_at + kv_head * tile.head_masks + block * 2u;
    mask = vec2u(scratch[at], scratch[at + 1u]);
  }
  if ((mask.x | mask.y) == 0u) { return vec4u(0u); }
  if (block == tile.block_end - 1u) {
    return vec4u(mask, 2u, tile.open_slot * p.kv_head_count * 128u * FOURS);
  }
  let id = tables[tile.block_ids_at + p.layer * tile.block_ids_stride + block];
  if (id == 0xffffffffu) { return vec4u(0u); }
  return vec4u(mask, 1u + 4u * (id / p.blocks_per_part), (id % p.blocks_per_part) * p.block_words${int8 ? "" : " / 4u"});
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let at = p.tiles_at + wg.y * ${TILE_WORDS}u;
  let tile = Tile(tables[at], tables[at + 1u], tables[at + 2u], tables[at + 3u], tables[at + 4u],
    tables[at + 5u], tables[at + 6u], tables[at + 7u], tables[at + 8u], tables[at + 9u]);
  let kv_head = wg.z / p.head_chunks;
  let group = p.head_count / p.kv_head_count;
  let head_first = kv_head * group + (wg.z % p.head_chunks) * HEADS;
  let head_end = (kv_head + 1u) * group;
  let tile_splits = (tile.block_end + 7u) / 8u;
  var split_first = 0u;
  var split_end = tile_splits;
  if (p.is_split != 0u) {
    split_first = wg.x;
    split_end = min(wg.x + 1u, tile_splits);
  }
  let four = lid % FOURS;
  let token_group = lid / FOURS;
  let my_query = lid / LANES;
  let my_lane = lid % LANES;
  let my_row = my_query / HEADS;
  let my_head = head_first + my_query % HEADS;
  let is_mine = my_row < tile.row_count && my_head < head_end;
  var total: array<vec4f, QUERIES>;
  for (var j = 0u; j < QUERIES; j++) { total[j] = vec4f(0.0); }
  if (lid < QUERIES) {
    total_max[lid] = ${NONE};
    total_sum[lid] = 0.0;
  }

  for (var split = split_first; split < split_end; split++) {
    if (lid < 8u) { infos[lid] = block_info(tile, kv_head, split * 8u + lid); }
    if (lid < QUERIES) {
      split_max[lid] = ${NONE};
      split_sum[lid] = 0.0;
    }
    let blocks = workgroupUniformLoad(&infos);
    var acc: array<vec4f, QUERIES>;
    for (var j = 0u; j < QUERIES; j++) { acc[j] = vec4f(0.0); }
    var any = false;
    for (var index = 0u; index < 8u; index++) {
      let info = blocks[index];
      if (info.z == 0u) { continue; }
      any = true;
      let is_sealed = (info.z & 3u) == 1u;
      let part = info.z >> 2u;
      let base = info.w;
      let last_token = select(tile.position % 64u + tile.row_count - 1u, 63u, is_sealed);
      for (var i = lid; i < QUERIES * FOURS; i += 64u) {
        let j = i / FOURS;
        let head = head_first + j % HEADS;
        var four = vec4f(0.0);
        if (j / HEADS < tile.row_count && head < head_end) {
          four = q[((tile.first_row + j / HEADS) * p.head_count + head) * FOURS + i % FOURS];
        }
${int8 ? SCALE_QUERY_INT8 : ""}
        query[i] = four;
      }
      workgroupBarrier();

      let token = lid;
      let is_chosen = ((select(info.x, info.y, token >= 32u) >> (token & 31u)) & 1u) == 1u;
      var dots: array<f32, QUERIES>;
      for (var j = 0u; j < QUERIES; j++) { dots[j] = 0.0; }
      if (is_chosen && token <= last_token) {
${int8 ? keysInt8(headDim) : KEYS_F32}
      }
      for (var j = 0u; j < QUERIES; j++) {
        let sees = is_chosen && (is_sealed || token <= tile.position % 64u + j / HEADS);
        weights[j * 64u + token] = select(${NONE}, dots[j] * p.scale, sees);
      }
      workgroupBarrier();

      var block_max = ${NONE};
      for (var part = 0u; part < PARTS; part++) {
        for (var i = 0u; i < 4u; i++) { block_max = max(block_max, weights[my_query * 64u + (part * LANES + my_lane) * 4u + i]); }
      }
${withinQuery(lane).max}
      var parts: array<f32, PARTS>;
      for (var part = 0u; part < PARTS; part++) {
        var sum = 0.0;
        for (var i = 0u; i < 4u; i++) {
          let at = my_query * 64u + (part * LANES + my_lane) * 4u + i;
          let score = weights[at];
          let weight = select(0.0, exp(score - block_max), score > ${NONE} && is_mine);
          weights[at] = weight;
          sum += weight;
        }
        parts[part] = sum;
      }
      var block_sum = 0.0;
${withinQuery(lane).sum}
      if (my_lane == 0u) {
        let before = split_max[my_query];
        let now = max(before, block_max);
        let kept = exp(before - now);
        let added = exp(block_max - now);
        if (block_sum > 0.0) {
          keep[my_query] = kept;
          add[my_query] = added;
          split_max[my_query] = now;
          split_sum[my_query] = fma(split_sum[my_query], kept, block_sum * added);
        } else {
          keep[my_query] = 1.0;
          add[my_query] = 0.0;
        }
      }
      workgroupBarrier();

      var sums: array<vec4f, QUERIES>;
      for (var j = 0u; j < QUERIES; j++) { sums[j] = vec4f(0.0); }
      let token_first = token_group * TOKENS_PER_GROUP;
      let token_end = select(0u, min(last_token + 1u, token_first + TOKENS_PER_GROUP), token_group < TOKEN_GROUPS);
      for (var token = token_first; token < token_end; token++) {
        if (((select(info.x, info.y, token >= 32u) >> (token & 31u)) & 1u) == 0u) { continue; }
        var value: vec4f;
${int8 ? VALUES_INT8 : VALUES_F32}
        for (var j = 0u; j < QUERIES; j++) { sums[j] = fma(vec4f(weights[j * 64u + token]), value, sums[j]); }
      }
      for (var j = 0u; j < QUERIES; j++) { acc[j] = fma(acc[j], vec4f(keep[j]), sums[j] * add[j]); }
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
          if (split_sum[j] > 0.0) {
            for (var i = 0u; i < 4u; i++) { scratch[to_at + 4u + lid * 4u + i] = bitcast<u32>(output[i]); }
          }
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
}

/**
 * Merges the splits of every row of a tile, ascending; empty ones change nothing.
 *
 * scratch: what {@link attend} left; tables: tiles; out vec4f [rows, headCount, headDim / 4]. One work group a (tile, row, head): grid
 * [tiles, rows of a tile, headCount].
 */
export function mergeSplits(headDim: number): Kernel {
  return {
    name: `merge_splits_${headDim}`,
    params: { head_count: "u32", tiles_at: "u32", partials_at: "u32", split_count: "u32" },
    bindings: { scratch: read("u32"), tables: read("u32"), out: write("vec4f") },
    code: /* wgsl */ `
const HEAD_DIM = ${headDim}u;
const FOURS = ${headDim / 4}u;
@compute @workgroup_size(${Math.max(4, headDim / 4)})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let tile = p.tiles_at + wg.x * ${TILE_WORDS}u;
  if (wg.y >= tables[tile + 1u] || lid >= FOURS) { return; }
  let splits = (tables[tile + 8u] + 7u) / 8u;
  let query = (tables[tile] + wg.y) * p.head_count + wg.z;
  var total = vec4f(0.0);
  var total_max = ${NONE};
  var total_sum = 0.0;
  for (var split = 0u; split < splits; split++) {
    let at = p.partials_at + (query * p.split_count + split) * (HEAD_DIM + 4u);
    let split_max = bitcast<f32>(scratch[at]);
    let split_sum = bitcast<f32>(scratch[at + 1u]);
    if (split_sum <= 0.0) { continue; }
    let now = max(total_max, split_max);
    let keep = exp(total_max - now);
    let add = exp(split_max - now);
    total_max = now;
    total_sum = fma(total_sum, keep, split_sum * add);
    let from_at = at + 4u + lid * 4u;
    let output = bitcast<vec4f>(vec4u(scratch[from_at], scratch[from_at + 1u], scratch[from_at + 2u], scratch[from_at + 3u]));
    total = fma(total, vec4f(keep), output * add);
  }
  out[query * FOURS + lid] = select(vec4f(0.0), total / total_sum, total_sum > 0.0);
}
`,
  };
}
