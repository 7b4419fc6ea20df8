/** Which selections are judged: every configuration at every budget, and two baselines that no device has. */
import type { SelectionPlan, SummaryKind } from "../../kernels/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";

/** Knows the attention weights and takes the pages that have most of them. */
export const ORACLE = "oracle";
/** Sinks, recent pages, and random ones. */
export const RANDOM = "random";

/** A selection to judge. */
export interface Candidate {
  name: SelectionConfiguration | typeof ORACLE | typeof RANDOM;
  budgetTokens: number;
  /** A baseline is worked out on the host, layer by layer, from a dense run: it has no plan and generates nothing. */
  plan: SelectionPlan | "oracle" | "random";
  /** Rows of a prompt that share a choice; absent: a page. */
  groupTokens?: number;
}

/**
 * Baselines first, then the configurations, each at every budget; dense is what all are compared with and not among them. `resolve`: what a
 * configuration is on the model (the heads that a share of them stands for).
 */
export function candidatesOf(
  policies: readonly SelectionConfiguration[],
  budgets: readonly number[],
  resolve: (name: SelectionConfiguration) => string = (name) => name,
): Candidate[] {
  const selective = policies.filter((name) => name !== "dense");
  return budgets.flatMap((budgetTokens): Candidate[] => [
    { name: ORACLE, budgetTokens, plan: "oracle" },
    { name: RANDOM, budgetTokens, plan: "random" },
    ...selective.map((name) => {
      const { plan, groupTokens } = policyNamed(resolve(name));
      return { name, budgetTokens, plan: plan(budgetTokens), groupTokens };
    }),
  ]);
}

/** Summaries that the configurations need. */
export function summaryKindsOf(policies: readonly SelectionConfiguration[]): SummaryKind[] {
  return [...new Set(policies.flatMap((name) => policyNamed(name).summary ?? []))];
}
