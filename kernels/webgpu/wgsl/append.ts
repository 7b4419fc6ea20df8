/** Append: RoPE into the open slots; a complete block is sealed, and its pages summarized from the sealed keys. */
import type { KvEncoding, KvPoolSpec, SummaryKind } from "../../contract.ts";
import { type Kernel, read, variants, write } from "../kernel.ts";
import { EXACT_DIVIDE, FLOAT_BITS, ROUNDED, SIGNED_BYTES } from "./exact-math.ts";

/**
 * `append_key(row, kv_head, channel, angle)`: a pair of channels of a key, turned, and of its value into the open slot; `turned(low, high, angle)`;
 * `angle_of(row, channel)`: cosine and sine.
 */
export const TURN_AND_APPEND = /* wgsl */ `
fn turned(low: f32, high: f32, angle: vec2f) -> vec2f {
  return vec2f(
    rounded(low * angle.x) - rounded(high * angle.y),
    rounded(high * angle.x) + rounded(low * angle.y),
  );
}
fn angle_of(row: u32, channel: u32) -> vec2f {
  let at = tables[p.rows_at + row * 3u] * p.half + channel;
  return vec2f(cosines[at], sines[at]);
}
fn append_key(row: u32, kv_head: u32, channel: u32, angle: vec2f) {
  let from_at = (row * p.kv_head_count + kv_head) * p.half * 2u + channel;
  let slot = tables[p.rows_at + row * 3u + 1u];
  let token = tables[p.rows_at + row * 3u + 2u];
  let part = p.kv_head_count * 128u * p.half;
  let to_at = slot * part * 2u + (kv_head * 64u + token) * p.half * 2u + channel;
  let key = turned(k[from_at], k[from_at + p.half], angle);
  open[to_at] = key.x;
  open[to_at + p.half] = key.y;
  open[part + to_at] = v[from_at];
  open[part + to_at + p.half] = v[from_at + p.half];
}
`;

/**
 * RoPE (half-split) on q in place, on k on its way into the open slots, and v beside it.
 *
 * q f32 [rows, headCount, headDim]; k, v f32 [rows, kvHeadCount, headDim]; cos, sin f32 [positionCount, headDim / 2]; open: pool.ts;
 * tables u32: (position, open slot, token) of every row from rows_at on. One thread a pair of channels of a head, KV heads after the query
 * heads: grid [ceil((headCount + kvHeadCount) * headDim / 2 / 64), rows]. Reference: append.ts.
 */
export const APPEND: Kernel = {
  name: "append",
  params: { head_count: "u32", kv_head_count: "u32", half: "u32", rows_at: "u32" },
  bindings: {
    ...{ q: write("f32"), k: read("f32"), v: read("f32"), cosines: read("f32"), sines: read("f32") },
    ...{ tables: read("u32"), open: write("f32") },
  },
  code: /* wgsl */ `
${ROUNDED}
${TURN_AND_APPEND}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let head = id.x / p.half;
  let channel = id.x % p.half;
  if (head >= p.head_count + p.kv_head_count) { return; }
  let row = id.y;
  let angle = angle_of(row, channel);
  if (head >= p.head_count) {
    append_key(row, head - p.head_count, channel, angle);
    return;
  }
  let at = (row * p.head_count + head) * p.half * 2u + channel;
  let query = turned(q[at], q[at + p.half], angle);
  q[at] = query.x;
  q[at + p.half] = query.y;
}
`,
};

/** What kernels over sealed blocks are told. */
export const SEAL_PARAMS = { sealed_at: "u32", kv_head_count: "u32" } as const;

const SEAL_F32 = /* wgsl */ `
  let elements = 64u * HEAD_DIM;
  for (var i = lid; i < elements; i += 64u) {
    blocks[to_at + kv_head * elements + i] = sealed_bits(open[keys_at + i]);
    blocks[to_at + (p.kv_head_count + kv_head) * elements + i] = sealed_bits(open[values_at + i]);
  }`;

/** `sealed_bits(x)`: what an f32 pool keeps of a value; rounding f16 goes by the bits, since a GPU's own conversion may round either way. */
const SEALED_BITS = /* wgsl */ `
fn sealed_bits(x: f32) -> u32 { return bitcast<u32>(x); }`;
const SEALED_HALF_BITS = /* wgsl */ `
fn sealed_bits(x: f32) -> u32 {
  let sign = bitcast<u32>(x) & 0x80000000u;
  let bits = bitcast<u32>(x) & 0x7fffffffu;
  if (bits >= 0x7f800000u) { return sign | bits; }
  if (bits < 0x38800000u) { return sign | bitcast<u32>(round(abs(x) * 16777216.0) / 16777216.0); }
  return sign | min((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u, 0x477fe000u);
}`;

