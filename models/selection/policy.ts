/**
 * What a selection policy is: a name, a version, and the plan it makes of a budget. All arithmetic on keys and queries is the
 * device's (`kernels/contract.ts`, `SelectionPlan`); a policy decides which summary is scored, how queries are combined and how
 * the budget is divided, so that it is data on every device.
 *
 * Every policy is bit-identical to dense while the context fits its budget (the plan's identity rule), so short contexts never pay
 * for scoring. Above it, reading summaries costs 1/16 of the f32 K and V they stand for.
 */
import type { SelectionPlan, SummaryKind } from "../../kernels/contract.ts";
import { PAGE_TOKENS } from "../../kernels/contract.ts";
import { QuireError } from "../../protocol/errors.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";

/** Smallest budget: sinks, the block being written (4 pages) and at least three chosen pages. */
export const BUDGET_TOKENS_MIN: number = LIMITS.budgetTokensMin;

/** Rows of one query group in prefill; a group ends at a page border or with its span, and decode rows are groups of one. */
export const GROUP_TOKENS = 16;

/** Implementations are stateless and immutable; equal (name, version, budget) always gives an equal plan. */
export interface SelectionPolicy {
  /** The policy's name, or a configuration in canonical form. */
  readonly name: SelectionConfiguration;
  /** Goes up when the plan for some budget changes: KV computed under one version is never passed off as another's. */
  readonly version: number;
  /** The summary kind that pools must keep for this policy; absent where nothing is scored. */
  readonly summary?: SummaryKind;
  /** Rows of one query group in prefill. */
  readonly groupTokens: number;
  /** Budget under which the prompt of a session's first turn is read; absent: densely. */
  readonly firstTurnBudgetTokens?: number;
  /**
   * The plan for a budget in tokens, sinks and recent pages included.
   * @throws {QuireError} `invalid_request` when the budget is not a multiple of 16 or below {@link BUDGET_TOKENS_MIN}
   * (the dense policy ignores it).
   */
  plan(budgetTokens: number): SelectionPlan;
}

/** How a budget is divided: pages in all, of which the first `sinkPages` and last `recentPages` are always attended. */
export interface BudgetSplit {
  budgetPages: number;
  sinkPages: number;
  recentPages: number;
}

/**
 * 1/16 of the budget for sinks (at least one page), 1/8 for recent pages (at least two), the rest for pages that are chosen.
 * @throws {QuireError} `invalid_request` on a budget that is no multiple of a page or below {@link BUDGET_TOKENS_MIN}.
 */
export function splitBudget(budgetTokens: number): BudgetSplit {
  if (!Number.isSafeInteger(budgetTokens) || budgetTokens < BUDGET_TOKENS_MIN || budgetTokens % PAGE_TOKENS !== 0) {
    throw new QuireError(
      "invalid_request",
      `budget_tokens must be a multiple of ${PAGE_TOKENS} and at least ${BUDGET_TOKENS_MIN}.`,
      { param: "quire.selection.budget_tokens" },
    );
  }
  const budgetPages = budgetTokens / PAGE_TOKENS;
  return {
    budgetPages,
    sinkPages: Math.max(1, Math.floor(budgetPages / 16)),
    recentPages: Math.max(2, Math.floor(budgetPages / 8)),
  };
}
