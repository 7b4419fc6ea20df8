import type { PageScorer } from "../../kernels/contract.ts";
import { GROUP_TOKENS, type SelectionPolicy, splitBudget } from "./policy.ts";

/** `q.mean + 0.5 |q|.std`; shared with the first stage of token selection. */
export const MEAN_DEVIATION_SCORER: PageScorer = { summary: "mean-deviation", radiusWeight: 0.5 };

/**
 * Scores a page by the mean of its post-RoPE keys and half their deviation: `score(page) = q.mean + 0.5 |q|.std`, std the
 * population standard deviation per channel. The form is ArkVale's (centre and deviation, NeurIPS 2024); the summary has the bytes of
 * Quest's and is not stretched by a single outlier key, which is what makes min-max scores meet at large page counts.
 *
 * Differs from published code: queries of a group (rows times the query heads of a KV head) are combined by adding softmaxed scores,
 * not by a maximum, so that a head whose scores are large in scale does not outvote the others; the bound itself is not an upper bound.
 */
export const meanDeviationPolicy: SelectionPolicy = {
  name: "mean-deviation",
  version: 1,
  summary: "mean-deviation",
  groupTokens: GROUP_TOKENS,
  plan(budgetTokens) {
    return {
      kind: "pages",
      ...splitBudget(budgetTokens),
      scorer: MEAN_DEVIATION_SCORER,
      scope: "kv-head",
      combine: "softmax-sum",
    };
  },
};
