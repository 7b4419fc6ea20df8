/** Summaries that are made of a page's keys one by one: two representatives, and sign bits. */
import type { KvEncoding } from "../../contract.ts";
import { type Kernel, variants } from "../kernel.ts";
import { summaryKernel } from "./append.ts";

/** Which of the two. */
export type PageKeysKind = "representatives" | "sign-bits";

/** Finds the page's two tokens in integers; what it says is in `chosen` and `scales` when it ends. */
const REPRESENTATIVES = /* wgsl */ `
  let page_first = page * 16u;
  var page_largest = 0.0;
  for (var i = page_first; i < page_first + 16u; i++) { page_largest = max(page_largest, largest[i]); }
  if (lid % 16u == 0u) { page_scales[page] = divide(page_largest, 127.0); }
  workgroupBarrier();
  for (var i = lid; i < 4u * HEAD_DIM; i += 64u) {
    var sum = 0;
    for (var token = 0u; token < 16u; token++) {
      sum += int8_code(key(block_at, kv_head, i / HEAD_DIM * 16u + token, i % HEAD_DIM), page_scales[i / HEAD_DIM]);
    }
    sums[i] = sum;
  }
  workgroupBarrier();
  var weight = 0;
  for (var channel = 0u; channel < HEAD_DIM; channel++) {
    weight += int8_code(key(block_at, kv_head, lid, channel), page_scales[page]) * sums[page * HEAD_DIM + channel];
  }
  weights[lid] = weight;
  workgroupBarrier();
  if (lid % 16u == 0u) {
    var first = page_first;
    for (var i = page_first + 1u; i < page_first + 16u; i++) { if (weights[i] > weights[first]) { first = i; } }
    var second = select(page_first, page_first + 1u, first == page_first);
    for (var i = second + 1u; i < page_first + 16u; i++) {
      if (i != first && weights[i] > weights[second]) { second = i; }
    }
    chosen[page * 2u] = first;
    chosen[page * 2u + 1u] = second;
    scales[page * 2u] = divide(largest[first], 127.0);
    scales[page * 2u + 1u] = divide(largest[second], 127.0);
  }`;

const SIGN_BITS = /* wgsl */ `
  if (lid < 8u) { scales[lid] = select(0.0, 1.0, lid % 2u == 0u); }`;

/** Four codes: word `four` of an entry (four channels of its vector, or one byte of eight signs of each of four tokens). */
const WORDS: Record<PageKeysKind, string> = {
  representatives: /* wgsl */ `
fn word_of(block_at: u32, kv_head: u32, entry: u32, four: u32) -> u32 {
  var codes: vec4i;
  for (var i = 0u; i < 4u; i++) {
    codes[i] = int8_code(key(block_at, kv_head, chosen[entry], four * 4u + i), scales[entry]);
  }
  return pack_bytes(codes);
}`,
  "sign-bits": /* wgsl */ `
fn word_of(block_at: u32, kv_head: u32, entry: u32, four: u32) -> u32 {
  let place = entry % 2u * (HEAD_DIM / 4u) + four;
  var bits = 0u;
  for (var token = 0u; token < 4u; token++) {
    for (var i = 0u; i < 8u; i++) {
      let sign = bitcast<u32>(key(block_at, kv_head, entry / 2u * 16u + place % 4u * 4u + token, place / 4u * 8u + i)) >> 31u;
      bits |= sign << (token * 8u + i);
    }
  }
  return bits;
}`,
};

/**
 * As {@link summarize} of append.ts, for the kinds that keep keys: to the bit of summary-codec.ts. A page with a key that is not finite gets
 * codes 0 and NaN scales.
 *
 * One work group a (sealed block, KV head), one thread a token: grid [sealed blocks, kvHeadCount]. 16 * headDim bytes of work group memory
 * and a little. Representatives are chosen in i32: at most 512 * 127 * 16 * 127. Reference: summary-codec.ts.
 */
export const summarizePageKeys = variants((kind: PageKeysKind, encoding: KvEncoding, headDim: number): Kernel => {
  const isBits = kind === "sign-bits";
  const declarations = /* wgsl */ `
var<workgroup> largest: array<f32, 64>;
var<workgroup> scales: array<f32, 8>;
${
  isBits
    ? ""
    : `var<workgroup> page_scales: array<f32, 4>;
var<workgroup> sums: array<i32, ${headDim * 4}>;
var<workgroup> weights: array<i32, 64>;
var<workgroup> chosen: array<u32, 8>;`
}
${WORDS[kind]}`;
  const body = /* wgsl */ `
  let page = lid / 16u;
  var most = 0.0;
  for (var channel = 0u; channel < HEAD_DIM; channel++) {
    let value = key(block_at, kv_head, lid, channel);
    if (!is_finite(value)) { atomicStore(&broken[page], 1u); }
    most = max(most, abs(value));
  }
  largest[lid] = most;
  workgroupBarrier();
${isBits ? SIGN_BITS : REPRESENTATIVES}
  workgroupBarrier();
  for (var word = lid; word < 2u * HEAD_DIM; word += 64u) {
    let vector = word / (HEAD_DIM / 4u);
    var codes = 0u;
    if (atomicLoad(&broken[vector / 2u]) == 0u) { codes = word_of(block_at, kv_head, vector, word % (HEAD_DIM / 4u)); }
    summaries[to_at + word] = codes;
  }
  if (lid < 8u) {
    var bits = bitcast<u32>(scales[lid]);
    if (atomicLoad(&broken[lid / 2u]) != 0u) { bits = 0x7fc00000u; }
    summaries[to_at + 2u * HEAD_DIM + lid] = bits;
  }`;
  return summaryKernel({ kind, encoding, headDim }, declarations, body);
});
