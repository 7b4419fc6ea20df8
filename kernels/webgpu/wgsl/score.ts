/** Scores of selection: queries in 16 bits, raw scores of pages and of tokens. */
import type { KvEncoding, SummaryKind } from "../../contract.ts";
import { type Kernel, read, variants, write } from "../kernel.ts";
import { EXACT_DIVIDE, ROUNDED, SIGNED_BYTES, SORTABLE } from "./exact-math.ts";
import { laneParam, laneWidth, maxOf } from "./reduce.ts";
import { residualMatches, SIGN_WORD } from "./residual-signs.ts";
import { RANKING_FIELDS, UNIT, UNIT_FIELDS, UNSCORED } from "./unit.ts";

/** Query heads of one KV head that a work group scores at once. */
export const SCORE_HEADS = 4;

/** `query_code(x, scale)`: 16 bits; `store_query_codes(at, codes)`: of four channels, in scratch. See {@link QUANTIZE_QUERIES}. */
export const QUERY_CODES = /* wgsl */ `
fn query_code(x: f32, scale: f32) -> i32 {
  if (scale == 0.0) { return 0; }
  return i32(clamp(round(divide(x, scale)), -32767.0, 32767.0));
}
fn store_codes(at: u32, codes: vec4i) {
  scratch[at] = pack_bytes(codes >> vec4u(8u));
  scratch[at + 1u] = pack_bytes((codes & vec4i(255)) - vec4i(128));
}
fn store_query_codes(at: u32, codes: vec4i) {
  store_codes(at, codes);
  store_codes(at + 2u, abs(codes));
}
`;

/**
 * Queries as page scores take them: see `PageScorer`. A code is 256 high + low + 128, high and low int8, so that integer dot products of bytes give the
 * exact one. For queries that `appendQueries` did not quantize. One work group a query: grid [headCount, rows].
 *
 * q f32 [queries, headDim]; scratch from codes_at: of every query and four channels a word of highs, one of lows, and the same of the codes' absolute
 * values; from scales_at: f32 [queries].
 */
export const QUANTIZE_QUERIES: Kernel = {
  name: "quantize_queries",
  params: { head_dim: "u32", codes_at: "u32", scales_at: "u32" },
  bindings: { q: read("f32"), scratch: write("u32") },
  code: (lane) => /* wgsl */ `
${EXACT_DIVIDE}
${SIGNED_BYTES}
${laneWidth(lane)}${maxOf(lane, 64, "f32")}
${QUERY_CODES}
@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lid: u32${laneParam(lane)}
) {
  let query = wg.y * groups.x + wg.x;
  let first = query * p.head_dim;
  var mine = 0.0;
  for (var i = lid; i < p.head_dim; i += 64u) { mine = max(mine, abs(q[first + i])); }
  let scale = divide(max_of(mine, lid, lane_width), 32767.0);
  if (lid == 0u) { scratch[p.scales_at + query] = bitcast<u32>(scale); }
  for (var four = lid; four < p.head_dim / 4u; four += 64u) {
    var codes = vec4i(0);
    for (var i = 0u; i < 4u; i++) { codes[i] = query_code(q[first + four * 4u + i], scale); }
    store_query_codes(p.codes_at + first + four * 4u, codes);
  }
}
`,
};

/** A work group's queries: a row and up to SCORE_HEADS heads of one KV head. */
export const QUERIES_OF_GROUP = /* wgsl */ `
struct Queries { row: u32, kv_head: u32, head_first: u32, count: u32, query_first: u32 }
fn queries_of(unit: Unit, chunk: u32) -> Queries {
  let group = p.head_count / p.kv_head_count;
  let chunks = (group + ${SCORE_HEADS - 1}u) / ${SCORE_HEADS}u;
  let row = chunk / (unit.kv_count * chunks);
  let rest = chunk % (unit.kv_count * chunks);
  let kv_head = unit.kv_first + rest / chunks;
  let head_first = kv_head * group + rest % chunks * ${SCORE_HEADS}u;
  let count = min(${SCORE_HEADS}u, (kv_head + 1u) * group - head_first);
  return Queries(row, kv_head, head_first, count, row * unit.kv_count * group + head_first - unit.kv_first * group);
}
`;

