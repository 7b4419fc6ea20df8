/** What a selection rule of the laboratory is: a few lines of TypeScript that see everything about a row, whatever that would cost a device. */
import type { HeadBlock } from "./row-attention.ts";

/** What is known of a page of sealed keys and values in one KV head: f32 `[headDim]` each. */
export interface PageDigest {
  least: Float32Array;
  most: Float32Array;
  meanKey: Float32Array;
  meanValue: Float32Array;
}

/** One row of one layer. */
export interface RowView {
  layer: number;
  /** Absolute; tokens `[0, position]` can be attended to. */
  position: number;
  headCount: number;
  kvHeadCount: number;
  headDim: number;
  /** `[headCount, headDim]`, before and after RoPE. */
  plainQuery: Float32Array;
  query: Float32Array;
  /** `q.k / sqrt(headDim)`, `[headCount][position + 1]`. */
  scores: readonly Float64Array[];
  /** Keys and values of a KV head up to the row's own block, `[64]` tokens each. */
  blocks(kvHead: number): readonly HeadBlock[];
  /** Of a page before the row's own block. */
  digest(kvHead: number, page: number): PageDigest;
}

/** Tokens that are not attended one by one, but enter the softmax as so many tokens of the mean key, with the mean value. */
export interface Estimate {
  key: Float32Array;
  value: Float32Array;
  tokenCount: number;
}

/** What a row attends to. */
export interface RowChoice {
  /** Per KV head, `[position + 1]`: 1 for an attended token; undefined: everything. Heads may share one. */
  attended: readonly (Uint8Array | undefined)[];
  /** Per KV head; absent: the rest is left out. */
  estimates?: readonly (readonly Estimate[])[];
}

/** Chooses for the rows of one sequence, layer by layer and position by position; may remember what it chose. Undefined: everything. */
export type RowRule = (row: RowView) => RowChoice | undefined;

/** A rule by name. */
export interface Rule {
  name: string;
  /** For a new sequence. */
  start(): RowRule;
}
