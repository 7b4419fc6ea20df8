/** Residual signs as devices have them, among the scorers of the laboratory. */
import { BLOCK_TOKENS, PAGE_TOKENS, PAGES_PER_BLOCK } from "../../../kernels/contract.ts";
import { summaryHeadBytes, summaryScalesAt } from "../../../kernels/layout.ts";
import { queryCodes } from "../../../kernels/reference/score.ts";
import { type BlockCodes, residualScorer } from "../../../kernels/residual-signs.ts";
import { summarizeKeys } from "../../../kernels/summary-codec.ts";
import type { Scorer } from "./scorer.ts";

/** `residual-signs` for heads whose width 16 divides. Pages of a block that is not full have no score: none of them is a candidate. */
export function residualSignsScorer(headDim: number): Scorer {
  return {
    ...{ name: "residual signs", unitTokens: PAGE_TOKENS, combine: "softmax-sum" },
    bytesPerToken: summaryHeadBytes(headDim) / BLOCK_TOKENS,
    index: (keys) => {
      const blockLength = BLOCK_TOKENS * headDim;
      const blocks = Array.from({ length: Math.floor(keys.length / blockLength) }, (_, block): BlockCodes => {
        const { buffer } = summarizeKeys("residual-signs", keys.subarray(block * blockLength), headDim);
        return {
          codes: new Int8Array(buffer, 0, summaryScalesAt(headDim)),
          scales: new Float32Array(buffer, summaryScalesAt(headDim)),
        };
      });
      return (query) => {
        const score = residualScorer(queryCodes(query), headDim, 1);
        const pageCount = Math.ceil(keys.length / headDim / PAGE_TOKENS);
        return Float64Array.from({ length: pageCount }, (_, page) => {
          const block = blocks[Math.floor(page / PAGES_PER_BLOCK)];
          if (block === undefined) return Number.NEGATIVE_INFINITY;
          return Math.fround(score(block, page % PAGES_PER_BLOCK)) / Math.sqrt(headDim);
        });
      };
    },
  };
}