/** What a thread does for a page (or block) and SCORE_HEADS queries; `store` is done with the `score` of the j-th. */
type BodyOf = (store: string) => string;

/** Dots of SCORE_HEADS queries with the two vectors of a page's summary. `second`: what the second one meets. */
const pageDots =
  (second: "code" | "abs(code)"): BodyOf =>
  (store) =>
    /* wgsl */ `
  var first_dots: array<i32, ${SCORE_HEADS}>;
  var second_dots: array<i32, ${SCORE_HEADS}>;
  // What is declared in a loop should be zero in every round; on SwiftShader an array keeps what it had.
  for (var j = 0u; j < ${SCORE_HEADS}u; j++) { first_dots[j] = 0; second_dots[j] = 0; }
  for (var i = 0u; i < fours; i++) {
    let first = signed_codes(summaries[page_at + i]);
    let second = signed_codes(summaries[page_at + fours + i]);
    for (var j = 0u; j < ${SCORE_HEADS}u; j++) {
      let code = codes4(codes_at + min(j, queries.count - 1u) * p.head_dim + i * 4u);
      first_dots[j] += dot(code, first);
      second_dots[j] += dot(${second}, second);
    }
  }
  let first_scale = bitcast<f32>(summaries[scales_at]);
  let second_scale = bitcast<f32>(summaries[scales_at + 1u]);
  for (var j = 0u; j < queries.count; j++) {
    let query_scale = bitcast<f32>(scratch[p.scales_at + query + j]);
    let weight = bitcast<f32>(unit.radius_weight);
    let score = page_score(query_scale, vec2i(first_dots[j], second_dots[j]), vec2f(first_scale, second_scale), weight);
    ${store}
  }`;

/** Dots of SCORE_HEADS queries with a block's centre. */
const centreDots: BodyOf = (store) => /* wgsl */ `
  var dots: array<i32, ${SCORE_HEADS}>;
  for (var j = 0u; j < ${SCORE_HEADS}u; j++) { dots[j] = 0; }
  for (var i = 0u; i < fours; i++) {
    let centre = signed_codes(centres[head_at + i]);
    for (var j = 0u; j < ${SCORE_HEADS}u; j++) {
      dots[j] += dot(codes4(codes_at + min(j, queries.count - 1u) * p.head_dim + i * 4u), centre);
    }
  }
  let scale = bitcast<f32>(centres[head_at + fours]);
  for (var j = 0u; j < queries.count; j++) {
    let query_scale = bitcast<f32>(scratch[p.scales_at + query + j]);
    let score = rounded(rounded(query_scale * scale) * f32(dots[j]));
    ${store}
  }`;

/** Signs of eight channels lie in a byte of each token; four tokens are counted at a time, two of them in each half of a pair of words. */
const signMatches: BodyOf = (store) => /* wgsl */ `
  let scale = bitcast<f32>(summaries[scales_at]);
  for (var j = 0u; j < queries.count; j++) {
    var least = 255u;
    for (var w = 0u; w < 4u; w++) {
      var even = 0u;
      var odd = 0u;
      for (var chunk = 0u; chunk < p.head_dim / 8u; chunk++) {
        let at = codes_at + j * p.head_dim + chunk * 8u;
        let low = (vec4u(codes4(at)) >> vec4u(31u)) << vec4u(0u, 1u, 2u, 3u);
        let high = (vec4u(codes4(at + 4u)) >> vec4u(31u)) << vec4u(4u, 5u, 6u, 7u);
        let signs = low | high;
        let byte = signs.x | signs.y | signs.z | signs.w;
        let counts = byte_counts(summaries[page_at + chunk * 4u + w] ^ (byte * 0x01010101u));
        even += counts & 0x00ff00ffu;
        odd += (counts >> 8u) & 0x00ff00ffu;
      }
      least = min(least, min(min(even & 0xffffu, even >> 16u), min(odd & 0xffffu, odd >> 16u)));
    }
    let score = rounded(scale * f32(i32(p.head_dim) - i32(least)));
    ${store}
  }`;

