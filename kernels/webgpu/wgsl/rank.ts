/** Ranking of candidates: one score per candidate from those of several queries, and the best of them. */
import { type Kernel, type Lane, read, write } from "../kernel.ts";
import { FLOAT_BITS, SORTABLE } from "./exact-math.ts";
import { bestOf, laneParam, laneWidth, maxOf, sumBefore, sumOf } from "./reduce.ts";
import { RANKING, RANKING_FIELDS, RANKING_SIZE, UNSCORED } from "./unit.ts";

/** Threads of a work group that ranks. */
const THREADS = 256;
/** Words of a thread that are on their way at once: one work group has them all to go through, and waits for memory. */
const AHEAD = 8;
/** For every `i` below `size` of a thread and its `word` in scratch from `at` on, ascending, in loops that read AHEAD words at a time. */
const eachWord = (at: string, threads: number, text: string): string => /* wgsl */ `
    for (var from_i = lid; from_i < size; from_i += ${threads * AHEAD}u) {
${aheadLines((n) => `      let word${n} = scratch[${at} + min(from_i + ${n * threads}u, size - 1u)];`)}
${aheadLines((n) => `      if (from_i + ${n * threads}u < size) { let i = from_i + ${n * threads}u; let word = word${n}; ${text} }`)}
    }`;
/** For every candidate `i` of a thread of a ranking and its `key`. */
const eachKey = (text: string): string => eachWord("ranking.keys_at", THREADS, `let key = word; ${text}`);

function aheadLines(line: (n: number) => string): string {
  return Array.from({ length: AHEAD }, (_, n) => line(n)).join("\n");
}

/**
 * Softmax of one query's scores / sqrt(headDim): its maximum and 1 / sum, both for scaled scores; 0 for 1 / sum where every score is
 * -Infinity: no vote. One work group of 64 a query, eight scores a thread on their way at once: grid [most queries, rankings].
 *
 * tables: rankings (unit.ts); scratch: raw scores, stats.
 */
export const SCORE_STATS: Kernel = {
  name: "score_stats",
  params: { rankings_at: "u32", scale: "f32" },
  bindings: { tables: read("u32"), scratch: write("u32") },
  code: (lane) => /* wgsl */ `
${FLOAT_BITS}
${RANKING}
${RANKING_SIZE}
${laneWidth(lane)}${maxOf(lane, 64, "f32")}${sumOf(lane, 64)}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let ranking = load_ranking(p.rankings_at + wg.y * ${RANKING_FIELDS.length}u);
  if (wg.x >= ranking.query_count || ranking.rule == 0u) { return; }
  let size = ranking_size(ranking);
  let first = ranking.raw_at + wg.x * ranking.raw_stride;
  var largest = -3.4e38;
${eachWord("first", 64, "let score = bitcast<f32>(word); if (!is_nan(score)) { largest = max(largest, score * p.scale); }")}
  largest = max_of(largest, lid, lane_width);
  var mine = 0.0;
${eachWord("first", 64, `if (word != ${UNSCORED}) { mine += exp(bitcast<f32>(word) * p.scale - largest); }`)}
  let sum = sum_of(mine, lid, lane_width);
  if (lid == 0u) {
    scratch[ranking.stats_at + wg.x * 2u] = bitcast<u32>(largest);
    scratch[ranking.stats_at + wg.x * 2u + 1u] = bitcast<u32>(select(0.0, 1.0 / sum, sum > 0.0));
  }
}
`,
};

/**
 * One sortable key per candidate: the largest score, or the sum of the queries' softmaxes, queries ascending. A score that is not a number
 * makes the candidate's key that of -Infinity; what was not scored at all gets the least key, which no score has. Grid [ceil(most candidates / 64), rankings].
 */
export const COMBINE: Kernel = {
  name: "combine",
  params: { rankings_at: "u32", scale: "f32" },
  bindings: { tables: read("u32"), scratch: write("u32") },
  code: /* wgsl */ `
${FLOAT_BITS}
${SORTABLE}
${RANKING}
${RANKING_SIZE}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let ranking = load_ranking(p.rankings_at + id.y * ${RANKING_FIELDS.length}u);
  if (id.x >= ranking_size(ranking)) { return; }
  var best = 0u;
  var votes = 0.0;
  var broken = false;
  for (var query = 0u; query < ranking.query_count; query++) {
    let score = bitcast<f32>(scratch[ranking.raw_at + query * ranking.raw_stride + id.x]);
    if (is_nan(score)) { broken = true; }
    if (ranking.rule == 0u) {
      best = max(best, sortable(score));
    } else {
      let stats = ranking.stats_at + query * 2u;
      votes += exp(score * p.scale - bitcast<f32>(scratch[stats])) * bitcast<f32>(scratch[stats + 1u]);
    }
  }
  var key = select(best, sortable(votes), ranking.rule != 0u);
  if (broken) { key = 0x007fffffu; }
  if (scratch[ranking.raw_at + id.x] == ${UNSCORED}) { key = 0u; }
  scratch[ranking.keys_at + id.x] = key;
}
`,
};

/**
 * `best_of_ranking(ranking, size, lid, lane_width)`: the key of the last candidate that is among the best `take` (all, where there are no more); then
 * `found` has how many of that key are taken (y) and how many there are (z). Four passes over the keys, eight bits at a time. To be called by all of 256
 * threads. `flag_best` behind it: flags of all candidates, of equal ones those with the lower index, as `topIndices` has them.
 */
