/** How well scorers choose for rows of one KV head whose queries, keys and values are known: all of them on the same rows. */
import { PAGE_TOKENS } from "../../../kernels/contract.ts";
import { distance } from "./row-attention.ts";
import { candidatesAt, rankUnits, type Scorer, takeWithin } from "./scorer.ts";
import { keysThemselves } from "./scorer-catalogue.ts";

/** What a KV head saw: keys and values f32 `[tokenCount][headDim]`, and rows with the queries of its query heads. */
export interface HeadRows {
  headDim: number;
  keys: Float32Array;
  values: Float32Array;
  rows: readonly { position: number; isAnswer: boolean; queries: readonly Float32Array[] }[];
}

/** One row under one scorer and share of the bytes, means over the query heads. */
export interface RowScore {
  scorer: string;
  share: number;
  isAnswer: boolean;
  /** Softmax weight of what is attended to. */
  mass: number;
  /** Distance of the output from that of full attention over the latter's length. */
  outputError: number;
  /** Whether all of the heaviest candidate page is attended to, or of a scorer of tokens its heaviest token. */
  hasBest: boolean;
}

/** Every row under every scorer and share. */
export function panelOf(head: HeadRows, scorers: readonly Scorer[], shares: readonly number[]): RowScore[] {
  const { headDim, keys, values, rows } = head;
  const exactTokens = keysThemselves("", 1).index(keys, headDim);
  const exactPages = keysThemselves("", PAGE_TOKENS).index(keys, headDim);
  const known = rows.map((row) => {
    const weights = row.queries.map((query) => weightsOf(exactTokens(query), row.position));
    const all = new Uint8Array(row.position + 1).fill(1);
    return { row, weights, full: weights.map((each) => outputOf(each, all, values, headDim).output) };
  });
  return scorers.flatMap((scorer) => {
    const score = scorer.index(keys, headDim);
    return known.flatMap(({ row, weights, full }) => {
      const { position, isAnswer, queries } = row;
      const candidates = candidatesAt(position);
      const ranking = rankUnits(scorer, queries.map(score), candidates, () => queries.map(exactPages));
      const best = heaviest(weights, candidates, scorer.unitTokens);
      return shares.map((share) => {
        const attended = takeWithin(share, scorer, candidates, ranking, headDim);
        const each = weights.map((own, index) => {
          const { output, mass } = outputOf(own, attended, values, headDim);
          return { mass, outputError: distance(output, full[index] as Float64Array) };
        });
        return {
          ...{ scorer: scorer.name, share, isAnswer, hasBest: attended[best] === 1 },
          mass: each.reduce((sum, { mass }) => sum + mass, 0) / each.length,
          outputError: each.reduce((sum, { outputError }) => sum + outputError, 0) / each.length,
        };
      });
    });
  });
}

/** Weights of tokens `[0, position]`, which sum to 1. */
function weightsOf(scores: Float64Array, position: number): Float64Array {
  const own = scores.subarray(0, position + 1);
  const max = own.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const weights = own.map((score) => Math.exp(score - max));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

/** First token of the candidate unit that weighs most over all query heads. */
function heaviest(
  full: readonly Float64Array[],
  { first, end }: { first: number; end: number },
  unitTokens: number,
): number {
  let [best, most] = [first, Number.NEGATIVE_INFINITY];
  for (let from = first; from < end; from += unitTokens) {
    let weight = 0;
    for (const weights of full)
      for (let token = from; token < from + unitTokens; token++) weight += weights[token] as number;
    if (weight > most) [best, most] = [from, weight];
  }
  return best;
}

/** Attention over some tokens from the weights of all. */
function outputOf(
  weights: Float64Array,
  attended: Uint8Array,
  values: Float32Array,
  headDim: number,
): { output: Float64Array; mass: number } {
  const output = new Float64Array(headDim);
  let mass = 0;
  for (let token = 0; token < weights.length; token++) {
    if (attended[token] === 0) continue;
    const weight = weights[token] as number;
    mass += weight;
    for (let at = 0; at < headDim; at++) output[at]! += weight * (values[token * headDim + at] as number);
  }
  return { output: output.map((sum) => sum / mass), mass };
}
