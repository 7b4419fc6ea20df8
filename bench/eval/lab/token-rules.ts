/** TokenSelect's ablations (arXiv 2411.02886): how heads vote for tokens, and until when a choice is kept. All keys are scored. */
import { PAGE_TOKENS } from "../../../kernels/contract.ts";
import { type PageRange, topIndices } from "../../../kernels/page-range.ts";
import { softmax } from "../exact-attention.ts";
import { forcedTokens, rangeOf } from "./forced.ts";
import type { RowView, Rule } from "./rule.ts";

/** `raw`: scores are added. `hard`: each head names its best tokens, names are counted. `soft`: softmaxed scores are added. */
export type Vote = "raw" | "hard" | "soft";

/** One choice of tokens for all heads of a layer, by vote. */
export function voteRule(vote: Vote, budgetTokens: number): Rule {
  return {
    name: `${vote} vote`,
    start: () => (row) => {
      const range = rangeOf(row.position, budgetTokens);
      return range.everything ? undefined : shared(row, range, chosenTokens(vote, row, range));
    },
  };
}

/**
 * By soft vote; a layer's choice is kept while the cosine of its query (all heads, before RoPE) with the one that chose is at least `cosineMin`;
 * undefined: every row chooses. `noteReuse` hears of every row whether it took the choice over.
 */
export function reuseRule(
  cosineMin: number | undefined,
  budgetTokens: number,
  noteReuse: (isReused: boolean) => void,
): Rule {
  return {
    name: cosineMin === undefined ? "every row chooses" : `kept while cos >= ${cosineMin}`,
    start: () => {
      const kept = new Map<number, { query: Float32Array; tokens: readonly number[] }>();
      return (row) => {
        const range = rangeOf(row.position, budgetTokens);
        if (range.everything) return undefined;
        const known = kept.get(row.layer);
        const isReused =
          known !== undefined && cosineMin !== undefined && cosine(known.query, row.plainQuery) >= cosineMin;
        noteReuse(isReused);
        if (isReused) return shared(row, range, known.tokens);
        const tokens = chosenTokens("soft", row, range);
        kept.set(row.layer, { query: row.plainQuery.slice(), tokens });
        return shared(row, range, tokens);
      };
    },
  };
}

function shared({ position, kvHeadCount }: RowView, range: PageRange, tokens: readonly number[]) {
  const attended = forcedTokens(range, position);
  for (const token of tokens) attended[token] = 1;
  return { attended: Array.from({ length: kvHeadCount }, () => attended) };
}

/** The best candidates, as many as the budget has left. */
function chosenTokens(vote: Vote, { scores }: RowView, { sinkEnd, recentStart, takePages }: PageRange): number[] {
  const [from, to] = [sinkEnd * PAGE_TOKENS, recentStart * PAGE_TOKENS];
  const take = takePages * PAGE_TOKENS;
  const votes = new Float64Array(to - from);
  for (const all of scores) {
    const own = all.subarray(from, to);
    if (vote === "hard") for (const index of topIndices(own, take)) votes[index]! += 1;
    else {
      const shares = vote === "soft" ? softmax(own) : own;
      for (let index = 0; index < votes.length; index++) votes[index]! += shares[index] as number;
    }
  }
  return topIndices(votes, take).map((index) => from + index);
}

/** Of the angle between two vectors. */
export function cosine(a: Float32Array, b: Float32Array): number {
  let [dot, squareA, squareB] = [0, 0, 0];
  for (let index = 0; index < a.length; index++) {
    const [x, y] = [a[index] as number, b[index] as number];
    dot += x * y;
    squareA += x * x;
    squareB += y * y;
  }
  return dot / Math.sqrt(squareA * squareB);
}