/** Rounding int4 of the codes that a thread has written: its four channels of keys, then its token's values. */
const ROUND_CODES = /* wgsl */ `
  for (var four = lid; four < HEAD_DIM / 4u; four += 64u) {
    let at = to_at + kv_head * words + four;
    var least = vec4i(127);
    var most = vec4i(-127);
    for (var token = 0u; token < 64u; token++) {
      let codes = signed_codes(blocks[at + token * (HEAD_DIM / 4u)]);
      least = min(least, codes);
      most = max(most, codes);
    }
    for (var token = 0u; token < 64u; token++) {
      let code_at = at + token * (HEAD_DIM / 4u);
      blocks[code_at] = pack_bytes(rounded_codes(signed_codes(blocks[code_at]), least, most));
    }
  }
  let codes_at = value_codes_at + kv_head * words + lid * (HEAD_DIM / 4u);
  var least = vec4i(127);
  var most = vec4i(-127);
  for (var four = 0u; four < HEAD_DIM / 4u; four++) {
    let codes = signed_codes(blocks[codes_at + four]);
    least = min(least, codes);
    most = max(most, codes);
  }
  least = vec4i(min(min(least.x, least.y), min(least.z, least.w)));
  most = vec4i(max(max(most.x, most.y), max(most.z, most.w)));
  for (var four = 0u; four < HEAD_DIM / 4u; four++) {
    blocks[codes_at + four] = pack_bytes(rounded_codes(signed_codes(blocks[codes_at + four]), least, most));
  }`;
const ROUNDED_CODES = /* wgsl */ `
fn rounded_codes(codes: vec4i, least: vec4i, most: vec4i) -> vec4i {
  let step = max(vec4i(1), (most - least + vec4i(14)) / vec4i(15));
  return min(vec4i(127), least + step * ((2 * (codes - least) + step) / (2 * step)));
}`;

const SEAL_INT8 = /* wgsl */ `
  let words = 16u * HEAD_DIM;
  let key_scales_at = to_at + p.kv_head_count * words;
  let value_codes_at = key_scales_at + p.kv_head_count * HEAD_DIM;
  let value_scales_at = value_codes_at + p.kv_head_count * words;
  for (var four = lid; four < HEAD_DIM / 4u; four += 64u) {
    var largest = vec4f(0.0);
    for (var token = 0u; token < 64u; token++) { largest = max(largest, abs(open4(keys_at + token * HEAD_DIM + four * 4u))); }
    var scale: vec4f;
    for (var i = 0u; i < 4u; i++) {
      scale[i] = divide(largest[i], 127.0);
      blocks[key_scales_at + kv_head * HEAD_DIM + four * 4u + i] = bitcast<u32>(scale[i]);
    }
    for (var token = 0u; token < 64u; token++) {
      blocks[to_at + kv_head * words + token * (HEAD_DIM / 4u) + four] = codes4(open4(keys_at + token * HEAD_DIM + four * 4u), scale);
    }
  }
  var largest = 0.0;
  let row_at = values_at + lid * HEAD_DIM;
  for (var i = 0u; i < HEAD_DIM; i++) { largest = max(largest, abs(open[row_at + i])); }
  let scale = divide(largest, 127.0);
  blocks[value_scales_at + kv_head * 64u + lid] = bitcast<u32>(scale);
  for (var four = 0u; four < HEAD_DIM / 4u; four++) {
    blocks[value_codes_at + kv_head * words + lid * (HEAD_DIM / 4u) + four] = codes4(open4(row_at + four * 4u), vec4f(scale));
  }`;

/**
 * Seals complete blocks: open slot into device block, in the pool's encoding and rounding, to the bit of block-codec.ts.
 *
 * open: pool.ts; blocks u32, one part of the pool; tables u32: (open slot, first word of the block in the part, summary slot) of every sealed
 * block from sealed_at on. One work group a (sealed block, KV head): grid [sealed blocks, kvHeadCount].
 */
