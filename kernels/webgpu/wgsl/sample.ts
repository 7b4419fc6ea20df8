/**
 * Sampling, by the definition in sample-row.ts, in f32 where that has f64: a draw differs only where two noisy logits, or the edge of a
 * nucleus, are within rounding of each other. One work group a sampled row.
 */
import { type Kernel, read, write } from "../kernel.ts";
import { SORTABLE } from "./exact-math.ts";
import { bestOf, laneParam, laneWidth, maxOf, sumBefore, sumOf } from "./reduce.ts";

/** Fields of a sampled row in the tables, in order. */
export const SAMPLE_FIELDS = [
  "row",
  /** f32 bits; 0: greedy. */
  "temperature",
  /** 0: no limit. */
  "top_k",
  /** f32 bits; 1: no limit. f32 bits of ln(minP); -Infinity: no limit. */
  ...["top_p", "log_min_p"],
  /** f32 bits. */
  ...["frequency_penalty", "presence_penalty", "repetition_penalty"],
  /** tables: (id, count) pairs; (id, f32 bits) pairs with each id once. */
  ...["seen_at", "seen_count", "bias_at", "bias_count"],
  "noise_key",
  /** scratch: adjusted logits f32 [width]; (key, id) of the last candidate kept. */
  ...["adjusted_at", "cutoff_at"],
  /** outcome: id, then where wanted logprob and top_count times (id, logprob). */
  ...["outcome_at", "wants_logprobs", "top_count"],
] as const;

const JOB = `struct Job { ${SAMPLE_FIELDS.map((field) => `${field}: u32`).join(", ")} }
fn load_job(at: u32) -> Job { return Job(${SAMPLE_FIELDS.map((_, index) => `tables[at + ${index}u]`).join(", ")}); }
fn job_of(index: u32) -> Job { return load_job(p.jobs_at + index * ${SAMPLE_FIELDS.length}u); }`;

const THREADS = 256;

/**
 * Logits with bias and penalties, divided by the temperature where there is one; NaN as -Infinity. Grid [rows].
 *
 * logits f32 [*, width]; tables: SAMPLE_FIELDS; scratch: adjusted.
 */
export const ADJUST_LOGITS: Kernel = {
  name: "adjust_logits",
  params: { jobs_at: "u32", width: "u32" },
  bindings: { logits: read("f32"), tables: read("u32"), scratch: write("u32") },
  code: /* wgsl */ `
${SORTABLE}
${JOB}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let job = job_of(wg.x);
  for (var id = lid; id < p.width; id += ${THREADS}u) {
    scratch[job.adjusted_at + id] = bitcast<u32>(unsorted(sortable(logits[job.row * p.width + id])));
  }
  storageBarrier();
  workgroupBarrier();
  for (var i = lid; i < job.bias_count; i += ${THREADS}u) {
    let id = tables[job.bias_at + i * 2u];
    if (id >= p.width) { continue; }
    let biased = bitcast<f32>(scratch[job.adjusted_at + id]) + bitcast<f32>(tables[job.bias_at + i * 2u + 1u]);
    scratch[job.adjusted_at + id] = bitcast<u32>(biased);
  }
  storageBarrier();
  workgroupBarrier();
  let repetition = bitcast<f32>(job.repetition_penalty);
  for (var i = lid; i < job.seen_count; i += ${THREADS}u) {
    let id = tables[job.seen_at + i * 2u];
    let count = tables[job.seen_at + i * 2u + 1u];
    if (id >= p.width) { continue; }
    var logit = bitcast<f32>(scratch[job.adjusted_at + id]);
    if (logit > 0.0) { logit = logit / repetition; } else { logit = logit * repetition; }
    logit -= f32(count) * bitcast<f32>(job.frequency_penalty);
    if (count > 0u) { logit -= bitcast<f32>(job.presence_penalty); }
    scratch[job.adjusted_at + id] = bitcast<u32>(logit);
  }
  storageBarrier();
  workgroupBarrier();
  let temperature = bitcast<f32>(job.temperature);
  if (temperature <= 0.0) { return; }
  for (var id = lid; id < p.width; id += ${THREADS}u) {
    scratch[job.adjusted_at + id] = bitcast<u32>(bitcast<f32>(scratch[job.adjusted_at + id]) / temperature);
  }
}
`,
};

