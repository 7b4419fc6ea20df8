import { GROUP_TOKENS, type SelectionPolicy, splitBudget } from "./policy.ts";

/**
 * Scores a page by its best token, and tokens by one bit for most channels of what their keys have beyond the mean of their block, at the bytes of
 * Quest's summary.
 *
 * `score(page) = q.mean + max over its tokens of length * (q turned . signs)`: an estimate of the page's largest q.k. Keys less the mean are turned by a
 * Hadamard transform first, so that what lies in few channels is in all. After RaBitQ (arXiv 2405.12497), of which it keeps the sign of each turned
 * coordinate and the 4-bit query. Differs from it: the transform is not random, a sixth of the signs makes room for mean and lengths, a length
 * is the mean magnitude of what has signs (which errs low, and ranks better than the unbiased one), pages are chosen, by their best token; queries of
 * a group are combined by adding softmaxed scores.
 */
export const residualSignsPolicy: SelectionPolicy = {
  name: "residual-signs",
  version: 1,
  summary: "residual-signs",
  groupTokens: GROUP_TOKENS,
  plan(budgetTokens) {
    return {
      kind: "pages",
      ...splitBudget(budgetTokens),
      scorer: { summary: "residual-signs", radiusWeight: 1 },
      scope: "kv-head",
      combine: "softmax-sum",
    };
  },
};