export const seal = variants(
  (encoding: KvPoolSpec["encoding"], rounding: KvPoolSpec["rounding"], headDim: number): Kernel => {
    const isFloat = encoding === "f32";
    return {
      name: `seal_${rounding ?? encoding}_${headDim}`,
      params: SEAL_PARAMS,
      bindings: { open: read("f32"), blocks: write("u32"), tables: read("u32") },
      code: /* wgsl */ `
${EXACT_DIVIDE}
${SIGNED_BYTES}
${rounding ? SEALED_HALF_BITS : SEALED_BITS}
${rounding ? ROUNDED_CODES : ""}
const HEAD_DIM = ${headDim}u;
fn open4(at: u32) -> vec4f { return vec4f(open[at], open[at + 1u], open[at + 2u], open[at + 3u]); }
fn codes4(x: vec4f, scale: vec4f) -> u32 {
  return pack_bytes(vec4i(int8_code(x.x, scale.x), int8_code(x.y, scale.y), int8_code(x.z, scale.z), int8_code(x.w, scale.w)));
}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let entry = p.sealed_at + wg.x * 3u;
  let kv_head = wg.y;
  let to_at = tables[entry + 1u];
  let part = p.kv_head_count * 64u * HEAD_DIM;
  let keys_at = tables[entry] * part * 2u + kv_head * 64u * HEAD_DIM;
  let values_at = keys_at + part;
${isFloat ? SEAL_F32 : SEAL_INT8}
${!isFloat && rounding ? ROUND_CODES : ""}
}
`,
    };
  },
);

/** Kinds whose codes are of a centre and a radius; those of the others: page-keys.ts, residual-signs.ts. */
export type CentreRadiusKind = Exclude<SummaryKind, "representatives" | "sign-bits" | "residual-signs">;

/** Least and most of a channel's keys of a page. */
const EXTREMES = /* wgsl */ `
    var least = key(block_at, kv_head, page * 16u, channel);
    var most = least;
    for (var token = 0u; token < 16u; token++) {
      let value = key(block_at, kv_head, page * 16u + token, channel);
      least = min(least, value);
      most = max(most, value);
      if (!is_finite(value)) { finite = 0u; }
    }`;

const CENTRE_RADIUS: Record<CentreRadiusKind, string> = {
  "min-max": /* wgsl */ `${EXTREMES}
    centre[i] = (most + least) * 0.5;
    radius[i] = (most - least) * 0.5;`,
  "mean-deviation": /* wgsl */ `
    var sum = 0.0;
    for (var token = 0u; token < 16u; token++) {
      let value = key(block_at, kv_head, page * 16u + token, channel);
      sum = sum + value;
      if (!is_finite(value)) { finite = 0u; }
    }
    let mean = sum * 0.0625;
    var squares = 0.0;
    for (var token = 0u; token < 16u; token++) {
      let difference = key(block_at, kv_head, page * 16u + token, channel) - mean;
      squares = squares + rounded(difference * difference);
    }
    centre[i] = mean;
    radius[i] = sqrt(squares * 0.0625);`,
  "centre-deviation": /* wgsl */ `${EXTREMES}
    let middle = (most + least) * 0.5;
    var distances = 0.0;
    for (var token = 0u; token < 16u; token++) {
      distances = distances + abs(key(block_at, kv_head, page * 16u + token, channel) - middle);
    }
    centre[i] = middle;
    radius[i] = distances * 0.0625;`,
};

/** `key(block_at, kv_head, token, channel)` of a sealed block, rounded before anything is added to it; needs HEAD_DIM and `rounded`. */
function sealedKey(encoding: KvEncoding): string {
  return /* wgsl */ `
fn key(block_at: u32, kv_head: u32, token: u32, channel: u32) -> f32 {
  let at = (kv_head * 64u + token) * HEAD_DIM + channel;
${
  encoding === "f32"
    ? "  return bitcast<f32>(blocks[block_at + at]);"
    : `  let code = signed_bytes(blocks[block_at + at / 4u])[at % 4u];
  return rounded(code * bitcast<f32>(blocks[block_at + (p.kv_head_count * 16u + kv_head) * HEAD_DIM + channel]));`
}
}`;
}

const WIDEN = /* wgsl */ `
  for (var i = lid; i < 4u * HEAD_DIM; i += 64u) {
    let scale = scales[i / HEAD_DIM * 2u];
    radius[i] = radius[i] + abs(centre[i] - rounded(f32(int8_code(centre[i], scale)) * scale));
  }`;

/**
 * A kernel that summarizes sealed blocks' pages, from the sealed keys: see `KvPool`. Reference: summary-codec.ts.
 *
 * blocks u32, one part of the pool; summaries u32, one layer; tables as {@link seal}. Entries whose summary slot is -1 are skipped. One work
 * group a (sealed block, KV head): grid [sealed blocks, kvHeadCount].
 * @param declarations what the kind has beside the constant HEAD_DIM, `key` ({@link sealedKey}), and `broken`, a flag for each of the four pages
 * @param body for thread `lid` of 64 and a block at `block_at` of head `kv_head`; its summaries begin at word `to_at`
 */