/**
 * What top-k and then top-p leave: a prefix of the candidates in best-first order (by logit, ties by id), given by its last one. The logits'
 * sortable keys are cut eight bits at a time; the mass of a digit is added in fixed point (two words of 13 bits each), so its order does not
 * matter. min-p is a threshold and needs no search. Grid [rows]; greedy rows are left.
 *
 * scratch: adjusted; cutoff: (key, id), (0, 0) for everything, and the least key that min-p leaves.
 */
export const TRUNCATE: Kernel = {
  name: "truncate",
  params: { jobs_at: "u32", width: "u32" },
  bindings: { tables: read("u32"), scratch: write("u32") },
  code: (lane) => /* wgsl */ `
${SORTABLE}
${JOB}
${laneWidth(lane)}${maxOf(lane, THREADS, "u32")}${sumBefore(lane, THREADS, "vec2u")}
var<workgroup> coarse: array<atomic<u32>, 256>;
var<workgroup> fine: array<atomic<u32>, 256>;
var<workgroup> found: vec4u;
var<workgroup> cutoff: vec2u;
var<workgroup> target_mass: f32;
/** 2^26 times the weight, in two words; or a count. */
fn weight_of(key: u32, best: f32, is_mass: bool) -> vec2u {
  if (!is_mass) { return vec2u(0u, 1u); }
  let scaled = exp(unsorted(key) - best) * 8192.0;
  let high = u32(scaled);
  return vec2u(high, u32((scaled - f32(high)) * 8192.0));
}
fn mass(weight: vec2u) -> f32 { return f32(weight.x) * 8192.0 + f32(weight.y); }
fn is_kept(key: u32, id: u32, last: vec2u) -> bool { return key > last.x || (key == last.x && id <= last.y); }
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let job = job_of(wg.x);
  if (bitcast<f32>(job.temperature) <= 0.0) { return; }
  if (lid == 0u) { cutoff = vec2u(0u, 0u); }
  var largest = 0u;
  for (var id = lid; id < p.width; id += ${THREADS}u) { largest = max(largest, sortable(bitcast<f32>(scratch[job.adjusted_at + id]))); }
  largest = max_of(largest, lid, lane_width);
  let best = unsorted(largest);
  let is_empty = largest <= 0x007fffffu;
  for (var stage = 0u; stage < 2u; stage++) {
    let is_mass = stage == 1u;
    let top_p = bitcast<f32>(job.top_p);
    if (!is_mass && (job.top_k == 0u || job.top_k >= p.width)) { continue; }
    if (is_mass && top_p >= 1.0) { continue; }
    let last = workgroupUniformLoad(&cutoff);
    var prefix = 0u;
    var before = vec2u(0u);
    for (var pass_index = 0u; pass_index < 4u; pass_index++) {
      let shift = 24u - pass_index * 8u;
      atomicStore(&coarse[lid], 0u);
      atomicStore(&fine[lid], 0u);
      workgroupBarrier();
      for (var id = lid; id < p.width; id += ${THREADS}u) {
        let key = sortable(bitcast<f32>(scratch[job.adjusted_at + id]));
        if (!is_kept(key, id, last) || (pass_index > 0u && (key >> (shift + 8u)) != prefix)) { continue; }
        let weight = weight_of(key, best, is_mass && !is_empty);
        atomicAdd(&coarse[(key >> shift) & 255u], weight.x);
        atomicAdd(&fine[(key >> shift) & 255u], weight.y);
      }
      workgroupBarrier();
      let digit = 255u - lid;
      let own = vec2u(atomicLoad(&coarse[digit]), atomicLoad(&fine[digit]));
      let sum = before + sum_before(own, lid, lane_width);
      if (pass_index == 0u && digit == 0u) { target_mass = select(f32(job.top_k), mass(sum + own) * top_p, is_mass); }
      let wanted_mass = workgroupUniformLoad(&target_mass);
      if ((mass(sum) < wanted_mass || lid == 0u) && (mass(sum + own) >= wanted_mass || digit == 0u)) { found = vec4u(digit, sum, 0u); }
      let step = workgroupUniformLoad(&found);
      prefix = (prefix << 8u) | step.x;
      before = step.yz;
    }
    let one = mass(weight_of(prefix, best, is_mass && !is_empty));
    let wanted = max(1u, u32(ceil((target_mass - mass(before)) / max(one, 1.0))));
    let run = (p.width + ${THREADS - 1}u) / ${THREADS}u;
    let first = min(p.width, lid * run);
    let end = min(p.width, first + run);
    var mine = 0u;
    for (var id = first; id < end; id++) {
      let key = sortable(bitcast<f32>(scratch[job.adjusted_at + id]));
      if (key == prefix && is_kept(key, id, last)) { mine += 1u; }
    }
    if (lid == 0u) { cutoff = vec2u(prefix, 0xffffffffu); }
    workgroupBarrier();
    var place = sum_before(vec2u(mine, 0u), lid, lane_width).x;
    for (var id = first; id < end; id++) {
      let key = sortable(bitcast<f32>(scratch[job.adjusted_at + id]));
      if (key != prefix || !is_kept(key, id, last)) { continue; }
      place += 1u;
      if (place == wanted) { cutoff = vec2u(prefix, id); }
    }
    workgroupBarrier();
  }
  if (lid == 0u) {
    scratch[job.cutoff_at] = cutoff.x;
    scratch[job.cutoff_at + 1u] = cutoff.y;
    scratch[job.cutoff_at + 2u] = select(sortable(best + bitcast<f32>(job.log_min_p)), 0u, is_empty);
  }
}
`,
};

