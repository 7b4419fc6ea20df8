/** From figures to a calibration: where selecting pays, and which budget keeps the promise. */
import type { CalibratedBudget, Calibration } from "../../models/selection/calibration.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import type { FidelityFigure, Figures, TaskFigure } from "./figures.ts";
import { pairedDifference } from "./statistics.ts";

/** What is promised of the selection; whatever is absent is not promised. */
export interface SelectionPromise {
  /** Upper end of the 95 % interval of KL(dense, selection), nats per token. */
  divergenceMax?: number;
  /** Upper end of the 95 % interval of the share of answers lost against dense, over all kinds of questions that dense can answer. */
  answersLostMax?: number;
}

/** What was found at one context. */
export interface CalibrationRow {
  contextTokens: number;
  /** The smallest budget that keeps the promise and reads less than dense; absent: none that was measured. */
  budgetTokens?: number;
  divergence?: number;
  /** Upper ends, as promised; absent without questions that dense can answer. */
  answersLost?: number;
  bytesShare?: number;
  stepMs?: number;
  denseStepMs?: number;
  /** Whether a step under that budget was faster than a dense one. */
  pays: boolean;
}

/** The decision at each context, ascending. */
export function calibrationRows(
  { fidelity, tasks }: Pick<Figures, "fidelity" | "tasks">,
  name: SelectionConfiguration,
  promise: SelectionPromise,
): CalibrationRow[] {
  const contexts = [...new Set(fidelity.map(({ contextTokens }) => contextTokens))].sort((a, b) => a - b);
  return contexts.map((contextTokens) => {
    const here = fidelity.filter((row) => row.name === name && row.isActive && row.contextTokens === contextTokens);
    here.sort((a, b) => a.budgetTokens - b.budgetTokens);
    const rows = here.flatMap((row) => rowOf(row, tasks) ?? []);
    return rows.find((row) => isKept(row, promise)) ?? { contextTokens, pays: false };
  });
}

function rowOf(figure: FidelityFigure, tasks: readonly TaskFigure[]): CalibrationRow | undefined {
  const { name, contextTokens, budgetTokens, bytesShare, text } = figure;
  if (text === undefined) return undefined;
  const { stepMs, denseStepMs } = text;
  const divergence = text.divergence.high ?? text.divergence.mean;
  const asked = tasks.filter(
    (task) =>
      task.name === name &&
      task.budgetTokens === budgetTokens &&
      task.lengthTokens === contextTokens &&
      task.beyondDense === undefined,
  );
  const { low } = pairedDifference(asked.flatMap(({ pairs }) => pairs));
  const answers = low === undefined ? {} : { answersLost: -low };
  const pays = stepMs < denseStepMs && bytesShare < 1;
  return { contextTokens, budgetTokens, divergence, ...answers, bytesShare, stepMs, denseStepMs, pays };
}

function isKept({ divergence, answersLost }: CalibrationRow, promise: SelectionPromise): boolean {
  const isBelow = (value: number | undefined, max: number | undefined): boolean =>
    max === undefined || (value !== undefined && value <= max);
  return isBelow(divergence, promise.divergenceMax) && isBelow(answersLost, promise.answersLostMax);
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
