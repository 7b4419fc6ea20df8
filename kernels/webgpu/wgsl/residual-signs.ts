/** Residual signs on a GPU: summaries of sealed blocks, queries, and scores of pages, to the bit of kernels/residual-signs.ts. */
import type { KvEncoding } from "../../contract.ts";
import { residualSignsLayout } from "../../residual-signs.ts";
import { type Kernel, variants, write } from "../kernel.ts";
import { floatBits } from "../words.ts";
import { summaryKernel } from "./append.ts";
import { EXACT_DIVIDE, ROUNDED, SIGNED_BYTES } from "./exact-math.ts";

/** Words of a turned query: the codes of four channels in each but the last, which has their scale (f32 bits). */
export function turnedWords(headDim: number): number {
  return residualSignsLayout(headDim).tokenBytes * 2;
}

function constants(headDim: number): string {
  const { tokenBytes, signCount } = residualSignsLayout(headDim);
  return /* wgsl */ `
const ODD = ${headDim / (headDim & -headDim)}u;
const TOKEN_BYTES = ${tokenBytes}u;
const SIGNS = ${signCount}u;`;
}

/**
 * Summaries of one kind of sealed blocks' pages: see `KvPool`.
 *
 * blocks, summaries, tables as for `summarize` of append.ts. One work group a (sealed block, KV head), one thread a token, which turns its residual by
 * itself: grid [sealed blocks, kvHeadCount]. 4 * headDim bytes of memory a thread, 16 * headDim and a little for the work group.
 * A page with a key or a length that is not finite has signs and lengths 0 and scales NaN. Reference: kernels/residual-signs.ts.
 */
export const summarizeResidualSigns = variants((encoding: KvEncoding, headDim: number): Kernel => {
  const { lengthUnit, tokenBytes } = residualSignsLayout(headDim);
  const wordsOfToken = Math.ceil(tokenBytes / 4);
  const declarations = /* wgsl */ `
${constants(headDim)}
const LENGTH_UNIT = bitcast<f32>(${floatBits(lengthUnit)}u);
var<workgroup> mean: array<f32, ${headDim}>;
var<workgroup> mean_codes: array<i32, ${headDim}>;
var<workgroup> signs: array<u32, ${64 * wordsOfToken}>;
var<workgroup> lengths: array<f32, 64>;
var<workgroup> length_codes: array<u32, 64>;
fn byte_of(token: u32, byte: u32) -> u32 {
  let word = signs[token * ${wordsOfToken}u + byte / 4u];
  var own = (word >> (byte % 4u * 8u)) & 255u;
  if (byte + 1u == TOKEN_BYTES) { own |= length_codes[token] << 4u; }
  return own;
}`;
  const body = /* wgsl */ `
  for (var channel = lid; channel < HEAD_DIM; channel += 64u) {
    var sum = 0.0;
    for (var token = 0u; token < 64u; token++) {
      let value = key(block_at, kv_head, token, channel);
      if (is_finite(value)) { sum = sum + value; } else { atomicStore(&broken[token / 16u], 1u); }
    }
    mean[channel] = sum * 0.015625;
  }
  workgroupBarrier();
  var largest = 0.0;
  for (var channel = 0u; channel < HEAD_DIM; channel++) { largest = max(largest, abs(mean[channel])); }
  let mean_scale = divide(largest, 127.0);
  workgroupBarrier();
  for (var channel = lid; channel < HEAD_DIM; channel += 64u) {
    let code = int8_code(mean[channel], mean_scale);
    mean_codes[channel] = code;
    mean[channel] = f32(code) * mean_scale;
  }
  workgroupBarrier();
  var residual: array<f32, ${headDim}>;
  for (var channel = 0u; channel < HEAD_DIM; channel++) {
    residual[channel] = key(block_at, kv_head, lid, channel) - rounded(mean[channel]);
  }
  for (var distance = ODD; distance < HEAD_DIM; distance *= 2u) {
    for (var pair = 0u; pair < HEAD_DIM / 2u; pair++) {
      let at = pair / distance * distance * 2u + pair % distance;
      let a = residual[at];
      let b = residual[at + distance];
      residual[at] = a + b;
      residual[at + distance] = a - b;
    }
  }
  var sum = 0.0;
  for (var word = 0u; word < ${wordsOfToken}u; word++) { signs[lid * ${wordsOfToken}u + word] = 0u; }
  for (var channel = 0u; channel < SIGNS; channel++) {
    sum = sum + abs(residual[channel]);
    if (residual[channel] < 0.0) { signs[lid * ${wordsOfToken}u + channel / 32u] |= 1u << (channel % 32u); }
  }
  let length = rounded(sum * LENGTH_UNIT);
  if (!is_finite(length)) { atomicStore(&broken[lid / 16u], 1u); }
  lengths[lid] = length;
  workgroupBarrier();
  var longest = 0.0;
  for (var token = lid / 16u * 16u; token < lid / 16u * 16u + 16u; token++) { longest = max(longest, lengths[token]); }
  let length_scale = divide(longest, 15.0);
  length_codes[lid] = u32(clamp(nearest(length, length_scale), 0.0, 15.0));
  workgroupBarrier();
  for (var word = lid; word < 2u * HEAD_DIM; word += 64u) {
    let page = word / (HEAD_DIM / 2u);
    let place = word % (HEAD_DIM / 2u);
    var bytes = 0u;
    if (place >= 7u * (HEAD_DIM / 16u)) {
      let channel = page * (HEAD_DIM / 4u) + (place - 7u * (HEAD_DIM / 16u)) * 4u;
      bytes = pack_bytes(vec4i(mean_codes[channel], mean_codes[channel + 1u], mean_codes[channel + 2u], mean_codes[channel + 3u]));
    } else if (place < TOKEN_BYTES * 4u && atomicLoad(&broken[page]) == 0u) {
      let token = page * 16u + place % 4u * 4u;
      for (var i = 0u; i < 4u; i++) { bytes |= byte_of(token + i, place / 4u) << (i * 8u); }
    }
    summaries[to_at + word] = bytes;
  }
  if (lid % 16u == 0u) {
    let scales_at = to_at + 2u * HEAD_DIM + lid / 16u * 2u;
    let is_whole = atomicLoad(&broken[lid / 16u]) == 0u;
    summaries[scales_at] = select(0x7fc00000u, bitcast<u32>(mean_scale), is_whole);
    summaries[scales_at + 1u] = select(0x7fc00000u, bitcast<u32>(length_scale), is_whole);
  }`;
  return summaryKernel({ kind: "residual-signs", encoding, headDim }, declarations, body);
});

