/** KV heads that choose by scorers of the laboratory, each for its share of the bytes, beside heads that stream and heads that see everything. */
import { BLOCK_TOKENS, PAGE_TOKENS } from "../../../kernels/contract.ts";
import type { HeadBlock } from "./row-attention.ts";
import type { RowView, Rule } from "./rule.ts";
import { candidatesAt, denseBytes, rankUnits, type Scorer, takeWithin } from "./scorer.ts";
import { keysThemselves } from "./scorer-catalogue.ts";

/** What one KV head does: attend to everything, to forced tokens only, or choose. */
export type HeadRole = "everything" | "streams" | { scorer: Scorer; share: number };

/** Scores of a KV head's sealed tokens, of its queries; by keys themselves as well. */
interface HeadIndex {
  block: number;
  score: (query: Float32Array) => Float64Array;
  exact: (query: Float32Array) => Float64Array;
}

/** Hears which share of its bytes a KV head took in a row. */
export type NoteShare = (share: number, layer: number, kvHead: number) => void;

/** `roleOf`: what a KV head of a layer does. */
export function scoreRule(
  name: string,
  roleOf: (layer: number, kvHead: number) => HeadRole,
  note: NoteShare = () => undefined,
): Rule {
  return {
    name,
    start: () => {
      const indexes = new Map<string, HeadIndex>();
      return (row) => {
        const candidates = candidatesAt(row.position);
        const { first, end, tokenCount } = candidates;
        if (first >= end) return undefined;
        const dense = denseBytes(tokenCount, row.headDim);
        const attended = Array.from({ length: row.kvHeadCount }, (_, kvHead) => {
          const role = roleOf(row.layer, kvHead);
          if (role === "everything") {
            note(1, row.layer, kvHead);
            return undefined;
          }
          if (role === "streams") {
            note(denseBytes(tokenCount - end + first, row.headDim) / dense, row.layer, kvHead);
            return new Uint8Array(tokenCount).fill(1, 0, first).fill(1, end);
          }
          note(role.share, row.layer, kvHead);
          const { score, exact } = indexOf(indexes, row, kvHead, role.scorer);
          const queries = queriesOf(row, kvHead);
          const ranking = rankUnits(role.scorer, queries.map(score), candidates, () => queries.map(exact));
          return takeWithin(role.share, role.scorer, candidates, ranking, row.headDim);
        });
        return { attended };
      };
    },
  };
}

/** Of all blocks before the row's own: made anew when that is another one. */
function indexOf(indexes: Map<string, HeadIndex>, row: RowView, kvHead: number, scorer: Scorer): HeadIndex {
  const name = `${row.layer}/${kvHead}`;
  const block = Math.floor(row.position / BLOCK_TOKENS);
  const known = indexes.get(name);
  if (known?.block === block) return known;
  const keys = keysOf(row.blocks(kvHead), block * BLOCK_TOKENS, row.headDim);
  const made = {
    ...{ block, score: scorer.index(keys, row.headDim) },
    exact: keysThemselves("", PAGE_TOKENS).index(keys, row.headDim),
  };
  indexes.set(name, made);
  return made;
}

/** Keys of the first `tokenCount` tokens, `[tokenCount][headDim]`. */
export function keysOf(blocks: readonly HeadBlock[], tokenCount: number, headDim: number): Float32Array {
  return joined(blocks, "keys", tokenCount, headDim);
}

/** As {@link keysOf}: values. */
export function valuesOf(blocks: readonly HeadBlock[], tokenCount: number, headDim: number): Float32Array {
  return joined(blocks, "values", tokenCount, headDim);
}

function joined(
  blocks: readonly HeadBlock[],
  part: keyof HeadBlock,
  tokenCount: number,
  headDim: number,
): Float32Array {
  const all = new Float32Array(tokenCount * headDim);
  for (const [index, block] of blocks.entries()) {
    const from = index * BLOCK_TOKENS * headDim;
    if (from < all.length) all.set(block[part].subarray(0, Math.min(block[part].length, all.length - from)), from);
  }
  return all;
}

/** The queries of a KV head's query heads, post-RoPE. */
export function queriesOf({ query, headCount, kvHeadCount, headDim }: RowView, kvHead: number): Float32Array[] {
  const group = headCount / kvHeadCount;
  return Array.from({ length: group }, (_, index) => {
    const head = kvHead * group + index;
    return query.subarray(head * headDim, (head + 1) * headDim);
  });
}
