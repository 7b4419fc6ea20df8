/** Scores of selection: one raw score per (query, candidate), and how several queries' scores become one. */
import { decodeKeys, roundHalfEven } from "../block-codec.ts";
import type { CombineRule, PageScorer, StepSlice } from "../contract.ts";
import { PAGE_TOKENS, PAGES_PER_BLOCK } from "../contract.ts";
import { type QueryCodes, residualScorer } from "../residual-signs.ts";
import { blockCentre } from "../summary-codec.ts";
import type { ReferencePool } from "./memory.ts";

/** The queries of one group that vote together: a row's query vector `[headDim]` and the KV head it reads. */
export interface Query {
  vector: Float32Array;
  kvHead: number;
}

/** Where scores are taken: a layer of a slice. */
export interface ScoreSource {
  pool: ReferencePool;
  layer: number;
  slice: StepSlice;
}

/** Scores of `pages`, as `PageScorer` defines them. */
export function scorePages(
  { pool, layer, slice }: ScoreSource,
  scorer: PageScorer,
  query: Query,
  pages: readonly number[],
): Float32Array {
  const { headDim } = pool.spec;
  const q = queryCodes(query.vector);
  const weight = Math.fround(scorer.radiusWeight);
  const byResiduals = scorer.summary === "residual-signs" ? residualScorer(q, headDim, weight) : undefined;
  const reaching = scorer.summary === "representatives" ? q.codes : q.codes.map(Math.abs);
  return Float32Array.from(pages, (page) => {
    const slot = slice.summarySlots[Math.floor(page / PAGES_PER_BLOCK)] as number;
    const { codes, scales } = pool.summary(slot, scorer.summary, layer, query.kvHead);
    const entry = (page % PAGES_PER_BLOCK) * 2;
    const first = codes.subarray(entry * headDim, (entry + 1) * headDim);
    const second = codes.subarray((entry + 1) * headDim, (entry + 2) * headDim);
    if (scorer.summary === "sign-bits") {
      const bits = codes.subarray(entry * headDim, (entry + 2) * headDim);
      return (scales[entry] as number) * (headDim - leastMismatches(q.codes, bits));
    }
    if (byResiduals !== undefined) return byResiduals({ codes, scales }, page % PAGES_PER_BLOCK);
    const centreUnit = Math.fround(q.scale * (scales[entry] as number));
    const reachUnit = Math.fround(Math.fround(q.scale * (scales[entry + 1] as number)) * weight);
    const centrePart = Math.fround(centreUnit * Math.fround(dot(q.codes, first)));
    return centrePart + Math.fround(reachUnit * Math.fround(dot(reaching, second)));
  });
}

/** Scores of whole blocks, as `coarseFactor` defines them. */
export function scoreBlocks(
  { pool, layer, slice }: ScoreSource,
  { summary }: PageScorer,
  query: Query,
  blocks: readonly number[],
): Float32Array {
  const q = queryCodes(query.vector);
  return Float32Array.from(blocks, (block) => {
    const { codes, scales } = pool.summary(slice.summarySlots[block] as number, summary, layer, query.kvHead);
    const centre = blockCentre(codes, scales, pool.spec.headDim);
    return Math.fround(q.scale * centre.scale) * Math.fround(dot(q.codes, centre.codes));
  });
}

function dot(a: Float64Array, b: Int8Array): number {
  let sum = 0;
  for (let index = 0; index < a.length; index++) sum += (a[index] as number) * (b[index] as number);
  return sum;
}

/** Channels whose signs differ between a query and the page's key that is nearest to it in this; 255 stands for all above. */
function leastMismatches(q: Float64Array, bits: Int8Array): number {
  let least = 255;
  for (let token = 0; token < PAGE_TOKENS; token++) {
    let mismatches = 0;
    for (let channel = 0; channel < q.length; channel++) {
      const byte = bits[Math.floor(channel / 8) * PAGE_TOKENS + token] as number;
      const isNegative = ((byte >> (channel % 8)) & 1) === 1;
      if (isNegative !== (q[channel] as number) < 0) mismatches += 1;
    }
    least = Math.min(least, mismatches);
  }
  return least;
}

/** A query in 16 bits, as `PageScorer` has it. */
export function queryCodes(vector: Float32Array): QueryCodes {
  let max = 0;
  for (const value of vector) max = Math.max(max, Math.abs(value));
  const scale = Math.fround(max / 32767);
  const codes = Float64Array.from(vector, (value) => {
    const quotient = Math.fround(value / scale);
    if (scale === 0 || Number.isNaN(quotient)) return 0;
    return Math.max(-32767, Math.min(32767, roundHalfEven(quotient)));
  });
  return { codes, scale };
}

/** Per query: `q.k` against the decoded keys of every token of `pages` (all resident), rounded to f32 once. */
export function scoreTokens(
  { pool, layer, slice }: ScoreSource,
  queries: readonly Query[],
  pages: readonly number[],
): Float32Array[] {
  const { headDim } = pool.spec;
  const scores = queries.map(() => new Float32Array(pages.length * PAGE_TOKENS));
  let decoded = { blockId: -1, keysPerHead: [] as Float32Array[] };
  pages.forEach((page, index) => {
    const blockId = slice.blockIds[layer * slice.blockCapacity + Math.floor(page / PAGES_PER_BLOCK)] as number;
    if (blockId !== decoded.blockId) {
      const block = pool.block(blockId);
      const heads = Array.from({ length: pool.spec.kvHeadCount }, (_, head) => decodeKeys(pool.spec, block, head));
      decoded = { blockId, keysPerHead: heads };
    }
    const { keysPerHead } = decoded;
    queries.forEach(({ vector, kvHead }, query) => {
      const keys = keysPerHead[kvHead] as Float32Array;
      for (let token = 0; token < PAGE_TOKENS; token++) {
        const keyAt = ((page % PAGES_PER_BLOCK) * PAGE_TOKENS + token) * headDim;
        let dot = 0;
        for (let channel = 0; channel < headDim; channel++) {
          dot += (vector[channel] as number) * (keys[keyAt + channel] as number);
        }
        (scores[query] as Float32Array)[index * PAGE_TOKENS + token] = dot;
      }
    });
  });
  return scores;
}

/** Combines the raw scores of several queries, in the order given, into one score per candidate. */
export function combine(rule: CombineRule, headDim: number, scoresPerQuery: readonly Float32Array[]): Float32Array {
  const combined = new Float32Array(scoresPerQuery[0]?.length ?? 0);
  combined.fill(rule === "max" ? Number.NEGATIVE_INFINITY : 0);
  for (const scores of scoresPerQuery) {
    const votes = rule === "max" ? scores : softmax(scores, headDim);
    for (let index = 0; index < combined.length; index++) {
      const sofar = combined[index] as number;
      const vote = votes[index] as number;
      combined[index] = rule === "max" ? Math.max(sofar, vote) : sofar + vote;
    }
  }
  return combined;
}

/** Softmax of `scores / sqrt(headDim)`; a query all of whose scores are -Infinity has no vote. */
function softmax(scores: Float32Array, headDim: number): Float32Array {
  const scaled = scores.map((score) => score / Math.sqrt(headDim));
  const max = scaled.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  if (max === Number.NEGATIVE_INFINITY) return new Float32Array(scores.length);
  const weights = scaled.map((score) => Math.exp(score - max));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}
