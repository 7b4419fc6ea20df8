/** From figures to a calibration: where selecting pays, and which budget keeps the promised fidelity. */
import type { CalibratedBudget, Calibration } from "../../models/selection/calibration.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import type { FidelityFigure } from "./figures.ts";

/** What is promised of the selection's next-token distribution. */
export interface FidelityPromise {
  /** Upper end of the 95 % interval of KL(dense, selection), nats per token. */
  divergenceMax: number;
}

/** What was found at one context. */
export interface CalibrationRow {
  contextTokens: number;
  /** The smallest budget that keeps the promise and reads less than dense; absent: none that was measured. */
  budgetTokens?: number;
  divergence?: number;
  bytesShare?: number;
  stepMs?: number;
  denseStepMs?: number;
  /** Whether a step under that budget was faster than a dense one. */
  pays: boolean;
}

/** The decision at each context, ascending. */
export function calibrationRows(
  fidelity: readonly FidelityFigure[],
  name: SelectionConfiguration,
  { divergenceMax }: FidelityPromise,
): CalibrationRow[] {
  const mine = fidelity.filter((row) => row.name === name && row.isActive);
  const contexts = [...new Set(fidelity.map(({ contextTokens }) => contextTokens))].sort((a, b) => a - b);
  return contexts.map((contextTokens) => {
    const here = mine.filter((row) => row.contextTokens === contextTokens);
    here.sort((a, b) => a.budgetTokens - b.budgetTokens);
    const enough = here.find(({ text }) => text && (text.divergence.high ?? text.divergence.mean) <= divergenceMax);
    if (enough?.text === undefined) return { contextTokens, pays: false };
    const { budgetTokens, bytesShare, text } = enough;
    const { stepMs, denseStepMs } = text;
    const divergence = text.divergence.high ?? text.divergence.mean;
    const pays = stepMs < denseStepMs && bytesShare < 1;
    return { contextTokens, budgetTokens, divergence, bytesShare, stepMs, denseStepMs, pays };
  });
}

/** Selecting begins at the shortest context from which on it pays at all that were measured; budgets never fall as contexts grow. */
export function decideCalibration(
  rows: readonly CalibrationRow[],
  { fingerprint, selection }: { fingerprint: string; selection: SelectionConfiguration },
): Calibration {
  const lastLoss = rows.findLastIndex(({ pays }) => !pays);
  const paying = rows.slice(lastLoss + 1);
  const budgets: CalibratedBudget[] = [];
  for (const { contextTokens, budgetTokens = 0 } of paying) {
    budgets.push({ contextTokens, budgetTokens: Math.max(budgetTokens, budgets.at(-1)?.budgetTokens ?? 0) });
  }
  const calibration = { format: 1, fingerprint, selection, budgets } as const;
  const [first] = budgets;
  return first === undefined ? calibration : { ...calibration, denseBelowTokens: first.contextTokens };
}
