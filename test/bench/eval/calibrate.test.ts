/** The decision that a calibration makes of figures. */
import { describe, expect, it } from "vitest";
import { calibrationRows, decideCalibration } from "../../../bench/eval/calibrate.ts";
import type { FidelityFigure } from "../../../bench/eval/figures.ts";

interface Cell {
  contextTokens: number;
  budgetTokens: number;
  divergence: number;
  stepMs: number;
  isActive?: boolean;
}

/** A figure of which only these numbers matter; the upper end of the interval is a tenth above the mean. */
function figure({ contextTokens, budgetTokens, divergence, stepMs, isActive = true }: Cell): FidelityFigure {
  const of = (mean: number) => ({ mean, count: 4 });
  return {
    ...{ name: "quest", budgetTokens, contextTokens, isActive, kvBytes: 1, metadataBytes: 0 },
    ...{ bytesShare: budgetTokens / contextTokens, pagesShare: budgetTokens / contextTokens },
    ...{ mass: of(1), oracleMass: of(1), pageRecall: of(1), outputError: of(0), massByHead: [], errorByHead: [] },
    text: {
      divergence: { mean: divergence, low: 0, high: divergence * 1.1, count: 4 },
      ...{ perplexityGrowth: of(0), topAgreement: of(1), stepMs, denseStepMs: contextTokens / 1024 },
    },
  };
}

const decide = (cells: readonly Cell[]) => {
  const rows = calibrationRows({ fidelity: cells.map(figure), tasks: [] }, "quest", { divergenceMax: 0.01 });
  return { rows, calibration: decideCalibration(rows, { fingerprint: "f", selection: "quest" }) };
};

describe("a calibration", () => {
  it("takes the smallest budget that keeps the promise with its interval, where it is faster than dense", () => {
    const { rows, calibration } = decide([
      { contextTokens: 1024, budgetTokens: 256, divergence: 0.001, stepMs: 1.2 },
      { contextTokens: 4096, budgetTokens: 512, divergence: 0.0092, stepMs: 2 },
      { contextTokens: 4096, budgetTokens: 1024, divergence: 0.004, stepMs: 3 },
      { contextTokens: 8192, budgetTokens: 512, divergence: 0.009, stepMs: 3 },
    ]);
    expect(rows.map(({ budgetTokens, pays }) => [budgetTokens, pays])).toEqual([
      [256, false],
      [1024, true],
      [512, true],
    ]);
    expect(calibration).toEqual({
      ...{ format: 1, fingerprint: "f", selection: "quest", denseBelowTokens: 4096 },
      // A longer context never gets less than a shorter one.
      budgets: [
        { contextTokens: 4096, budgetTokens: 1024 },
        { contextTokens: 8192, budgetTokens: 1024 },
      ],
    });
  });

  it("begins behind the last context at which selecting does not pay", () => {
    const { calibration } = decide([
      { contextTokens: 2048, budgetTokens: 256, divergence: 0.001, stepMs: 1 },
      { contextTokens: 4096, budgetTokens: 256, divergence: 0.5, stepMs: 1 },
      { contextTokens: 8192, budgetTokens: 256, divergence: 0.001, stepMs: 1 },
    ]);
    expect(calibration).toMatchObject({
      denseBelowTokens: 8192,
      budgets: [{ contextTokens: 8192, budgetTokens: 256 }],
    });
  });

  it("is dense everywhere where the longest context does not pay, or nothing was active", () => {
    const last = { contextTokens: 8192, budgetTokens: 256, divergence: 0.5, stepMs: 1 };
    expect(decide([{ ...last, contextTokens: 4096, divergence: 0 }, last]).calibration).toEqual({
      ...{ format: 1, fingerprint: "f", selection: "quest", budgets: [] },
    });
    expect(decide([{ ...last, divergence: 0, isActive: false }]).calibration.budgets).toEqual([]);
  });
});
