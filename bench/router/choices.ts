/** What the router chooses among, the cheapest first: the order of the classifier's outputs. */
import type { SelectionConfiguration } from "../../protocol/generate.ts";

/** A selection and its budget. */
export interface RouterChoice {
  policy: SelectionConfiguration;
  budgetTokens: number;
}

const SCORED: SelectionConfiguration = "mean-deviation";

/** Nothing but the ends of the context; pages by score, in four budgets; everything. */
export const ROUTER_CHOICES: readonly RouterChoice[] = [
  { policy: "streaming", budgetTokens: 128 },
  ...[128, 256, 512, 1024].map((budgetTokens) => ({ policy: SCORED, budgetTokens })),
  { policy: "dense", budgetTokens: 2048 },
];
