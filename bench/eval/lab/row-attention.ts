/** Attention of one row and head on the host, in doubles: over everything, or over what a rule of the laboratory chose. */
import { BLOCK_TOKENS } from "../../../kernels/contract.ts";
import type { Estimate } from "./rule.ts";

/** Keys and values of one block and KV head: f32 `[64][headDim]`. */
export interface HeadBlock {
  keys: Float32Array;
  values: Float32Array;
}

/** `q.k / sqrt(headDim)` of the first `tokenCount` tokens. */
export function scoresOf(query: Float32Array, blocks: readonly HeadBlock[], tokenCount: number): Float64Array {
  const headDim = query.length;
  const scores = new Float64Array(tokenCount);
  for (let token = 0; token < tokenCount; token++) {
    const { keys } = blocks[Math.floor(token / BLOCK_TOKENS)] as HeadBlock;
    const at = (token % BLOCK_TOKENS) * headDim;
    let dot = 0;
    for (let channel = 0; channel < headDim; channel++)
      dot += (query[channel] as number) * (keys[at + channel] as number);
    scores[token] = dot / Math.sqrt(headDim);
  }
  return scores;
}

/** An output `[headDim]`, and the sum of the weights of real tokens in it, exp(score - largest score of all). */
export interface Output {
  output: Float64Array;
  weight: number;
}

/** What a head attends to, where it is not everything. */
export interface Attended {
  /** 1 for an attended token. */
  tokens: Uint8Array;
  /** Of this head's query. */
  query: Float32Array;
  estimates?: readonly Estimate[] | undefined;
}

/** Attention of one head from its scores, in doubles; without `only` over everything. */
export function outputOf(scores: Float64Array, blocks: readonly HeadBlock[], headDim: number, only?: Attended): Output {
  const max = scores.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const output = new Float64Array(headDim);
  let weight = 0;
  for (let token = 0; token < scores.length; token++) {
    if (only?.tokens[token] === 0) continue;
    const share = Math.exp((scores[token] as number) - max);
    const { values } = blocks[Math.floor(token / BLOCK_TOKENS)] as HeadBlock;
    weight += share;
    addScaled(output, values, (token % BLOCK_TOKENS) * headDim, share);
  }
  let total = weight;
  for (const { key, value, tokenCount } of only?.estimates ?? []) {
    let dot = 0;
    for (let channel = 0; channel < headDim; channel++)
      dot += (only?.query[channel] as number) * (key[channel] as number);
    const share = tokenCount * Math.exp(dot / Math.sqrt(headDim) - max);
    total += share;
    addScaled(output, value, 0, share);
  }
  return { output: output.map((sum) => sum / total), weight };
}

function addScaled(output: Float64Array, values: Float32Array, at: number, share: number): void {
  for (let channel = 0; channel < output.length; channel++) {
    output[channel] = (output[channel] as number) + share * (values[at + channel] as number);
  }
}

/** Distance of two vectors over the length of the second. */
export function distance(a: Float64Array, b: Float64Array): number {
  let [difference, length] = [0, 0];
  for (let index = 0; index < a.length; index++) {
    difference += ((a[index] as number) - (b[index] as number)) ** 2;
    length += (b[index] as number) ** 2;
  }
  return length === 0 ? 0 : Math.sqrt(difference / length);
}
