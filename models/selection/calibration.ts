/**
 * What `auto` stands for on one model: dense while selecting does not pay, and from there on a selection with a budget that keeps a stated
 * fidelity. Measured by `quire calibrate`, kept as `selection.json` beside the model.
 */
import { PAGE_TOKENS } from "../../kernels/contract.ts";
import { QuireError } from "../../protocol/errors.ts";
import { BUDGET_TOKENS_DEFAULT, type SelectionConfiguration } from "../../protocol/generate.ts";
import { isCanonicalSelection } from "../../protocol/selection.ts";
import { BUDGET_TOKENS_MIN } from "./policy.ts";
import { policyNamed } from "./registry.ts";

/** Name of the file, in the model's folder, or behind a GGUF file's name and a dot. */
export const CALIBRATION_FILE = "selection.json";

/**
 * What `auto` stands for on a model that nobody has calibrated: Quest's extremes, which find a single key that is unlike its page, weighed
 * and combined so that they keep as much of the attention as means do (figures in docs/selection-tried.md).
 */
export const UNCALIBRATED_SELECTION: SelectionConfiguration = "quest+radius(0.5)+combine(sum)";

/** A budget that is enough at a context. */
export interface CalibratedBudget {
  contextTokens: number;
  budgetTokens: number;
}

/** The contents of the file; whatever else it holds is for people. */
export interface Calibration {
  format: 1;
  /** Of the model that was measured. */
  fingerprint: string;
  selection: SelectionConfiguration;
  /** Shorter contexts are attended in full; absent: all are. */
  denseBelowTokens?: number;
  /** Ascending in both; not empty where `denseBelowTokens` is there. */
  budgets: CalibratedBudget[];
}

/** A policy and its budget. */
export interface ChosenSelection {
  policy: SelectionConfiguration;
  budgetTokens: number;
}

/**
 * What `auto` means for a context. Between two that were measured the budget is interpolated, so that the share of the bytes stays what it is;
 * behind the longest one it grows with the context. `budgetTokens`: what the request named in the place of the calibrated budget; 0: nothing.
 */
export function chooseSelection(
  calibration: Calibration | undefined,
  { contextTokens, budgetTokens }: { contextTokens: number; budgetTokens: number },
): ChosenSelection {
  const named = budgetTokens === 0 ? BUDGET_TOKENS_DEFAULT : budgetTokens;
  if (calibration === undefined) return { policy: UNCALIBRATED_SELECTION, budgetTokens: named };
  const { selection, denseBelowTokens, budgets } = calibration;
  const last = budgets.at(-1);
  if (denseBelowTokens === undefined || last === undefined || contextTokens < denseBelowTokens) {
    return { policy: "dense", budgetTokens: named };
  }
  if (budgetTokens !== 0) return { policy: selection, budgetTokens };
  return { policy: selection, budgetTokens: Math.ceil(budgetAt(contextTokens, budgets) / PAGE_TOKENS) * PAGE_TOKENS };
}

function budgetAt(contextTokens: number, budgets: readonly CalibratedBudget[]): number {
  const after = budgets.find((entry) => contextTokens <= entry.contextTokens);
  const before = budgets.findLast((entry) => contextTokens > entry.contextTokens);
  if (before === undefined) return after?.budgetTokens ?? 0;
  if (after === undefined) return (before.budgetTokens * contextTokens) / before.contextTokens;
  const share = (contextTokens - before.contextTokens) / (after.contextTokens - before.contextTokens);
  return before.budgetTokens + share * (after.budgetTokens - before.budgetTokens);
}

/** In words: what `auto` chooses at which context. */
export function describeCalibration(calibration: Calibration | undefined): string {
  if (calibration === undefined)
    return `${UNCALIBRATED_SELECTION}, budget ${BUDGET_TOKENS_DEFAULT}: nobody has calibrated it`;
  const { selection, denseBelowTokens, budgets } = calibration;
  if (denseBelowTokens === undefined)
    return "dense at every context: nothing that was measured keeps the promise and pays";
  const last = budgets.filter(({ budgetTokens }, index) => budgetTokens !== budgets[index + 1]?.budgetTokens);
  const steps = last.map(({ contextTokens, budgetTokens }) => `${budgetTokens} up to ${contextTokens}`).join(", ");
  return `dense below ${denseBelowTokens} tokens; from there ${selection}, budget ${steps}, beyond in proportion`;
}

/**
 * Reads a calibration. @throws {QuireError} `invalid_request`, one line that names the field, for a file that is none or is of another
 * model (`fingerprint`; without it, of any).
 */
export function parseCalibration(text: string, fingerprint?: string): Calibration {
  const fields = parseObject(text);
  if (fields.format !== 1) refuse("format is not 1");
  const { fingerprint: measured } = fields;
  if (typeof measured !== "string" || (fingerprint !== undefined && measured !== fingerprint))
    refuse("it is of another model or weight encoding; calibrate again");
  const { selection, denseBelowTokens } = fields;
  if (typeof selection !== "string" || !isCanonicalSelection(selection)) refuse("selection is none in canonical form");
  if (denseBelowTokens !== undefined && !isCount(denseBelowTokens)) refuse("denseBelowTokens is not a token count");
  const budgets = parseBudgets(fields.budgets, selection);
  if (denseBelowTokens !== undefined && budgets.length === 0) refuse("budgets are empty");
  const calibration = { format: 1, fingerprint: measured, selection, budgets } as const;
  return denseBelowTokens === undefined ? calibration : { ...calibration, denseBelowTokens };
}

function parseBudgets(value: unknown, selection: SelectionConfiguration): CalibratedBudget[] {
  if (!Array.isArray(value)) refuse("budgets is not a list");
  const budgets: CalibratedBudget[] = [];
  for (const item of value as unknown[]) {
    const { contextTokens, budgetTokens } = (item ?? {}) as Record<string, unknown>;
    const before = budgets.at(-1) ?? { contextTokens: 0, budgetTokens: BUDGET_TOKENS_MIN };
    const ascends =
      isCount(contextTokens) &&
      isCount(budgetTokens) &&
      contextTokens > before.contextTokens &&
      budgetTokens >= before.budgetTokens;
    if (!ascends) refuse("budgets do not ascend");
    policyNamed(selection).plan(budgetTokens);
    budgets.push({ contextTokens, budgetTokens });
  }
  return budgets;
}

function parseObject(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  } catch {
    // As for any other text that is no object.
  }
  return refuse("it is not a JSON object");
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) > 0;
}

function refuse(problem: string): never {
  throw new QuireError("invalid_request", `${CALIBRATION_FILE}: ${problem}`);
}
