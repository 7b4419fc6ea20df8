/** What scores pages or tokens of one KV head, and how scores and bytes become a choice. */
import { BLOCK_TOKENS, PAGE_TOKENS, PAGES_PER_BLOCK } from "../../../kernels/contract.ts";
import { softmax } from "../exact-attention.ts";

/** Sink and recent pages that are always attended to, as the house model's `auto` has them. */
const SINK_PAGES = 1;
const RECENT_PAGES = 4;

/** Keys and queries (both post-RoPE) of one KV head to fit a scorer to: f32 `[count][headDim]` each. */
export interface HeadSample {
  keys: Float32Array;
  queries: Float32Array;
}

/** Scores what one KV head may attend to. Immutable. */
export interface Scorer {
  name: string;
  /** What is scored and taken as a whole: 16 tokens, or 1. */
  unitTokens: number;
  /** What it reads for each token in context, scales included. */
  bytesPerToken: number;
  /** How the queries of a KV head become one; `softmax-sum` over the candidates, of what is a score as attention has it. */
  combine: "max" | "softmax-sum";
  /** Share of the candidates whose keys are read as well, the best ones, to choose among them by what they weigh; absent: none. */
  exactShare?: number;
  /** Of keys f32 `[tokenCount][headDim]`: scores of their units for a query `[headDim]`. */
  index(keys: Float32Array, headDim: number): (query: Float32Array) => Float64Array;
}

/** Tokens `[first, end)` may be chosen; the others up to the row's own are forced. Borders of pages, where they are not the row's. */
export interface Candidates {
  first: number;
  end: number;
  tokenCount: number;
}

/** As pages of the device are: sinks, and recent pages from the row's own block on at the latest. */
export function candidatesAt(position: number): Candidates {
  const own = Math.floor(position / PAGE_TOKENS);
  const ownBlock = Math.floor(position / BLOCK_TOKENS) * PAGES_PER_BLOCK;
  const end = Math.max(0, Math.min(own - RECENT_PAGES + 1, ownBlock));
  const first = Math.min(SINK_PAGES, end);
  return { first: first * PAGE_TOKENS, end: end * PAGE_TOKENS, tokenCount: position + 1 };
}

/** Bytes of int8 K and V as a device reads them: codes of tokens, a value's scale with each, and the keys' scales once for every block. */
export function denseBytes(tokenCount: number, headDim: number): number {
  return tokenCount * (2 * headDim + 4) + Math.ceil(tokenCount / BLOCK_TOKENS) * headDim * 4;
}

/**
 * What a row attends to for a share of dense's bytes, what the scorer reads counted: forced tokens, and units from the best on until the next would be
 * too much. `[tokenCount]`, 1 for an attended token. `ranking`: as {@link rankUnits} gives it.
 */
export function takeWithin(
  share: number,
  { unitTokens, bytesPerToken, exactShare }: Scorer,
  { first, end, tokenCount }: Candidates,
  ranking: readonly number[],
  headDim: number,
): Uint8Array {
  const attended = new Uint8Array(tokenCount).fill(1, 0, first).fill(1, end);
  const blocks = new Set<number>();
  let left = share * denseBytes(tokenCount, headDim) - bytesPerToken * tokenCount;
  // Units whose keys were read to be weighed have paid for keys and scales already.
  const isWeighed = exactShare !== undefined;
  const costOf = (from: number, count: number, isRead = false): number => {
    const block = Math.floor(from / BLOCK_TOKENS);
    const isNew = !blocks.has(block);
    blocks.add(block);
    return count * (headDim + 4) + (isRead ? 0 : count * headDim + (isNew ? headDim * 4 : 0));
  };
  for (let from = 0; from < first; from += PAGE_TOKENS) left -= costOf(from, PAGE_TOKENS);
  for (let from = end; from < tokenCount; from += PAGE_TOKENS) {
    left -= costOf(from, Math.min(PAGE_TOKENS, tokenCount - from));
  }
  if (isWeighed) for (const unit of ranking) left -= costOf(unit * unitTokens, unitTokens) - unitTokens * (headDim + 4);
  for (const unit of ranking) {
    left -= costOf(unit * unitTokens, unitTokens, isWeighed);
    if (left < 0) break;
    attended.fill(1, unit * unitTokens, (unit + 1) * unitTokens);
  }
  return attended;
}

/**
 * Candidate units from the best one on. `perQuery`: each query's scores of all units; `exact`: the same by keys, for scorers with an `exactShare`, of
 * which only units that were weighed are returned.
 */
export function rankUnits(
  { combine, exactShare, unitTokens }: Scorer,
  perQuery: readonly Float64Array[],
  { first, end }: Candidates,
  exact: () => readonly Float64Array[],
): number[] {
  const [from, to] = [first / unitTokens, end / unitTokens];
  const order = descending(combinedScores(combine, perQuery, from, to));
  if (exactShare === undefined) return order.map((index) => from + index);
  const read = order.slice(0, Math.floor(exactShare * order.length));
  const weights = combinedScores("softmax-sum", exact(), from, to);
  return read.sort((a, b) => (weights[b] as number) - (weights[a] as number) || a - b).map((index) => from + index);
}

/** One score for each unit of `[from, to)`. */
function combinedScores(
  combine: Scorer["combine"],
  perQuery: readonly Float64Array[],
  from: number,
  to: number,
): Float64Array {
  const combined = new Float64Array(to - from).fill(combine === "max" ? Number.NEGATIVE_INFINITY : 0);
  for (const scores of perQuery) {
    const own = scores.subarray(from, to);
    const votes = combine === "max" ? own : softmax(own);
    for (let unit = 0; unit < combined.length; unit++) {
      const vote = votes[unit] as number;
      combined[unit] = combine === "max" ? Math.max(combined[unit] as number, vote) : (combined[unit] as number) + vote;
    }
  }
  return combined;
}

/** Indices from the largest score on, ties to the lower one. Scores are sorted as numbers first, which is quicker than by comparing indices. */
function descending(scores: Float64Array): number[] {
  const sorted = scores.slice().sort();
  const places = new Map<number, number[]>();
  for (const [index, score] of scores.entries()) {
    const own = places.get(score);
    if (own === undefined) places.set(score, [index]);
    else own.push(index);
  }
  const order: number[] = [];
  for (let at = sorted.length - 1; at >= 0; at -= places.get(sorted[at] as number)?.length ?? 1) {
    order.push(...(places.get(sorted[at] as number) ?? []));
  }
  return order;
}