/** How a kind's summaries are scored; kinds of one form share a kernel. */
export function formOf(kind: SummaryKind): keyof typeof SCORE_OF_FORM {
  if (kind === "sign-bits") return "signs";
  if (kind === "residual-signs") return "residuals";
  return kind === "representatives" ? "keys" : "bounds";
}

const SCORE_OF_FORM = {
  signs: signMatches,
  residuals: residualMatches(SCORE_HEADS),
  keys: pageDots("code"),
  bounds: pageDots("abs(code)"),
} as const;

/** Parameters of what scores pages or blocks. */
export const SCORE_PARAMS: Kernel["params"] = {
  ...{ head_count: "u32", kv_head_count: "u32", head_dim: "u32", units_at: "u32" },
  ...{ codes_at: "u32", scales_at: "u32" },
};

const CODES4 = /* wgsl */ `
fn codes4(at: u32) -> vec4i {
  return signed_codes(scratch[at]) * 256 + signed_codes(scratch[at + 1u]) + vec4i(128);
}`;

/** What becomes of scores: a raw score for every query, or at once the key that `COMBINE` would make of a page's. */
export type ScoreResult = "raw" | "keys";

/**
 * Keys of candidates of which one thread or work group knows the scores of all queries, and the largest counts: `score_key(bits)` of each, the largest
 * of these, and `key_of_best` of that. A score that is no number is above all others and makes the key that of -Infinity. `keys_at(unit)`: where keys go.
 */
export const KEYS_OF_SCORES = /* wgsl */ `
${SORTABLE}
fn keys_at(unit: Unit) -> u32 { return tables[unit.ranking_at + ${RANKING_FIELDS.indexOf("keys_at")}u]; }
fn score_key(bits: u32) -> u32 {
  if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0xffffffffu; }
  return sortable(bitcast<f32>(bits));
}
fn key_of_best(best: u32) -> u32 { return select(best, 0x007fffffu, best == 0xffffffffu); }
fn chunks_of_kv_head() -> u32 { return (p.head_count / p.kv_head_count + ${SCORE_HEADS - 1}u) / ${SCORE_HEADS}u; }
`;

/** A score's place, or its part in the best of the candidate; `rounded` hides from the compiler how the bits came about. */
function storeOf(result: ScoreResult, stride: string): string {
  if (result === "keys") return "best_key = max(best_key, score_key(bitcast<u32>(rounded(score))));";
  return `scratch[raw_at + j * ${stride}] = bitcast<u32>(score);`;
}

/** A loop over the chunks of queries of a KV head around `body`, in place of a work group each, and the candidate's key behind it. */
function allChunks(result: ScoreResult, body: string): string {
  if (result === "raw") return body;
  return /* wgsl */ `
  var best_key = 0u;
  for (var chunk = 0u; chunk < chunks_of_kv_head(); chunk++) {
  let queries = queries_of(unit, chunk);
  let query = (unit.first_row + queries.row) * p.head_count + queries.head_first;
  let codes_at = p.codes_at + query * p.head_dim;
${body}
  }
  scratch[keys_at(unit) + candidate] = key_of_best(best_key);`;
}

/** Whether a coarse pass left a block out. */
export const IS_PASSED_OVER = /* wgsl */ `
fn is_passed_over(unit: Unit, block: u32) -> bool {
  if (unit.block_flags_at == 0xffffffffu || block < unit.block_first || block >= unit.block_first + unit.block_count) {
    return false;
  }
  return scratch[unit.block_flags_at + block - unit.block_first] == 0u;
}`;

/** `page_score(query_scale, dots, scales, weight)`: each operation rounded. */
export const PAGE_SCORE = /* wgsl */ `
fn page_score(query_scale: f32, dots: vec2i, scales: vec2f, weight: f32) -> f32 {
  let first_part = rounded(rounded(query_scale * scales.x) * f32(dots.x));
  let reach = rounded(rounded(query_scale * scales.y) * weight);
  return first_part + rounded(reach * f32(dots.y));
}`;

