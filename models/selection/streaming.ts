import { GROUP_TOKENS, type SelectionPolicy, splitBudget } from "./policy.ts";

/**
 * Sinks and a recent window, nothing chosen by the query (StreamingLLM, arXiv 2309.17453): the baseline that forgets.
 *
 * `attended = sinkPages first + (budgetPages - sinkPages) last`. Published code evicts and gives the kept keys positions inside the
 * cache; here nothing is evicted and keys keep their absolute positions, because a page left out now may be chosen by another
 * policy in the next turn.
 */
export const streamingPolicy: SelectionPolicy = {
  name: "streaming",
  version: 1,
  groupTokens: GROUP_TOKENS,
  plan(budgetTokens) {
    const { budgetPages, sinkPages } = splitBudget(budgetTokens);
    return {
      kind: "pages",
      budgetPages,
      sinkPages,
      recentPages: budgetPages - sinkPages,
      scope: "kv-head",
      combine: "max",
    };
  },
};
