/** From flags to what attention reads, and what the step reports: masks, misses, chosen blocks, traffic. */
import { type Kernel, read, write } from "../kernel.ts";
import { LIST_WORDS } from "./attend.ts";
import { bestOfRanking } from "./rank.ts";
import { laneParam, laneWidth, sumBefore } from "./reduce.ts";
import { RANKING, UNIT, UNIT_FIELDS } from "./unit.ts";

/** Counters of a slice in the outcome, in order; u32, for every KV head a choice serves. */
export const COUNTERS = ["sealedTokens", "sealedBlocks", "pagesSelected", "keyPages", "keyBlocks"] as const;

const NOTE = /* wgsl */ `
fn note(at: u32, stride: u32, block: u32) {
  if (at != 0xffffffffu) { atomicOr(&outcome[at + p.layer * stride + block / 32u], 1u << (block & 31u)); }
}
`;

/** Whether a candidate is kept by the first stage. */
const IS_KEPT = /* wgsl */ `
fn is_kept(unit: Unit, candidate: u32) -> bool {
  if (unit.keeps == 2u) { return scratch[unit.flags_at + candidate] != 0u; }
  if (unit.keeps == 3u) {
    let page = unit.page_first + candidate;
    let word = tables[unit.given_at + p.layer * unit.choice_stride + page / 16u];
    return ((word >> (page / 4u % 4u * 8u + page % 4u)) & 1u) != 0u;
  }
  return unit.keeps == 1u;
}
`;

const THREADS = 256;

/**
 * Token plans: the list of the kept candidates that are on the device, ascending, and the place of each in it; kept ones that are not are
 * missed, and count as chosen. Where fewer tokens are taken than listed, their keys are about to be read, and are counted. One work group a
 * unit: grid [units].
 *
 * tables: units, block ids; scratch: flags, list, places; outcome: bitmaps and counters.
 */
export const LIST_PAGES: Kernel = {
  name: "list_pages",
  params: { layer: "u32", units_at: "u32" },
  bindings: { tables: read("u32"), scratch: write("u32"), outcome: write("atomic<u32>") },
  code: (lane) => /* wgsl */ `
${UNIT}
${NOTE}
${IS_KEPT}
${laneWidth(lane)}${sumBefore(lane, THREADS, "u32")}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let unit = load_unit(p.units_at + wg.x * ${UNIT_FIELDS.length}u);
  let ids_at = unit.block_ids_at + p.layer * unit.block_ids_stride;
  let run = (unit.page_count + ${THREADS - 1}u) / ${THREADS}u;
  let first = min(unit.page_count, lid * run);
  let end = min(unit.page_count, first + run);
  var mine = 0u;
  for (var i = first; i < end; i++) {
    if (!is_kept(unit, i)) { continue; }
    let block = (unit.page_first + i) / 4u;
    if (tables[ids_at + block] != 0xffffffffu) {
      mine += 1u;
    } else {
      note(unit.misses_at, unit.misses_stride, block);
      note(unit.chosen_at, unit.chosen_stride, block);
    }
  }
  var place = sum_before(mine, lid, lane_width);
  for (var i = first; i < end; i++) {
    let page = unit.page_first + i;
    let is_listed = is_kept(unit, i) && tables[ids_at + page / 4u] != 0xffffffffu;
    scratch[unit.places_at + i] = select(0u, place + 1u, is_listed);
    if (is_listed) {
      scratch[unit.list_at + place] = page;
      place += 1u;
    }
  }
  if (lid == ${THREADS - 1}u) { scratch[unit.list_count_at] = place; }
  storageBarrier();
  workgroupBarrier();
  let listed = scratch[unit.list_count_at];
  if (unit.token_take >= listed * 16u) { return; }
  var distinct = 0u;
  for (var i = lid; i < listed; i += ${THREADS}u) {
    let block = scratch[unit.list_at + i] / 4u;
    if (i == 0u || scratch[unit.list_at + i - 1u] / 4u != block) { distinct += 1u; }
  }
  atomicAdd(&outcome[unit.counters_at + 4u], distinct * unit.kv_count);
  if (lid == 0u) { atomicAdd(&outcome[unit.counters_at + 3u], listed * unit.kv_count); }
}
`,
};