/** Noise of one token: `gumbelNoise`, with -ln(1 - v) by its series where v is small, and logarithms that no GPU rounds coarsely. */
const GUMBEL = /* wgsl */ `
fn mix32(value: u32) -> u32 {
  var h = value;
  h = (h ^ (h >> 16u)) * 0x85ebca6bu;
  h = (h ^ (h >> 13u)) * 0xc2b2ae35u;
  return h ^ (h >> 16u);
}
fn ln(x: f32) -> f32 {
  let bits = bitcast<u32>(x) + 0x004afb0du;
  let k = f32(i32(bits >> 23u) - 127);
  let f = bitcast<f32>((bits & 0x7fffffu) + 0x3f3504f3u) - 1.0;
  let s = f / (2.0 + f);
  let z = s * s;
  let w = z * z;
  let r = z * (0.66666662693 + w * 0.28498786688) + w * (0.40000972152 + w * 0.24279078841);
  let half = 0.5 * f * f;
  return s * (half + r) + k * 9.0580006145e-06 - half + f + k * 0.69313812256;
}
fn gumbel(key: u32, id: u32) -> f32 {
  let hash = mix32(key ^ mix32(id + 0x9e3779b9u));
  var rate: f32;
  if (hash < 0x80000000u) {
    rate = -ln((f32(hash) + 0.5) * 2.3283064365386963e-10);
  } else {
    let v = (f32(~hash) + 0.5) * 2.3283064365386963e-10;
    if (v < 0.0625) {
      rate = v * (1.0 + v * (0.5 + v * (0.33333334 + v * (0.25 + v * (0.2 + v * (0.16666667 + v * 0.14285715))))));
    } else {
      rate = -ln(1.0 - v);
    }
  }
  return -ln(rate);
}
`;

