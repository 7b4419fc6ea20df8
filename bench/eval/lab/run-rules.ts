/** Quest's choice kept for the rows behind it: for a run of fixed length, as `reuse(R)` does, and only while the query stays like the one that chose. */
import { forcedTokens, rangeOf } from "./forced.ts";
import { choosePagesByBound, withPages } from "./page-rules.ts";
import type { RowView, Rule } from "./rule.ts";
import { cosine } from "./token-rules.ts";

/** What one layer and KV head last chose. */
interface Kept {
  run: number;
  /** Of the KV head's query heads, before RoPE. */
  query: Float32Array;
  pages: readonly number[];
}

/**
 * Pages of 16 tokens by Quest's bound, each KV head for itself. A choice is kept to the end of its run (`runTokens` positions, from one multiple to the
 * next) while the cosine of the KV head's query, all its query heads before RoPE, with the one that chose is at least `cosineMin`. `noteReuse` hears of
 * every row, layer and KV head whether it took a choice over.
 */
export function runRule(
  { runTokens, cosineMin }: { runTokens: number; cosineMin: number },
  budgetTokens: number,
  noteReuse: (isReused: boolean) => void,
): Rule {
  const condition = cosineMin === -1 ? "" : ` while cos >= ${cosineMin}`;
  return {
    name: runTokens === 1 ? "quest, every row chooses" : `quest, kept for runs of ${runTokens}${condition}`,
    start: () => {
      const kept = new Map<string, Kept>();
      return (row) => {
        const range = rangeOf(row.position, budgetTokens);
        if (range.everything) return undefined;
        const run = Math.floor(row.position / runTokens);
        return {
          attended: Array.from({ length: row.kvHeadCount }, (_, kvHead) => {
            const key = `${row.layer}/${kvHead}`;
            const known = kept.get(key);
            const query = plainQueriesOf(row, kvHead);
            const isReused = known?.run === run && cosine(known.query, query) >= cosineMin;
            noteReuse(isReused);
            const pages = isReused ? known.pages : choosePagesByBound(row, kvHead, range);
            if (!isReused) kept.set(key, { run, query: query.slice(), pages });
            return withPages(forcedTokens(range, row.position), pages);
          }),
        };
      };
    },
  };
}

function plainQueriesOf({ plainQuery, kvHeadCount }: RowView, kvHead: number): Float32Array {
  const width = plainQuery.length / kvHeadCount;
  return plainQuery.subarray(kvHead * width, (kvHead + 1) * width);
}