/**
 * Scores of pages of any head, and by sign bits and residual signs (codes and scales of `turnQueries`, too); `scorePagesWide` is for heads of whole 16
 * channels. To the bit of `PageScorer`: integers, then each operation rounded. Pages of blocks that did not stay get UNSCORED.
 *
 * summaries u32, one kind of one layer (pool.ts); scratch: codes and scales of {@link QUANTIZE_QUERIES}, flags of blocks, raw f32
 * [query][raw_stride] of every unit, queries ascending by (row, head). One thread a page, for a row and SCORE_HEADS heads: grid
 * [ceil(pages / 64), chunks of queries, units]. `keys`: units of one row and one KV head whose largest score counts get the keys of `COMBINE` instead,
 * one thread a page for all heads: grid [ceil(pages / 64), 1, units]. Reference: score.ts.
 */
export const scorePages = variants((kind: SummaryKind, result: ScoreResult = "raw"): Kernel => {
  const form = formOf(kind);
  return {
    name: `score_pages_${form}${result === "keys" ? "_keys" : ""}`,
    params: form === "residuals" ? { ...SCORE_PARAMS, turned_at: "u32" } : SCORE_PARAMS,
    bindings: { summaries: read("u32"), tables: read("u32"), scratch: write("u32") },
    code: () => /* wgsl */ `
${SIGNED_BYTES}
${ROUNDED}
${UNIT}
${QUERIES_OF_GROUP}
${CODES4}
${IS_PASSED_OVER}
${PAGE_SCORE}
${SIGN_WORD}
${KEYS_OF_SCORES}
fn byte_counts(word: u32) -> u32 {
  let pairs = word - ((word >> 1u) & 0x55555555u);
  let fours = (pairs & 0x33333333u) + ((pairs >> 2u) & 0x33333333u);
  return (fours + (fours >> 4u)) & 0x0f0f0f0fu;
}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let unit = load_unit(p.units_at + wg.z * ${UNIT_FIELDS.length}u);
  let queries = queries_of(unit, wg.y);
  if (queries.row >= unit.row_count || wg.x * 64u >= unit.page_count) { return; }
  let fours = p.head_dim / 4u;
  let query = (unit.first_row + queries.row) * p.head_count + queries.head_first;
  let candidate = wg.x * 64u + lid;
  if (candidate >= unit.page_count) { return; }
  let page = unit.page_first + candidate;
  let raw_at = unit.raw_at + queries.query_first * unit.raw_stride + candidate;
  if (is_passed_over(unit, page / 4u)) {
    ${result === "keys" ? "scratch[keys_at(unit) + candidate] = 0u;" : `for (var j = 0u; j < queries.count; j++) { scratch[raw_at + j * unit.raw_stride] = ${UNSCORED}; }`}
    return;
  }
  let slot = tables[unit.summary_slots_at + page / 4u];
  let head_at = (slot * p.kv_head_count + queries.kv_head) * (p.head_dim * 2u + 8u);
  let page_at = head_at + page % 4u * fours * 2u;
  let scales_at = head_at + p.head_dim * 2u + page % 4u * 2u;
  let codes_at = p.codes_at + query * p.head_dim;
${allChunks(result, SCORE_OF_FORM[form](storeOf(result, "unit.raw_stride")))}
}
`,
  };
});

/**
 * Scores of blocks by their centres, to the bit of `coarseFactor` in contract.ts.
 *
 * centres u32, one kind of one layer (pool.ts); scratch as for {@link scorePages}, raw f32 [query][block_count] of every unit. One thread a block,
 * for a row and SCORE_HEADS heads: grid [ceil(blocks / 64), chunks of queries, units]. `keys` likewise. Reference: score.ts.
 */
export const scoreBlocks = variants((result: ScoreResult = "raw"): Kernel => {
  return {
    name: `score_blocks${result === "keys" ? "_keys" : ""}`,
    params: SCORE_PARAMS,
    bindings: { centres: read("u32"), tables: read("u32"), scratch: write("u32") },
    code: () => /* wgsl */ `
${SIGNED_BYTES}
${ROUNDED}
${UNIT}
${QUERIES_OF_GROUP}
${CODES4}
${KEYS_OF_SCORES}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let unit = load_unit(p.units_at + wg.z * ${UNIT_FIELDS.length}u);
  let queries = queries_of(unit, wg.y);
  let candidate = wg.x * 64u + lid;
  if (queries.row >= unit.row_count || candidate >= unit.block_count) { return; }
  let fours = p.head_dim / 4u;
  let query = (unit.first_row + queries.row) * p.head_count + queries.head_first;
  let slot = tables[unit.summary_slots_at + unit.block_first + candidate];
  let head_at = (slot * p.kv_head_count + queries.kv_head) * (fours + 1u);
  let codes_at = p.codes_at + query * p.head_dim;
  let raw_at = unit.block_raw_at + queries.query_first * unit.block_count + candidate;
${allChunks(result, centreDots(storeOf(result, "unit.block_count")))}
}
`,
  };
});