/**
 * `turn_codes(query, scale, lid)`: of the codes in `values` (work group memory, i32 a channel) the turned query, {@link turnedWords} from turned_at on.
 * To be called by all of 64 threads; a barrier first. Needs `divide`, `rounded` and `pack_bytes`.
 */
export function turnOfCodes(headDim: number): string {
  return /* wgsl */ `
const HEAD_DIM = ${headDim}u;
${constants(headDim)}
fn turn_codes(query: u32, scale: f32, lid: u32) {
  workgroupBarrier();
  for (var distance = ODD; distance < HEAD_DIM; distance *= 2u) {
    for (var pair = lid; pair < HEAD_DIM / 2u; pair += 64u) {
      let at = pair / distance * distance * 2u + pair % distance;
      let a = values[at];
      let b = values[at + distance];
      values[at] = a + b;
      values[at + distance] = a - b;
    }
    workgroupBarrier();
  }
  var most = 0;
  for (var channel = 0u; channel < SIGNS; channel++) { most = max(most, abs(values[channel])); }
  let to_at = p.turned_at + query * (TOKEN_BYTES * 2u);
  for (var word = lid; word < TOKEN_BYTES * 2u - 1u; word += 64u) {
    var codes = vec4i(0);
    for (var i = 0u; i < 4u; i++) {
      let value = values[word * 4u + i];
      if (most > 0) { codes[i] = sign(value) * ((14 * abs(value) + most) / (2 * most)); }
    }
    scratch[to_at + word] = pack_bytes(codes);
  }
  if (lid == 0u) {
    scratch[to_at + TOKEN_BYTES * 2u - 1u] = bitcast<u32>(rounded(scale * rounded(divide(f32(most), 7.0))));
  }
}
`;
}

/**
 * Turned queries, from the codes and scales of `QUANTIZE_QUERIES` in scratch, in integers: {@link turnedWords} of each from turned_at on. One work
 * group a query: grid [headCount, rows].
 */