/**
 * `list_blocks(unit, choice, lid, lane_width)`: the blocks that attention reads for a unit, ascending: forced pages whole, candidates by the unit's
 * choice, or token by token. A block is listed where a token of it is attended and it is on the device, or still open: (block, mask of its tokens in two
 * words, place in the pool). Notes what is wanted and not resident, which blocks hold a chosen candidate, and the choice where it is reported; counts
 * attended sealed tokens and their blocks, and pages. To be called by all of 256 threads, once: a thread a block, 256 at a time.
 */
const LIST_BLOCKS = /* wgsl */ `
/** Candidate i is kept where scratch[at + i] >= least; hands_on: its flag is then written for layers that take the choice over. */
struct Choice { at: u32, least: u32, hands_on: bool }
var<workgroup> sums: array<atomic<u32>, 3>;
var<workgroup> listed: u32;
/** flag: that of the candidate, where choices are flags of pages. */
fn candidate_mask(unit: Unit, candidate: u32, flag: u32) -> u32 {
  if (unit.list_at == 0xffffffffu) {
    if (unit.keeps == 2u) { return select(0u, 0xffffu, flag != 0u); }
    return select(0u, 0xffffu, is_kept(unit, candidate));
  }
  let place = scratch[unit.places_at + candidate];
  if (place == 0u) { return 0u; }
  var mask = 0u;
  for (var token = 0u; token < 16u; token++) {
    mask |= select(0u, 1u << token, scratch[unit.token_flags_at + (place - 1u) * 16u + token] != 0u);
  }
  return mask;
}
fn list_blocks(unit: Unit, choice: Choice, lid: u32, width: u32) {
  for (var first = 0u; first <= unit.last_block; first += ${THREADS}u) {
    let block = first + lid;
    var words = vec2u(0u);
    var id = 0xffffffffu;
    if (block <= unit.last_block) {
      // What lies in memory far away is asked for at once: one work group has all blocks of a unit to go through.
      if (block < unit.last_block) { id = tables[unit.block_ids_at + p.layer * unit.block_ids_stride + block]; }
      var flags = vec4u(0u);
      if (unit.keeps == 2u && unit.page_count > 0u) {
        let last = unit.page_count - 1u;
        let candidate = block * 4u - unit.page_first;
        let marks = vec4u(
          scratch[choice.at + min(candidate, last)], scratch[choice.at + min(candidate + 1u, last)],
          scratch[choice.at + min(candidate + 2u, last)], scratch[choice.at + min(candidate + 3u, last)],
        );
        flags = select(vec4u(0u), vec4u(1u), marks >= vec4u(choice.least));
        if (choice.hands_on) {
          for (var i = 0u; i < 4u; i++) {
            if (candidate + i <= last) { scratch[unit.flags_at + candidate + i] = flags[i]; }
          }
        }
      }
      var pages = 0u;
      var attended = 0u;
      var is_chosen = false;
      for (var i = 0u; i < 4u; i++) {
        let page = block * 4u + i;
        var mask = select(0u, 0xffffu, page < unit.page_end);
        if (page >= unit.page_first && page < unit.page_first + unit.page_count) {
          mask = candidate_mask(unit, page - unit.page_first, flags[i]);
          is_chosen = is_chosen || mask != 0u;
        }
        pages += select(0u, 1u, mask != 0u);
        attended |= select(0u, 1u << i, mask != 0u);
        if (i < 2u) { words.x |= mask << (i * 16u); } else { words.y |= mask << (i * 16u - 32u); }
      }
      if (unit.report_at != 0xffffffffu && block < unit.last_block) {
        atomicOr(&outcome[unit.report_at + p.layer * unit.choice_stride + block / 4u], attended << (block % 4u * 8u));
      }
      if (is_chosen) { note(unit.chosen_at, unit.chosen_stride, block); }
      if ((words.x | words.y) != 0u && block < unit.last_block) {
        if (id == 0xffffffffu) {
          note(unit.misses_at, unit.misses_stride, block);
        } else {
          atomicAdd(&sums[0], countOneBits(words.x) + countOneBits(words.y));
          atomicAdd(&sums[1], 1u);
        }
      }
      atomicAdd(&sums[2], pages);
    }
    let is_listed = (words.x | words.y) != 0u && (id != 0xffffffffu || block == unit.last_block);
    let before = workgroupUniformLoad(&listed);
    let place = before + sum_before(select(0u, 1u, is_listed), lid, width);
    if (is_listed) {
      let at = unit.blocks_at + 1u + place * ${LIST_WORDS}u;
      scratch[at] = block;
      scratch[at + 1u] = words.x;
      scratch[at + 2u] = words.y;
      scratch[at + 3u] = id;
    }
    if (lid == ${THREADS - 1}u) { listed = place + select(0u, 1u, is_listed); }
  }
  workgroupBarrier();
  if (lid == 0u) { scratch[unit.blocks_at] = listed; }
  if (lid < 3u) {
    let sum = atomicLoad(&sums[lid]);
    if (sum != 0u) { atomicAdd(&outcome[unit.counters_at + lid], sum * unit.kv_count); }
  }
}
`;

