/** Scores of pages where a head has whole runs of 16 channels, as those of models have. */
import type { SummaryKind } from "../../contract.ts";
import { type Kernel, read, variants, write } from "../kernel.ts";
import { ROUNDED } from "./exact-math.ts";
import {
  formOf,
  IS_PASSED_OVER,
  KEYS_OF_SCORES,
  PAGE_SCORE,
  QUERIES_OF_GROUP,
  SCORE_HEADS,
  SCORE_PARAMS,
  type ScoreResult,
} from "./score.ts";
import { UNIT, UNIT_FIELDS, UNSCORED } from "./unit.ts";

/** Loads of 16 bytes that a thread has on their way at once; what has come of them is added up before the next. */
const AHEAD = 8;
/** How often a work group does that. */
const ROUNDS = 2;

/** How the pages of a work group are dealt to its 64 threads. */
function dealt(headDim: number): { vectors: number; pagesAtOnce: number; roundPages: number } {
  const vectors = headDim / 8;
  const pagesAtOnce = Math.floor(64 / vectors);
  return { vectors, pagesAtOnce, roundPages: pagesAtOnce * AHEAD };
}

/** Whether there is a kernel for such summaries and heads. */
export function scoresWide(kind: SummaryKind, headDim: number): boolean {
  const form = formOf(kind);
  return headDim % 16 === 0 && (form === "bounds" || form === "keys");
}

/** Pages of one work group. */
export function pagesOfGroup(headDim: number): number {
  return dealt(headDim).roundPages * ROUNDS;
}

/** What a work group of {@link scorePagesWide} makes: see `ScoreResult`; the keys of units that have several chunks of queries take a loop over these. */
export type WideResult = ScoreResult | "keys of chunks";

const SUFFIX: Record<WideResult, string> = { raw: "", keys: "_keys", "keys of chunks": "_keys_of_chunks" };

/**
 * Scores of pages as `scorePages` gives them, to the bit. A thread has one run of 16 channels of one of a page's two vectors, of many pages: summaries
 * are read 16 bytes a thread without a gap, and its part of the queries stays in registers. Dots of int8 are exact, so their order does not matter.
 *
 * Keys instead of raw scores, of units of one row and one KV head whose largest score counts: a page's scores meet in work group memory, which takes no
 * barrier more, and 4 bytes a page leave it in place of 4 a query. `COMBINE`, a dispatch that reads them again, is not needed. Of several chunks of
 * queries (more than SCORE_HEADS heads a KV head) the work group keeps the summaries and takes one chunk's codes after the other: half as many work groups
 * for two chunks, which have as many different bytes on their way, and summaries are read once and not once a chunk.
 *
 * summaries vec4u, one kind of one layer (pool.ts); scratch: codes and scales of `QUANTIZE_QUERIES`, flags of blocks, raw f32 [query][raw_stride] of
 * every unit, or keys of its ranking. Grid [ceil(pages / pagesOfGroup), chunks of queries (keys: 1), units]. 9 KiB of work group memory. Reference: score.ts.
 */
