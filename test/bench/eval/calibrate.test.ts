/** The decision that a calibration makes of figures. */
import { describe, expect, it } from "vitest";
import { calibrationRows, decideCalibration } from "../../../bench/eval/calibrate.ts";
import type { FidelityFigure, TaskFigure } from "../../../bench/eval/figures.ts";
import { pairedDifference } from "../../../bench/eval/statistics.ts";

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

describe("a calibration that promises answers", () => {
  /** Questions of a kind, each about a document of its own, of which `lost` are lost and dense answers `dense`. */
  const task = (
    kind: string,
    budgetTokens: number,
    { lost, dense = 200 }: { lost: number; dense?: number },
  ): TaskFigure => {
    const pairs = Array.from({ length: 200 }, (_, index) => {
      const theirs = index < dense;
      return { ours: theirs && index >= lost, theirs, cluster: `${kind}/${index}` };
    });
    const right = pairs.filter(({ ours }) => ours).length;
    const place = { kind, lengthTokens: 8192, name: "quest", budgetTokens, cases: 200, bytesShare: 0.1 };
    const beyond = dense < 100 ? { beyondDense: "below half" as const } : {};
    return { ...place, ...beyond, right, denseRight: dense, pairs, difference: pairedDifference(pairs) };
  };
  const fidelity = [256, 512, 1024].map((budgetTokens) =>
    figure({ contextTokens: 8192, budgetTokens, divergence: 0.02, stepMs: 1 }),
  );
  const tasks = [
    ...[task("single", 256, { lost: 3 }), task("multi-key", 256, { lost: 3 })],
    ...[task("single", 512, { lost: 0 }), task("multi-key", 512, { lost: 1 })],
    ...[task("single", 1024, { lost: 0 }), task("multi-key", 1024, { lost: 0 })],
    // Dense knows a quarter: what is lost of that says nothing.
    ...[256, 512, 1024].map((budget) => task("quote", budget, { lost: 40, dense: 50 })),
  ];
  const budgetOf = (promise: Parameters<typeof calibrationRows>[2]) =>
    calibrationRows({ fidelity, tasks }, "quest", promise)[0]?.budgetTokens;

  it("takes the smallest budget whose loss, with its interval, is kept over the kinds that dense can answer", () => {
    // Of 400 questions six are lost: 1.5 % and up to 2.7 %. One: 0.25 % and up to 0.94 %. None: up to 0.49 %.
    expect(budgetOf({ answersLostMax: 0.03 })).toBe(256);
    expect(budgetOf({ answersLostMax: 0.02 })).toBe(512);
    expect(budgetOf({ answersLostMax: 0.007 })).toBe(1024);
    expect(budgetOf({ answersLostMax: 0.004 })).toBeUndefined();
  });

  it("keeps the promise about the next token as well where both are given", () => {
    expect(budgetOf({ answersLostMax: 0.03, divergenceMax: 0.01 })).toBeUndefined();
    expect(budgetOf({ answersLostMax: 0.03, divergenceMax: 0.03 })).toBe(256);
  });

  it("is no promise where nothing was asked that dense can answer", () => {
    const rows = calibrationRows({ fidelity, tasks: tasks.slice(-3) }, "quest", { answersLostMax: 0.5 });
    expect(rows).toEqual([{ contextTokens: 8192, pays: false }]);
  });
});
