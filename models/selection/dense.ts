import { GROUP_TOKENS, type SelectionPolicy } from "./policy.ts";

/** Attends to everything: the baseline, the fallback, and what every other policy equals below its budget. */
export const densePolicy: SelectionPolicy = {
  name: "dense",
  version: 1,
  groupTokens: GROUP_TOKENS,
  plan: () => ({ kind: "dense" }),
};