export const scorePagesWide = variants((kind: SummaryKind, headDim: number, result: WideResult = "raw"): Kernel => {
  const form = formOf(kind);
  const { vectors, pagesAtOnce, roundPages } = dealt(headDim);
  const each = (text: (n: number) => string): string => Array.from({ length: AHEAD }, (_, n) => text(n)).join("\n");
  const hasChunks = result === "keys of chunks";
  const codes = /* wgsl */ `
  var highs: array<vec4u, HEADS>;
  var lows: array<vec4u, HEADS>;
  for (var j = 0u; j < HEADS; j++) {
    // Four words of codes for four channels: those of absolute values behind the others.
    let code_at = p.codes_at + (query + min(j, queries.count - 1u)) * ${headDim}u + vector % ${vectors / 2}u * 16u
      + ${form === "bounds" ? `select(0u, 2u, vector >= ${vectors / 2}u)` : "0u"};
    for (var i = 0u; i < 4u; i++) {
      highs[j][i] = scratch[code_at + i * 4u];
      lows[j][i] = scratch[code_at + i * 4u + 1u];
    }
  }`;
  const chunks = /* wgsl */ `
    for (var chunk = 0u; chunk < chunks_of_kv_head(); chunk++) {
    let queries = queries_of(unit, chunk);
    let query = (unit.first_row + queries.row) * p.head_count + queries.head_first;
${codes}`;
  const store =
    result === "raw"
      ? "scratch[unit.raw_at + (queries.query_first + j) * unit.raw_stride + candidate] = score;"
      : `if (at != 0xffffffffu) { atomicMax(&keys[round * ROUND_PAGES + out % ROUND_PAGES], score_key(score ^ p.zero)); }`;
  return {
    name: `score_pages_${form}_${headDim}${SUFFIX[result]}`,
    params: SCORE_PARAMS,
    bindings: { summaries: read("vec4u"), tables: read("u32"), scratch: write("u32") },
    code: () => /* wgsl */ `
${ROUNDED}
${UNIT}
${QUERIES_OF_GROUP}
${IS_PASSED_OVER}
${PAGE_SCORE}
${KEYS_OF_SCORES}
const HEADS = ${SCORE_HEADS}u;
const VECTORS = ${vectors}u;
const AT_ONCE = ${pagesAtOnce}u;
const ROUND_PAGES = ${roundPages}u;
const PAGES = ${roundPages * ROUNDS}u;
var<workgroup> partials: array<i32, ${vectors * SCORE_HEADS * (roundPages + 1)}>;
${result === "raw" ? "" : "/** The best score's key of every page; 0: not scored. */\nvar<workgroup> keys: array<atomic<u32>, PAGES>;"}
/** Where the summaries of a page begin, in units of 16 bytes; 0xffffffff: the page is none of those to be scored. */
fn page_at(unit: Unit, candidate: u32, kv_head: u32) -> u32 {
  if (candidate >= unit.page_count) { return 0xffffffffu; }
  let page = unit.page_first + candidate;
  if (is_passed_over(unit, page / 4u)) { return 0xffffffffu; }
  let slot = tables[unit.summary_slots_at + page / 4u];
  return (slot * p.kv_head_count + kv_head) * ${(headDim * 2 + 8) / 4}u + page % 4u * VECTORS;
}
/** Of a thread that has a part in the page. */
fn load(unit: Unit, candidate: u32, kv_head: u32, lid: u32) -> vec4u {
  if (lid / VECTORS >= AT_ONCE) { return vec4u(0u); }
  let at = page_at(unit, candidate, kv_head);
  if (at == 0xffffffffu) { return vec4u(0u); }
  return summaries[at + lid % VECTORS];
}
fn dot16(a: vec4u, b: vec4u) -> i32 {
  return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let unit = load_unit(p.units_at + wg.z * ${UNIT_FIELDS.length}u);
  let queries = queries_of(unit, wg.y);
  let first = wg.x * PAGES;
  if (queries.row >= unit.row_count || first >= unit.page_count) { return; }
  let vector = lid % VECTORS;
  let mine = lid / VECTORS;
  let query = (unit.first_row + queries.row) * p.head_count + queries.head_first;
${hasChunks ? "" : codes}
  for (var round = 0u; round < ${ROUNDS}u; round++) {
    let round_first = first + round * ROUND_PAGES;
${each((n) => `    let words${n} = load(unit, round_first + ${n}u * AT_ONCE + mine, queries.kv_head, lid);`)}
${hasChunks ? chunks : "    {"}
    if (mine < AT_ONCE) {
${each(
  (n) => `      {
        let sum = 128 * dot16(words${n}, vec4u(0x01010101u));
        for (var j = 0u; j < HEADS; j++) {
          partials[(vector * HEADS + j) * (ROUND_PAGES + 1u) + ${n}u * AT_ONCE + mine] = 256 * dot16(words${n}, highs[j]) + dot16(words${n}, lows[j]) + sum;
        }
      }`,
)}
    }
    workgroupBarrier();
    for (var out = lid; out < ROUND_PAGES * queries.count; out += 64u) {
      let j = out / ROUND_PAGES;
      let candidate = round_first + out % ROUND_PAGES;
      if (candidate >= unit.page_count) { continue; }
      var score = ${UNSCORED};
      let at = page_at(unit, candidate, queries.kv_head);
      if (at != 0xffffffffu) {
        var dots = vec2i(0);
        for (var v = 0u; v < VECTORS / 2u; v++) {
          dots.x += partials[(v * HEADS + j) * (ROUND_PAGES + 1u) + out % ROUND_PAGES];
          dots.y += partials[((v + VECTORS / 2u) * HEADS + j) * (ROUND_PAGES + 1u) + out % ROUND_PAGES];
        }
        let page = (unit.page_first + candidate) % 4u;
        let scales = summaries[at + (4u - page) * VECTORS + page / 2u];
        let pair = bitcast<vec2f>(select(scales.xy, scales.zw, page % 2u == 1u));
        let query_scale = bitcast<f32>(scratch[p.scales_at + query + j]);
        score = bitcast<u32>(page_score(query_scale, dots, pair, bitcast<f32>(unit.radius_weight)));
      }
      ${store}
    }
    workgroupBarrier();
    }
  }
${result === "raw" ? "" : KEYS_OUT}
}
`,
  };
});

const KEYS_OUT = /* wgsl */ `
  for (var i = lid; i < min(PAGES, unit.page_count - first); i += 64u) {
    scratch[keys_at(unit) + first + i] = key_of_best(atomicLoad(&keys[i]));
  }`;