/** What lists of blocks are told; units may be tables of both kernels. */
const LIST_OF_UNITS: Pick<Kernel, "params" | "bindings"> = {
  params: { layer: "u32", units_at: "u32" },
  bindings: { tables: read("u32"), scratch: write("u32"), outcome: write("atomic<u32>") },
};

/**
 * Lists of blocks where what is kept is known: {@link LIST_BLOCKS}. One work group of 256 a unit: grid [units].
 *
 * tables: units, block ids; scratch: flags, lists; outcome: bitmaps and counters.
 */
export const LIST_BLOCKS_OF_UNITS: Kernel = {
  name: "list_blocks",
  ...LIST_OF_UNITS,
  code: (lane) => /* wgsl */ `
${UNIT}
${NOTE}
${IS_KEPT}
${laneWidth(lane)}${sumBefore(lane, THREADS, "u32")}
${LIST_BLOCKS}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let unit = load_unit(p.units_at + wg.x * ${UNIT_FIELDS.length}u);
  list_blocks(unit, Choice(unit.flags_at, 1u, false), lid, lane_width);
}
`,
};

/**
 * `TOP_K` and {@link LIST_BLOCKS_OF_UNITS} at once, for units whose pages have keys, beside others that only list. Both have one work group of 256 a unit
 * and nobody else has to wait for the flags: a page is kept where its key is not below that of the last one taken, so flags are neither written nor read,
 * but where more pages equal the last one than are taken, or a later layer takes the choice over. Saved: a dispatch, and a pass over the keys. Grid [units].
 *
 * tables: units, rankings, block ids; scratch: keys, flags, lists; outcome: bitmaps and counters. Not for shares of the weight (`TOP_MASS`), nor for
 * token plans, and all rankings of the layer must have their keys at once.
 */
export const CHOOSE_BLOCKS: Kernel = {
  name: "choose_blocks",
  ...LIST_OF_UNITS,
  code: (lane) => /* wgsl */ `
${UNIT}
${RANKING}
${NOTE}
${IS_KEPT}
${bestOfRanking(lane)}
${LIST_BLOCKS}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let unit = load_unit(p.units_at + wg.x * ${UNIT_FIELDS.length}u);
  var choice = Choice(unit.flags_at, 1u, false);
  if (unit.ranking_at != 0xffffffffu) {
    let ranking = load_ranking(unit.ranking_at);
    let prefix = best_of_ranking(ranking, ranking.size, lid, lane_width);
    let last = workgroupUniformLoad(&found);
    if (last.y == last.z) {
      choice = Choice(ranking.keys_at, prefix, unit.hands_on != 0u);
    } else {
      flag_best(ranking, ranking.size, prefix, lid, lane_width);
      storageBarrier();
      workgroupBarrier();
    }
  }
  list_blocks(unit, choice, lid, lane_width);
}
`,
};