export const turnQueries = variants((headDim: number): Kernel => {
  return {
    name: `turn_queries_${headDim}`,
    params: { codes_at: "u32", scales_at: "u32", turned_at: "u32" },
    bindings: { scratch: write("u32") },
    code: /* wgsl */ `
${EXACT_DIVIDE}
${SIGNED_BYTES}
${ROUNDED}
var<workgroup> values: array<i32, ${headDim}>;
${turnOfCodes(headDim)}
@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) wg: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lid: u32
) {
  let query = wg.y * groups.x + wg.x;
  for (var four = lid; four < HEAD_DIM / 4u; four += 64u) {
    let at = p.codes_at + query * HEAD_DIM + four * 4u;
    let codes = signed_codes(scratch[at]) * 256 + signed_codes(scratch[at + 1u]) + vec4i(128);
    for (var i = 0u; i < 4u; i++) { values[four * 4u + i] = codes[i]; }
  }
  turn_codes(query, bitcast<f32>(scratch[p.scales_at + query]), lid);
}
`,
  };
});

/** `sign_word(bits)`: of four bits a byte each, -1 where the bit is set, else 1. */
export const SIGN_WORD = /* wgsl */ `
fn sign_word(bits: u32) -> u32 { return 0x01010101u + ((bits * 0x00204081u) & 0x01010101u) * 254u; }`;

/** What `scorePages` of score.ts does for a page of this kind; `heads`: how many queries at once; `store` is done with the `score` of the j-th. */
export const residualMatches =
  (heads: number) =>
  (store: string): string =>
    /* wgsl */ `
  let quarter = fours / 4u;
  var towards: array<i32, ${heads}>;
  // What is declared in a loop should be zero in every round; on SwiftShader an array keeps what it had.
  for (var j = 0u; j < ${heads}u; j++) { towards[j] = 0; }
  for (var i = 0u; i < fours; i++) {
    let mean = signed_codes(summaries[head_at + i / quarter * fours * 2u + quarter * 7u + i % quarter]);
    for (var j = 0u; j < ${heads}u; j++) {
      towards[j] += dot(codes4(codes_at + min(j, queries.count - 1u) * p.head_dim + i * 4u), mean);
    }
  }
  let token_bytes = p.head_dim * 7u / 64u;
  let turned_at = p.turned_at + query * token_bytes * 2u;
  var best: array<i32, ${heads}>;
  for (var j = 0u; j < ${heads}u; j++) { best[j] = -0x7fffffff; }
  for (var token = 0u; token < 16u; token++) {
    let word_at = page_at + token / 4u;
    let shift = token % 4u * 8u;
    var sums: array<i32, ${heads}>;
    for (var j = 0u; j < ${heads}u; j++) { sums[j] = 0; }
    for (var byte = 0u; byte < token_bytes; byte++) {
      let own = summaries[word_at + byte * 4u] >> shift;
      let low = sign_word(own & 15u);
      // In the last byte these four bits are the length.
      let high = select(0u, sign_word((own >> 4u) & 15u), byte + 1u < token_bytes);
      for (var j = 0u; j < ${heads}u; j++) {
        let at = turned_at + min(j, queries.count - 1u) * token_bytes * 2u + byte * 2u;
        sums[j] += dot4I8Packed(low, scratch[at]) + dot4I8Packed(high, scratch[at + 1u]);
      }
    }
    let length = i32((summaries[word_at + (token_bytes - 1u) * 4u] >> (shift + 4u)) & 15u);
    for (var j = 0u; j < ${heads}u; j++) { best[j] = max(best[j], sums[j] * length); }
  }
  for (var j = 0u; j < queries.count; j++) {
    let mean_unit = rounded(bitcast<f32>(scratch[p.scales_at + query + j]) * bitcast<f32>(summaries[scales_at]));
    let turned_scale = bitcast<f32>(scratch[turned_at + (j + 1u) * token_bytes * 2u - 1u]);
    let length_unit = rounded(turned_scale * bitcast<f32>(summaries[scales_at + 1u]));
    let reach = rounded(length_unit * bitcast<f32>(unit.radius_weight));
    let score = rounded(mean_unit * f32(towards[j])) + rounded(reach * f32(best[j]));
    ${store}
  }`;
