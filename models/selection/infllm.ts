import { GROUP_TOKENS, type SelectionPolicy, splitBudget } from "./policy.ts";

/**
 * InfLLM (arXiv 2402.04617): a page is represented by some of its own keys, and one choice serves all heads of a layer.
 *
 * `score(page) = q.k_a + q.k_b`, a and b the page's two representative tokens; queries and heads vote, votes are added.
 * Differs from the paper: two tokens of 16 represent a page (paper: 4 of a block of 128); a token represents its page by its product with
 * the sum of the page's keys, `k_m . sum_j k_j`, where the paper takes the attention that the queries of the local window behind it pay to it:
 * queries are not kept, and a summary must follow from a stored page alone; keys are post-RoPE at their own positions (paper: all of a block
 * at one position); votes go through a softmax before they are added (paper: raw), so that heads of large scale do not decide alone; sinks and
 * recent pages follow from the budget.
 */
export const infllmPolicy: SelectionPolicy = {
  name: "infllm",
  version: 1,
  summary: "representatives",
  groupTokens: GROUP_TOKENS,
  plan(budgetTokens) {
    return {
      kind: "pages",
      ...splitBudget(budgetTokens),
      scorer: { summary: "representatives", radiusWeight: 1 },
      scope: "layer",
      combine: "softmax-sum",
    };
  },
};
