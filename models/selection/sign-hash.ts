import { GROUP_TOKENS, type SelectionPolicy, splitBudget } from "./policy.ts";

/**
 * A hash of one bit a channel (as HATA and GSA use them): the signs of every key of a page, so that single tokens are told apart at the bytes
 * of Quest's summary.
 *
 * `score(page) = max over its tokens of the number of channels in which query and key have the same sign`, by exclusive or and popcount.
 * Differs from the published methods: the hash is the key's own signs, post-RoPE (HATA learns a projection; random rotations spread the
 * signs better); pages are chosen, not tokens, by their best token. What is counted is an angle: the length of a key says nothing here.
 */
export const signHashPolicy: SelectionPolicy = {
  name: "sign-hash",
  version: 1,
  summary: "sign-bits",
  groupTokens: GROUP_TOKENS,
  plan(budgetTokens) {
    return {
      kind: "pages",
      ...splitBudget(budgetTokens),
      scorer: { summary: "sign-bits", radiusWeight: 0 },
      scope: "kv-head",
      combine: "max",
    };
  },
};