/**
 * The token: the largest adjusted logit, or the largest logit + noise among what is kept; ties to the lower id, 0 where no logit is finite.
 * Grid [rows].
 */
export const CHOOSE_TOKEN: Kernel = {
  name: "choose_token",
  params: { jobs_at: "u32", width: "u32" },
  bindings: { tables: read("u32"), scratch: read("u32"), outcome: write("u32") },
  code: (lane) => /* wgsl */ `
${SORTABLE}
${JOB}
${GUMBEL}
${laneWidth(lane)}${bestOf(lane, THREADS)}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let job = job_of(wg.x);
  let is_greedy = bitcast<f32>(job.temperature) <= 0.0;
  let cutoff = vec3u(scratch[job.cutoff_at], scratch[job.cutoff_at + 1u], scratch[job.cutoff_at + 2u]);
  var best = vec2u(0x007fffffu, 0u);
  for (var id = lid; id < p.width; id += ${THREADS}u) {
    let logit = bitcast<f32>(scratch[job.adjusted_at + id]);
    var key = sortable(logit);
    if (key <= 0x007fffffu) { continue; }
    if (!is_greedy) {
      if (key < cutoff.x || (key == cutoff.x && id > cutoff.y) || key < cutoff.z) { continue; }
      key = sortable(logit + gumbel(job.noise_key, id));
    }
    if (key > best.x) { best = vec2u(key, id); }
  }
  let token = best_of(best, lid, lane_width);
  if (lid == 0u) { outcome[job.outcome_at] = token.y; }
}
`,
};

/**
 * Logprobs of the raw logits' softmax: the sampled token's and those of the best ids, best first. Grid [rows]; rows that want none are left.
 */
export const LOGPROBS: Kernel = {
  name: "logprobs",
  params: { jobs_at: "u32", width: "u32" },
  bindings: { logits: read("f32"), tables: read("u32"), outcome: write("u32") },
  code: (lane) => /* wgsl */ `
${SORTABLE}
${JOB}
${GUMBEL}
${laneWidth(lane)}${bestOf(lane, THREADS)}${maxOf(lane, THREADS, "u32")}${sumOf(lane, THREADS)}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let job = job_of(wg.x);
  if (job.wants_logprobs == 0u) { return; }
  let first = job.row * p.width;
  var largest = 0u;
  for (var id = lid; id < p.width; id += ${THREADS}u) { largest = max(largest, sortable(logits[first + id])); }
  let top_key = max_of(largest, lid, lane_width);
  let top = unsorted(top_key);
  var sum = 0.0;
  for (var id = lid; id < p.width; id += ${THREADS}u) {
    let key = sortable(logits[first + id]);
    if (key > 0x007fffffu) { sum += exp(unsorted(key) - top); }
  }
  sum = sum_of(sum, lid, lane_width);
  let log_sum = select(0.0, top + ln(sum), top_key > 0x007fffffu);
  if (lid == 0u) {
    let token = outcome[job.outcome_at];
    outcome[job.outcome_at + 1u] = bitcast<u32>(unsorted(sortable(logits[first + token])) - log_sum);
  }
  var last = vec2u(0xffffffffu, 0u);
  for (var n = 0u; n < job.top_count; n++) {
    var best = vec2u(0u, 0xffffffffu);
    for (var id = lid; id < p.width; id += ${THREADS}u) {
      let key = sortable(logits[first + id]);
      if (key > last.x || (key == last.x && id <= last.y)) { continue; }
      if (key > best.x) { best = vec2u(key, id); }
    }
    last = best_of(best, lid, lane_width);
    if (lid == 0u) {
      outcome[job.outcome_at + 2u + n * 2u] = last.y;
      outcome[job.outcome_at + 3u + n * 2u] = bitcast<u32>(unsorted(last.x) - log_sum);
    }
  }
}
`,
};
