/** From which budget on a selection loses nothing: the rule, and what it says of each selection and length. */
import type { Figures, TaskFigure } from "./figures.ts";
import { type Estimate, groupBy, pairedDifference } from "./statistics.ts";

/** Points of answers that all kinds together may lose, and one kind alone; and how much perplexity may grow. */
const LOSS_MAX = 0.01;
const LOSS_OF_A_KIND_MAX = 0.02;
const PERPLEXITY_GROWTH_MAX = 0.005;

/** One selection at one budget and length, over the kinds of questions that dense can answer. */
export interface BudgetFigure {
  name: string;
  budgetTokens: number;
  lengthTokens: number;
  cases: number;
  /** Of the steps that read questions and answered, of dense's. */
  bytesShare: number;
  /** Share of right answers minus dense's. */
  difference: Estimate;
  /** The kind that comes off worst. */
  worst: { kind: string; difference: number };
  /** Of the windows behind a context of this length; absent where there were none. */
  perplexityGrowth?: Estimate;
  /** See {@link LOSSLESS_RULE}: by its answers, and by its perplexity as well. */
  keepsAnswers: boolean;
  isLossless: boolean;
}

/** What {@link BudgetFigure.isLossless} means, in words. */
export const LOSSLESS_RULE =
  "Answers are kept: over all kinds of questions that dense can answer at most 1 point is lost, with 0 inside the interval or below it, and no kind loses more than 2 points. " +
  "Lossless: besides, perplexity behind a context of that length grows by 0.5 % at most, or its interval reaches below that. Both are as sure as questions and texts are many.";

/** In the order of the task figures, by length; kinds that dense cannot answer are not looked at. */
export function budgetFigures({ tasks, fidelity }: Pick<Figures, "tasks" | "fidelity">): BudgetFigure[] {
  const asked = tasks.filter(({ beyondDense }) => beyondDense === undefined);
  const groups = groupBy(asked, (task) => [task.lengthTokens, task.name, task.budgetTokens].join("/"));
  return groups.map((kinds) => {
    const { name, budgetTokens, lengthTokens } = kinds[0] as TaskFigure;
    const difference = pairedDifference(kinds.flatMap(({ pairs }) => pairs));
    const [worst] = kinds.toSorted((a, b) => a.difference.mean - b.difference.mean) as [TaskFigure];
    const window = fidelity.find(
      (row) => row.name === name && row.budgetTokens === budgetTokens && row.contextTokens === lengthTokens,
    );
    const growth = window?.text?.perplexityGrowth;
    const figure = {
      ...{ name, budgetTokens, lengthTokens, difference },
      cases: kinds.reduce((sum, task) => sum + task.cases, 0),
      bytesShare: kinds.reduce((sum, task) => sum + task.bytesShare * task.cases, 0) / difference.count,
      worst: { kind: worst.kind, difference: worst.difference.mean },
      ...(growth === undefined ? {} : { perplexityGrowth: growth }),
    };
    const keepsAnswers =
      difference.mean >= -LOSS_MAX &&
      (difference.high ?? difference.mean) >= 0 &&
      worst.difference.mean >= -LOSS_OF_A_KIND_MAX;
    const keepsText = (growth?.low ?? growth?.mean ?? 0) <= PERPLEXITY_GROWTH_MAX;
    return { ...figure, keepsAnswers, isLossless: keepsAnswers && keepsText };
  });
}

/** A selection with the smallest of its budgets from which on it keeps dense's answers, and is lossless, by length. */
export interface LosslessRow {
  name: string;
  /** At each of the lengths; undefined where no measured budget is, or a larger one again is not. */
  at: { answers: BudgetFigure | undefined; all: BudgetFigure | undefined }[];
}

/** One row per selection, one entry per length. */
export function losslessRows(budgets: readonly BudgetFigure[], lengths: readonly number[]): LosslessRow[] {
  return groupBy(budgets, ({ name }) => name).map((mine) => ({
    name: (mine[0] as BudgetFigure).name,
    at: lengths.map((lengthTokens) => {
      const here = mine.filter((row) => row.lengthTokens === lengthTokens);
      here.sort((a, b) => a.budgetTokens - b.budgetTokens);
      return {
        answers: here[here.findLastIndex((row) => !row.keepsAnswers) + 1],
        all: here[here.findLastIndex((row) => !row.isLossless) + 1],
      };
    }),
  }));
}
