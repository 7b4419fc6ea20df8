/**
 * Sums, maxima and prefix sums of a work group, by subgroup operations where the lane has them. A tree of fixed shape: round d combines
 * thread i with thread i ^ d, for d = 1, 2, 4, ...; the rounds within a subgroup go by shuffles, the others through work group memory. So the
 * bits are the same for every size of subgroup, and without any.
 *
 * Thread i of a work group must be in place i % size of subgroup floor(i / size): WGSL does not promise it, and lane-check.ts asks the GPU.
 */
import type { Lane } from "../kernel.ts";

/** The parameter of `main` that a kernel with reductions adds to its own; before it a comma. */
export function laneParam({ subgroups }: Lane): string {
  return subgroups === "native" ? ", @builtin(subgroup_size) lane_width: u32" : "";
}

/** Declares `lane_width` where it is no parameter: 1 without subgroups. */
export function laneWidth({ subgroups }: Lane): string {
  if (subgroups === "native") return "";
  return `const lane_width = ${subgroups === "none" ? 1 : subgroups.simulated}u;\n`;
}

/** What is reduced: `combine` of `a` and `b`, which must be commutative. */
export interface Reduction {
  /** Of the function; its memory is `<name>_memory`, twice `threads` of `type`. */
  name: string;
  type: "f32" | "u32" | "vec2u";
  /** Of the work group: a power of two. */
  threads: number;
  combine: string;
}

/** `<name>(mine, lid, lane_width)`: the same for every thread. To be called by all of them; barriers inside, behind the last use too. */
function reduction({ subgroups }: Lane, { name, type, threads, combine }: Reduction): string {
  const other = subgroups === "native" ? "subgroupShuffleXor(value, d)" : `${name}_shuffle(value, lid, d)`;
  const shuffle = /* wgsl */ `
fn ${name}_shuffle(value: ${type}, lid: u32, d: u32) -> ${type} {
  ${name}_memory[lid] = value;
  workgroupBarrier();
  let other = ${name}_memory[lid ^ d];
  workgroupBarrier();
  return other;
}`;
  const within = /* wgsl */ `
  for (var d = 1u; d < min(width, ${threads}u); d <<= 1u) { value = ${name}_both(value, ${other}); }`;
  return /* wgsl */ `
var<workgroup> ${name}_memory: array<${type}, ${threads * 2}>;
fn ${name}_both(a: ${type}, b: ${type}) -> ${type} { ${combine} }
${typeof subgroups === "object" ? shuffle : ""}
fn ${name}(mine: ${type}, lid: u32, width: u32) -> ${type} {
  var value = mine;
${subgroups === "none" ? "" : within}
  var half = 0u;
  for (var d = width; d < ${threads}u; d <<= 1u) {
    ${name}_memory[half + lid] = value;
    workgroupBarrier();
    value = ${name}_both(value, ${name}_memory[half + (lid ^ d)]);
    half = ${threads}u - half;
  }
  if (width < ${threads}u) { workgroupBarrier(); }
  return value;
}
`;
}

/** The sum of all threads. */
export const sumOf = (lane: Lane, threads: number): string =>
  reduction(lane, { name: "sum_of", type: "f32", threads, combine: "return a + b;" });

/** The largest of all threads. */
export const maxOf = (lane: Lane, threads: number, type: "f32" | "u32"): string =>
  reduction(lane, { name: "max_of", type, threads, combine: "return max(a, b);" });

/** The best (key, id) of all threads: the largest key, ties to the lower id. */
export const bestOf = (lane: Lane, threads: number): string =>
  reduction(lane, {
    ...{ name: "best_of", type: "vec2u", threads },
    combine: "if (a.x != b.x) { return select(a, b, b.x > a.x); } return select(a, b, b.y < a.y);",
  });

/**
 * `sum_before(mine, lid, lane_width)`: the sum of what the threads before have, in integers. To be called by all threads; barriers inside,
 * behind the last use too.
 */
export function sumBefore({ subgroups }: Lane, threads: number, type: "u32" | "vec2u"): string {
  const byShuffle = "  value = subgroupInclusiveAdd(value);";
  const byMemory = /* wgsl */ `
  for (var d = 1u; d < group; d <<= 1u) {
    before_memory[lid] = value;
    workgroupBarrier();
    if (lid % group >= d) { value += before_memory[lid - d]; }
    workgroupBarrier();
  }`;
  return /* wgsl */ `
var<workgroup> before_memory: array<${type}, ${threads}>;
fn sum_before(mine: ${type}, lid: u32, width: u32) -> ${type} {
  let group = ${subgroups === "none" ? `${threads}u` : `min(width, ${threads}u)`};
  var value = mine;
${subgroups === "native" ? byShuffle : byMemory}
  value -= mine;
  if (group < ${threads}u) {
    if (lid % group == group - 1u) { before_memory[lid / group] = value + mine; }
    workgroupBarrier();
    for (var i = 0u; i < lid / group; i++) { value += before_memory[i]; }
    workgroupBarrier();
  }
  return value;
}
`;
}

/**
 * `shuffle_xor(value, lid, d)`, `shuffle(value, lid, lane_width, from)`: what thread lid ^ d has, and what thread `from` has, both of the same subgroup. To be
 * called by all threads. Without subgroups there are no such functions: `lane_width` is 1 then.
 */
export function shuffles({ subgroups }: Lane, threads: number): string {
  if (subgroups === "none") return "";
  if (subgroups === "native") {
    return /* wgsl */ `
fn shuffle_xor(value: f32, lid: u32, d: u32) -> f32 { return subgroupShuffleXor(value, d); }
fn shuffle(value: f32, lid: u32, width: u32, from_lid: u32) -> f32 { return subgroupShuffle(value, from_lid % width); }
`;
  }
  return /* wgsl */ `
var<workgroup> shuffle_memory: array<f32, ${threads}>;
fn shuffle(value: f32, lid: u32, width: u32, from_lid: u32) -> f32 {
  shuffle_memory[lid] = value;
  workgroupBarrier();
  let other = shuffle_memory[from_lid];
  workgroupBarrier();
  return other;
}
fn shuffle_xor(value: f32, lid: u32, d: u32) -> f32 { return shuffle(value, lid, lane_width, lid ^ d); }
`;
}
