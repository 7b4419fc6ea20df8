/** Rules over pages: Quest with pages of 16 or of 64 tokens, and the rest estimated instead of left out (RetroInfer). */
import { PAGE_TOKENS } from "../../../kernels/contract.ts";
import type { PageRange } from "../../../kernels/page-range.ts";
import { softmax } from "../exact-attention.ts";
import { forcedTokens, rangeOf } from "./forced.ts";
import type { RowView, Rule } from "./rule.ts";

/**
 * Quest's bound over the extremes of `groupPages` neighbouring pages at a time, each KV head for itself, the largest over its query heads.
 * Whole groups are taken while the budget pays for them.
 */
export function questRule(groupPages: number, budgetTokens: number): Rule {
  return {
    name: `quest, pages of ${groupPages * PAGE_TOKENS}`,
    start: () => (row) => {
      const range = rangeOf(row.position, budgetTokens);
      if (range.everything) return undefined;
      return {
        attended: kvHeadsOf(row).map((kvHead) => {
          const pages = choosePagesByBound(row, kvHead, range, groupPages);
          return withPages(forcedTokens(range, row.position), pages);
        }),
      };
    },
  };
}

/** What one KV head chooses by Quest's bound, in groups of neighbouring pages. */
export function choosePagesByBound(row: RowView, kvHead: number, range: PageRange, groupPages = 1): number[] {
  const groups = groupsOf(range, groupPages);
  const scores = groups.map((pages) => largestBound(row, kvHead, pages));
  return takeGroups(groups, scores, range.takePages);
}

/**
 * Pages by `q.mean`, each KV head for itself, the sum of its query heads' softmaxes; what is not taken enters the softmax as 16 times the page's
 * mean key, with its mean value, if `isEstimated`.
 */
export function meanRule(budgetTokens: number, isEstimated: boolean): Rule {
  return {
    name: `means, the rest ${isEstimated ? "estimated" : "left out"}, budget ${budgetTokens}`,
    start: () => (row) => {
      const range = rangeOf(row.position, budgetTokens);
      if (range.everything) return undefined;
      const groups = groupsOf(range, 1);
      const taken = kvHeadsOf(row).map((kvHead) => takeGroups(groups, meanVotes(row, kvHead, groups), range.takePages));
      const attended = taken.map((pages) => withPages(forcedTokens(range, row.position), pages));
      if (!isEstimated) return { attended };
      const estimates = taken.map((pages, kvHead) => {
        const isTaken = new Set(pages);
        return groups.flat().flatMap((page) => {
          if (isTaken.has(page)) return [];
          const { meanKey, meanValue } = row.digest(kvHead, page);
          return [{ key: meanKey, value: meanValue, tokenCount: PAGE_TOKENS }];
        });
      });
      return { attended, estimates };
    },
  };
}

function kvHeadsOf({ kvHeadCount }: RowView): number[] {
  return Array.from({ length: kvHeadCount }, (_, kvHead) => kvHead);
}

/** Candidate pages in aligned groups; the first and the last may be smaller. */
function groupsOf({ sinkEnd, recentStart }: PageRange, groupPages: number): number[][] {
  const groups: number[][] = [];
  for (let page = sinkEnd; page < recentStart; page++) {
    if (page === sinkEnd || page % groupPages === 0) groups.push([]);
    groups.at(-1)?.push(page);
  }
  return groups;
}

/** The pages of the best groups that fit, best first; a group that does not fit ends it. */
function takeGroups(groups: readonly number[][], scores: readonly number[], takePages: number): number[] {
  const order = scores.map((_, index) => index).sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b);
  const taken: number[] = [];
  for (const index of order) {
    const group = groups[index] as number[];
    if (taken.length + group.length > takePages) break;
    taken.push(...group);
  }
  return taken;
}

/** The mask with the tokens of some pages set, too. */
export function withPages(attended: Uint8Array, pages: readonly number[]): Uint8Array {
  for (const page of pages) attended.fill(1, page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS);
  return attended;
}

function queriesOf({ query, headCount, kvHeadCount, headDim }: RowView, kvHead: number): Float32Array[] {
  const group = headCount / kvHeadCount;
  return Array.from({ length: group }, (_, index) => {
    const head = kvHead * group + index;
    return query.subarray(head * headDim, (head + 1) * headDim);
  });
}

function largestBound(row: RowView, kvHead: number, pages: readonly number[]): number {
  const digests = pages.map((page) => row.digest(kvHead, page));
  const bounds = queriesOf(row, kvHead).map((query) => {
    let bound = 0;
    for (let channel = 0; channel < query.length; channel++) {
      const least = digests.reduce((min, digest) => Math.min(min, digest.least[channel] as number), Infinity);
      const most = digests.reduce((max, digest) => Math.max(max, digest.most[channel] as number), -Infinity);
      const value = query[channel] as number;
      bound += Math.max(value * least, value * most);
    }
    return bound;
  });
  return Math.max(...bounds);
}

function meanVotes(row: RowView, kvHead: number, groups: readonly number[][]): number[] {
  const votes = groups.map(() => 0);
  for (const query of queriesOf(row, kvHead)) {
    const scoreOf = (pages: readonly number[]) => dot(query, row.digest(kvHead, pages[0] as number).meanKey);
    const weights = softmax(Float64Array.from(groups, (pages) => scoreOf(pages) / Math.sqrt(row.headDim)));
    weights.forEach((weight, index) => {
      votes[index]! += weight;
    });
  }
  return votes;
}

function dot(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let index = 0; index < a.length; index++) sum += (a[index] as number) * (b[index] as number);
  return sum;
}
