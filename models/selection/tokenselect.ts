import { MEAN_DEVIATION_SCORER } from "./mean-deviation.ts";
import { GROUP_TOKENS, type SelectionPolicy, splitBudget } from "./policy.ts";

/** Pages of the first stage, as a multiple of the budget. */
const CANDIDATE_FACTOR = 4;

/**
 * TokenSelect (arXiv 2411.02886): single tokens, one set per layer for all heads, by soft vote:
 * `I = top-k( sum over query heads of softmax_i(q_h . k_i / sqrt(d)) )`.
 *
 * Differs from the published code: pages are scored first (mean and deviation) and only the tokens of the best `4 * budgetPages` are
 * scored one by one, so that a resumed session need not load every key; queries of a prefill group of 16 rows vote one by one, where
 * the published code scores a chunk of 512 with its mean query; query head h reads KV head `floor(h / G)` (published kernel:
 * `h mod kvHeads`, wrong for Llama and Qwen); keys keep their absolute positions (published: cached before RoPE); the selection
 * cache between steps is left out, since key-value retrieval suffers from it long before passkey tests show it.
 */
export const tokenselectPolicy: SelectionPolicy = {
  name: "tokenselect",
  version: 1,
  summary: MEAN_DEVIATION_SCORER.summary,
  groupTokens: GROUP_TOKENS,
  plan(budgetTokens) {
    const split = splitBudget(budgetTokens);
    return {
      kind: "tokens",
      ...split,
      candidatePages: CANDIDATE_FACTOR * split.budgetPages,
      scorer: MEAN_DEVIATION_SCORER,
    };
  },
};
