/** Selection of requests that name none. */
import { assert } from "../protocol/assert.ts";
import { AUTO_SELECTION, BUDGET_TOKENS_DEFAULT, type SelectionRequest } from "../protocol/generate.ts";
import { parseRequestedSelection } from "../protocol/selection.ts";
import type { Env } from "./env.ts";

/** The engine chooses; below its budget every policy is dense, so short contexts lose nothing by a default that selects. */
const DEFAULTS: SelectionRequest = { policy: AUTO_SELECTION, budgetTokens: 0, exact: false };

/** The operator's defaults (`QUIRE_SELECTION`) over Quire's own. @throws {AssertionError | QuireError} for a setting that is not one. */
export function selectionDefaults(env: Env): SelectionRequest {
  if (env.QUIRE_SELECTION === undefined || env.QUIRE_SELECTION === "") return DEFAULTS;
  const setting: unknown = JSON.parse(env.QUIRE_SELECTION);
  assert(typeof setting === "object" && setting !== null, "QUIRE_SELECTION is a JSON object");
  const { policy, budget_tokens: budgetTokens, exact } = { ...snakeCase(DEFAULTS), ...setting };
  assert(typeof policy === "string", "QUIRE_SELECTION names a policy");
  assert(Number.isSafeInteger(budgetTokens) && budgetTokens % 16 === 0, "QUIRE_SELECTION has a budget of whole pages");
  assert(typeof exact === "boolean", "QUIRE_SELECTION says whether it is exact");
  const parsed = parseRequestedSelection(policy);
  // An operator who names a policy and no budget has the usual one.
  const isBare = parsed !== AUTO_SELECTION && budgetTokens === 0;
  return { policy: parsed, budgetTokens: isBare ? BUDGET_TOKENS_DEFAULT : budgetTokens, exact };
}

function snakeCase(selection: SelectionRequest): { policy: string; budget_tokens: number; exact: boolean } {
  return { policy: selection.policy, budget_tokens: selection.budgetTokens, exact: selection.exact };
}