export function summaryKernel(
  { kind, encoding, headDim }: { kind: SummaryKind; encoding: KvEncoding; headDim: number },
  declarations: string,
  body: string,
): Kernel {
  return {
    name: `summarize_${kind}_${encoding}_${headDim}`,
    params: SEAL_PARAMS,
    bindings: { blocks: read("u32"), summaries: write("u32"), tables: read("u32") },
    code: /* wgsl */ `
${EXACT_DIVIDE}
${SIGNED_BYTES}
${ROUNDED}
${FLOAT_BITS}
const HEAD_DIM = ${headDim}u;
var<workgroup> broken: array<atomic<u32>, 4>;
${sealedKey(encoding)}
${declarations}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) lid: u32) {
  let entry = p.sealed_at + wg.x * 3u;
  let block_at = tables[entry + 1u];
  let slot = tables[entry + 2u];
  let kv_head = wg.y;
  if (slot == 0xffffffffu) { return; }
  let to_at = (slot * p.kv_head_count + kv_head) * (2u * HEAD_DIM + 8u);
${body}
}
`,
  };
}

/**
 * {@link summaryKernel} of a kind that has a centre and a radius. To the bit of summary-codec.ts, but that a mean's deviation may be off by one code
 * where the GPU's square root is not rounded to nearest. A page with a key that is not finite gets NaN scales. 32 * headDim bytes of work group memory.
 */
export const summarize = variants((kind: CentreRadiusKind, encoding: KvEncoding, headDim: number): Kernel => {
  const declarations = /* wgsl */ `
var<workgroup> centre: array<f32, ${headDim * 4}>;
var<workgroup> radius: array<f32, ${headDim * 4}>;
var<workgroup> scales: array<f32, 8>;
fn largest_centre(page: u32) -> f32 {
  var largest = 0.0;
  for (var i = page * HEAD_DIM; i < (page + 1u) * HEAD_DIM; i++) { largest = max(largest, abs(centre[i])); }
  return largest;
}
fn largest_radius(page: u32) -> f32 {
  var largest = 0.0;
  for (var i = page * HEAD_DIM; i < (page + 1u) * HEAD_DIM; i++) { largest = max(largest, abs(radius[i])); }
  return largest;
}
fn radius_code(x: f32, scale: f32) -> i32 {
${kind === "min-max" ? "  if (scale == 0.0) { return 0; }\n  return i32(min(127.0, ceil(divide(x, scale))));" : "  return int8_code(x, scale);"}
}
fn code(entry: u32, channel: u32) -> i32 {
  let page = entry / 2u;
  if (atomicLoad(&broken[page]) != 0u) { return 0; }
  if (entry % 2u == 0u) { return int8_code(centre[page * HEAD_DIM + channel], scales[entry]); }
  return radius_code(radius[page * HEAD_DIM + channel], scales[entry]);
}`;
  const body = /* wgsl */ `
  for (var i = lid; i < 4u * HEAD_DIM; i += 64u) {
    let page = i / HEAD_DIM;
    let channel = i % HEAD_DIM;
    var finite = 1u;
${CENTRE_RADIUS[kind]}
    if (finite == 0u) { atomicStore(&broken[page], 1u); }
  }
  workgroupBarrier();
  if (lid < 4u) { scales[lid * 2u] = divide(largest_centre(lid), 127.0); }
  workgroupBarrier();
${kind === "min-max" ? WIDEN : ""}
  workgroupBarrier();
  if (lid < 4u) { scales[lid * 2u + 1u] = divide(largest_radius(lid), 127.0); }
  workgroupBarrier();
  for (var word = lid; word < 2u * HEAD_DIM; word += 64u) {
    let vector = word / (HEAD_DIM / 4u);
    let channel = word % (HEAD_DIM / 4u) * 4u;
    let codes = vec4i(code(vector, channel), code(vector, channel + 1u), code(vector, channel + 2u), code(vector, channel + 3u));
    summaries[to_at + word] = pack_bytes(codes);
  }
  if (lid < 8u) {
    var bits = bitcast<u32>(scales[lid]);
    if (atomicLoad(&broken[lid / 2u]) != 0u) { bits = 0x7fc00000u; }
    summaries[to_at + 2u * HEAD_DIM + lid] = bits;
  }`;
  return summaryKernel({ kind, encoding, headDim }, declarations, body);
});
