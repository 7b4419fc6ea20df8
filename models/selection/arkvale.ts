import { GROUP_TOKENS, type SelectionPolicy, splitBudget } from "./policy.ts";

/**
 * ArkVale (NeurIPS 2024), its "cuboid-mean" digest: a box around the middle of the page's keys, but as wide as they are on average instead of
 * as wide as the widest, so that it is an estimate of the page's best `q.k` and no bound.
 *
 * `score(page) = sum_d max(q_d*(c+r)_d, q_d*(c-r)_d) = q.c + |q|.r` with `c = (max+min)/2`, `r = mean |k - c|` per channel over post-RoPE keys.
 * Differs from the paper: pages of 16 tokens (paper: 32); the budget says how many pages are taken (paper: at most half of what the GPU caches,
 * 1,280 tokens at most); query heads of a KV head choose together, by the largest score; every layer selects (paper: not the first two).
 */
export const arkvalePolicy: SelectionPolicy = {
  name: "arkvale",
  version: 1,
  summary: "centre-deviation",
  groupTokens: GROUP_TOKENS,
  plan(budgetTokens) {
    return {
      kind: "pages",
      ...splitBudget(budgetTokens),
      scorer: { summary: "centre-deviation", radiusWeight: 1 },
      scope: "kv-head",
      combine: "max",
    };
  },
};
