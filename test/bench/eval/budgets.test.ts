/** When a selection is called lossless, and what is left out of the judgement. */
import { describe, expect, it } from "vitest";
import { budgetFigures, losslessRows } from "../../../bench/eval/budgets.ts";
import { type Figures, figuresOf } from "../../../bench/eval/figures.ts";
import { summaryOf } from "../../../bench/eval/summary.ts";
import type { TaskResult } from "../../../bench/eval/tasks.ts";

/** Questions of a kind at one budget, each about a document of its own: dense answers `dense` of 100, the selection loses and wins some of them. */
function asked(
  kind: string,
  budgetTokens: number,
  counts: { dense: number; lost?: number; won?: number; chance?: number },
): TaskResult[] {
  const { dense, lost = 0, won = 0, chance = 0 } = counts;
  return Array.from({ length: 100 }, (_, index) => {
    const denseRight = index < dense;
    const isRight = denseRight ? index >= lost : index < dense + won;
    const replies = [{ name: "quest", budgetTokens, isRight, bytes: 20 }];
    return { kind, lengthTokens: 8192, document: `${kind}/${index}`, denseRight, chance, denseBytes: 100, replies };
  });
}

const figures = (tasks: TaskResult[]): Figures => figuresOf({ candidates: [], windows: [], continuations: [], tasks });
const judged = (...tasks: TaskResult[][]) => budgetFigures(figures(tasks.flat()))[0];

describe("a selection", () => {
  it("is lossless where at most a point is lost over all and two in any kind", () => {
    expect(judged(asked("single", 512, { dense: 95 }))).toMatchObject({
      isLossless: true,
      bytesShare: 0.2,
      cases: 100,
    });
    expect(judged(asked("single", 512, { dense: 95, lost: 2 }), asked("table", 512, { dense: 90 }))).toMatchObject({
      ...{ isLossless: true, cases: 200, worst: { kind: "single", difference: -0.02 } },
    });
    expect(judged(asked("single", 512, { dense: 95, lost: 2 }))?.isLossless).toBe(false);
    const many = ["a", "b", "c"].map((kind) => asked(kind, 512, { dense: 90 }));
    expect(judged(asked("single", 512, { dense: 95, lost: 3 }), ...many)?.isLossless).toBe(false);
    expect(judged(asked("single", 512, { dense: 95, lost: 6, won: 5 }))?.isLossless).toBe(true);
  });

  it("is not judged by what dense cannot answer, or answers by chance", () => {
    const { tasks } = figures([
      ...asked("quote", 512, { dense: 40, lost: 40 }),
      ...asked("absent", 512, { dense: 58, lost: 30, chance: 0.5 }),
      ...asked("frequent", 512, { dense: 36, lost: 36, chance: 0.25 }),
      ...asked("other", 512, { dense: 33, lost: 33, chance: 0.25 }),
      ...asked("single", 512, { dense: 90 }),
    ]);
    // Wilson's intervals begin at 48.2 of 100 for 58, at 27.3 for 36 and at 24.6 for 33.
    expect(tasks.map(({ kind, beyondDense }) => [kind, beyondDense])).toEqual([
      ["quote", "below half"],
      ["absent", "by chance"],
      ["frequent", "below half"],
      ["other", "by chance"],
      ["single", undefined],
    ]);
    expect(budgetFigures({ tasks, fidelity: [] })).toMatchObject([{ cases: 100, isLossless: true }]);
  });

  it("is lossless from the budget on behind which none loses anything", () => {
    const at = (lost: readonly number[]) => {
      const tasks = lost.flatMap((count, index) => asked("single", 256 << index, { dense: 95, lost: count }));
      return losslessRows(budgetFigures(figures(tasks)), [8192, 4096])[0]?.at.map(({ answers, all }) => {
        expect(all).toBe(answers);
        return answers?.budgetTokens;
      });
    };
    expect(at([9, 1, 0])).toEqual([512, undefined]);
    expect(at([0, 9, 0])).toEqual([1024, undefined]);
    expect(at([0, 0, 9])).toEqual([undefined, undefined]);
  });

  it("needs its perplexity as well: half a per cent more at most, or an interval that reaches below that", () => {
    const { tasks } = figures(asked("single", 512, { dense: 95 }));
    const behind = (growth: { mean: number; low?: number; high?: number }) => {
      const of = { mean: 1, count: 2 };
      const place = {
        name: "quest",
        budgetTokens: 512,
        contextTokens: 8192,
        isActive: true,
        kvBytes: 1,
        metadataBytes: 1,
      };
      const shares = { bytesShare: 0.1, pagesShare: 0.1, mass: of, oracleMass: of, pageRecall: of, outputError: of };
      const text = {
        perplexityGrowth: { ...growth, count: 2 },
        divergence: of,
        topAgreement: of,
        stepMs: 1,
        denseStepMs: 1,
      };
      const fidelity = [{ ...place, ...shares, text, massByHead: [], errorByHead: [] }];
      const [figure] = budgetFigures({ tasks, fidelity });
      return [figure?.keepsAnswers, figure?.isLossless];
    };
    expect(behind({ mean: 0.005 })).toEqual([true, true]);
    expect(behind({ mean: 0.02 })).toEqual([true, false]);
    expect(behind({ mean: 0.02, low: 0.004, high: 0.036 })).toEqual([true, true]);
    expect(behind({ mean: 0.02, low: 0.006, high: 0.034 })).toEqual([true, false]);
  });

  it("stands in tables that say what lies beyond the training", () => {
    const all = figures([...asked("single", 256, { dense: 95, lost: 9 }), ...asked("single", 512, { dense: 95 })]);
    const text = summaryOf({ ...all, fidelity: [] }, { trainedTokens: 4096, command: "npm run eval" });
    expect(text).toContain("| selection | 8K (beyond the 4K of training) |");
    expect(text).toMatch(
      /\| `quest` \| answers from 512 tokens \(0\.0 \(-[0-9.]+ to \+[0-9.]+\) points at 20\.0 % of the bytes\); lossless from 512 \|/,
    );
    expect(text).toMatch(/\| `quest` \| -9\.0 \([^|]*\) at 20\.0 % \| \*\*0\.0 /);
    expect(summaryOf(all, { trainedTokens: 8192, command: "" })).not.toContain("beyond the");
  });
});
