import { GROUP_TOKENS, type SelectionPolicy, splitBudget } from "./policy.ts";

/**
 * Quest (arXiv 2406.10774): an upper bound of every `q.k` of a page from the channel-wise extremes of its post-RoPE keys.
 *
 * `score(page) = sum_d max(q_d*max_d, q_d*min_d) = q.c + |q|.r` with `c = (max+min)/2`, `r = (max-min)/2`.
 * Differs from the published code: query heads that share a KV head share one selection, by the largest score over heads and rows
 * of the group (the published accuracy code repeats KV so that each query head selects alone, its kernels allow one query head per
 * KV head only); layers 0 and 1 select like all others (published: dense), because on resume every layer's pages are remote;
 * prefill of a resumed turn selects too (published: dense); sinks are always attended.
 */
export const questPolicy: SelectionPolicy = {
  name: "quest",
  version: 1,
  summary: "min-max",
  groupTokens: GROUP_TOKENS,
  plan(budgetTokens) {
    return {
      kind: "pages",
      ...splitBudget(budgetTokens),
      scorer: { summary: "min-max", radiusWeight: 1 },
      scope: "kv-head",
      combine: "max",
    };
  },
};