export const bestOfRanking = (lane: Lane): string => /* wgsl */ `
${laneWidth(lane)}${sumBefore(lane, THREADS, "u32")}
var<workgroup> counts: array<atomic<u32>, 256>;
/** Digit, how many keys with it are still to take, and how many there are. */
var<workgroup> found: vec3u;
fn best_of_ranking(ranking: Ranking, size: u32, lid: u32, width: u32) -> u32 {
  var prefix = 0u;
  var left = min(ranking.take, size);
  for (var pass_index = 0u; pass_index < 4u; pass_index++) {
    let shift = 24u - pass_index * 8u;
    atomicStore(&counts[lid], 0u);
    workgroupBarrier();
${eachKey("if (pass_index == 0u || (key >> (shift + 8u)) == prefix) { atomicAdd(&counts[(key >> shift) & 255u], 1u); }")}
    workgroupBarrier();
    let digit = 255u - lid;
    let count = atomicLoad(&counts[digit]);
    let above = sum_before(count, lid, width);
    if ((above < left || lid == 0u) && (above + count >= left || digit == 0u)) { found = vec3u(digit, left - above, count); }
    workgroupBarrier();
    prefix = (prefix << 8u) | found.x;
    left = found.y;
    workgroupBarrier();
  }
  return prefix;
}
fn flag_best(ranking: Ranking, size: u32, prefix: u32, lid: u32, width: u32) {
  // Nearly always all keys that equal the last one are taken, and nobody need count them.
  let last = workgroupUniformLoad(&found);
  if (last.y == last.z) {
${eachKey("scratch[ranking.flags_at + i] = select(0u, 1u, key >= prefix);")}
    return;
  }
  let run = (size + ${THREADS - 1}u) / ${THREADS}u;
  let first = min(size, lid * run);
  let end = min(size, first + run);
  var mine = 0u;
  for (var i = first; i < end; i++) { mine += select(0u, 1u, scratch[ranking.keys_at + i] == prefix); }
  var before = sum_before(mine, lid, width);
  for (var i = first; i < end; i++) {
    let key = scratch[ranking.keys_at + i];
    var taken = key > prefix;
    if (key == prefix) {
      taken = before < last.y;
      before += 1u;
    }
    scratch[ranking.flags_at + i] = select(0u, 1u, taken);
  }
}
`;

/**
 * Flags the best candidates of rankings without a share of the weight: see {@link bestOfRanking}. One work group of 256 a ranking: grid [rankings].
 * Where the flags of pages go straight into a list of blocks, `CHOOSE_BLOCKS` does both.
 */
export const TOP_K: Kernel = {
  name: "top_k",
  params: { rankings_at: "u32" },
  bindings: { tables: read("u32"), scratch: write("u32") },
  code: (lane) => /* wgsl */ `
${RANKING}
${RANKING_SIZE}
${bestOfRanking(lane)}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let ranking = load_ranking(p.rankings_at + wg.x * ${RANKING_FIELDS.length}u);
  if (ranking.mass_share != 0u) { return; }
  let size = ranking_size(ranking);
  let prefix = best_of_ranking(ranking, size, lid, lane_width);
  flag_best(ranking, size, prefix, lid, lane_width);
}
`,
};

/**
 * Flags as many of the best candidates, `take` at most, as have a share of the weight of all: see `massShare` of `SelectionPlan`. Sums in f32, so
 * a sum within rounding of the share may take one more or less than doubles would. One work group of 256 a ranking, one candidate at a time:
 * grid [rankings]; rankings without a share are left.
 */
export const TOP_MASS: Kernel = {
  name: "top_mass",
  params: { rankings_at: "u32", scale: "f32" },
  bindings: { tables: read("u32"), scratch: write("u32") },
  code: (lane) => /* wgsl */ `
${SORTABLE}
${RANKING}
${RANKING_SIZE}
${laneWidth(lane)}${maxOf(lane, THREADS, "u32")}${sumOf(lane, THREADS)}${bestOf(lane, THREADS)}
var<workgroup> is_done: u32;
fn weight_of(key: u32, best: u32, rule: u32) -> f32 {
  if (key <= 0x007fffffu) { return 0.0; }
  if (rule != 0u) { return max(0.0, unsorted(key)); }
  return exp((unsorted(key) - unsorted(best)) * p.scale);
}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let ranking = load_ranking(p.rankings_at + wg.x * ${RANKING_FIELDS.length}u);
  if (ranking.mass_share == 0u) { return; }
  let size = ranking_size(ranking);
  var best = 0u;
  for (var i = lid; i < size; i += ${THREADS}u) {
    best = max(best, scratch[ranking.keys_at + i]);
    scratch[ranking.flags_at + i] = 0u;
  }
  best = max_of(best, lid, lane_width);
  var mine = 0.0;
  for (var i = lid; i < size; i += ${THREADS}u) { mine += weight_of(scratch[ranking.keys_at + i], best, ranking.rule); }
  let total = sum_of(mine, lid, lane_width);
  let goal = bitcast<f32>(ranking.mass_share) * total;
  var last = vec2u(0xffffffffu, 0u);
  var sum = 0.0;
  for (var taken = 0u; taken < ranking.take; taken++) {
    var next = vec2u(0u, 0xffffffffu);
    for (var i = lid; i < size; i += ${THREADS}u) {
      let key = scratch[ranking.keys_at + i];
      if (key > last.x || (key == last.x && i <= last.y)) { continue; }
      if (key > next.x) { next = vec2u(key, i); }
    }
    next = best_of(next, lid, lane_width);
    last = next;
    sum += weight_of(next.x, best, ranking.rule);
    if (lid == 0u) {
      if (next.y < size) { scratch[ranking.flags_at + next.y] = 1u; }
      is_done = select(0u, 1u, sum >= goal && total > 0.0);
    }
    if (workgroupUniformLoad(&is_done) != 0u) { break; }
  }
}
`,
};