/**
 * Raw scores q.k of the tokens of kept pages, against the decoded keys, in f32.
 *
 * q vec4f; blocks0.. the parts of the pool as words; scratch: list of kept pages (unit.ts), raw f32 [query][token_raw_stride]. One thread a
 * token: grid [ceil(most tokens / 64), chunks of queries, units].
 */
export const scoreTokens = variants((encoding: KvEncoding, partCount: number): Kernel => {
  const parts = Array.from({ length: partCount }, (_, part) => [`blocks${part}`, read("u32")] as const);
  const cases = parts.map(([name], part) => `case ${part}u: { return ${name}[at]; }`).join("\n    ");
  const key =
    encoding === "f32"
      ? "bitcast<vec4f>(vec4u(word(part, at + i * 4u), word(part, at + i * 4u + 1u), word(part, at + i * 4u + 2u), word(part, at + i * 4u + 3u)))"
      : "signed_bytes(word(part, at + i)) * scales";
  return {
    name: `score_tokens_${encoding}_${partCount}`,
    params: {
      ...{ layer: "u32", head_count: "u32", kv_head_count: "u32", head_dim: "u32", units_at: "u32" },
      ...{ block_words: "u32", blocks_per_part: "u32" },
    },
    bindings: { q: read("vec4f"), tables: read("u32"), scratch: write("u32"), ...Object.fromEntries(parts) },
    code: /* wgsl */ `
${SIGNED_BYTES}
${UNIT}
${QUERIES_OF_GROUP}
fn word(part: u32, at: u32) -> u32 {
  switch (part) {
    ${cases}
    default: { return 0u; }
  }
}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let unit = load_unit(p.units_at + wg.z * ${UNIT_FIELDS.length}u);
  let queries = queries_of(unit, wg.y);
  let candidate = wg.x * 64u + lid;
  if (queries.row >= unit.row_count || candidate >= scratch[unit.list_count_at] * 16u) { return; }
  let fours = p.head_dim / 4u;
  let page = scratch[unit.list_at + candidate / 16u];
  let token = page % 4u * 16u + candidate % 16u;
  let id = tables[unit.block_ids_at + p.layer * unit.block_ids_stride + page / 4u];
  let part = id / p.blocks_per_part;
  let block_at = id % p.blocks_per_part * p.block_words;
  let at = block_at + (queries.kv_head * 64u + token) * ${encoding === "f32" ? "p.head_dim" : "fours"};
  let query = (unit.first_row + queries.row) * p.head_count + queries.head_first;
  var dots: array<f32, ${SCORE_HEADS}>;
  for (var i = 0u; i < fours; i++) {
${
  encoding === "f32"
    ? ""
    : `    let scales_at = block_at + (p.kv_head_count * 16u + queries.kv_head) * p.head_dim + i * 4u;
    let scales = bitcast<vec4f>(vec4u(word(part, scales_at), word(part, scales_at + 1u), word(part, scales_at + 2u), word(part, scales_at + 3u)));`
}
    let key = ${key};
    for (var j = 0u; j < queries.count; j++) {
      let x = q[(query + j) * fours + i];
      dots[j] = fma(key.w, x.w, fma(key.z, x.z, fma(key.y, x.y, fma(key.x, x.x, dots[j]))));
    }
  }
  for (var j = 0u; j < queries.count; j++) {
    scratch[unit.token_raw_at + (queries.query_first + j) * unit.token_raw_stride + candidate] = bitcast<u32>(dots[j]);
  }
}
`,
  };
});
