/** The figures in a few tables of Markdown, for whoever writes them down elsewhere. */
import { budgetFigures, LOSSLESS_RULE, type LosslessRow, losslessRows } from "./budgets.ts";
import type { ContinuationFigure } from "./continuation-figures.ts";
import type { FidelityFigure, Figures, TaskFigure } from "./figures.ts";
import { percent, points, pointsOf, shareOf, tokens, withBounds } from "./page-words.ts";
import { type Columns, filledColumns, markdownTable } from "./tables.ts";

/** Columns of long generations. */
export const continuationColumns: Columns<ContinuationFigure> = [
  ["selection", (row) => row.name],
  ["behind", (row) => tokens(row.contextTokens)],
  ["budget", (row) => row.budgetTokens],
  ["bytes", (row) => percent(row.bytesShare)],
  ["cases", (row) => row.cases],
  ["first difference at step", (row) => withBounds(row.divergedAt, (value) => value.toFixed(0))],
  ["median", (row) => row.divergedAtMedian ?? `over ${row.tokenCount}`],
  ["never differs", (row) => shareOf(row.same)],
  ["steps as dense", (row) => shareOf(row.agreement)],
  ["KL, nats", (row) => withBounds(row.divergence, (value) => value.toExponential(1))],
];

/** Columns of {@link losslessRows}, one per length. */
export function losslessColumns(lengths: readonly number[], trainedTokens: number | undefined): Columns<LosslessRow> {
  return [
    ["selection", (row) => row.name],
    ...lengths.map((length, index): Columns<LosslessRow>[number] => [
      lengthName(length, trainedTokens),
      ({ at }) => {
        const { answers, all } = at[index] as LosslessRow["at"][number];
        if (answers === undefined) return "no budget measured";
        const kept = `${pointsOf(answers.difference)} points at ${percent(answers.bytesShare)} of the bytes`;
        const lossless = all === undefined ? "lossless at none measured" : `lossless from ${all.budgetTokens}`;
        return `answers from ${answers.budgetTokens} tokens (${kept}); ${lossless}`;
      },
    ]),
  ];
}

/** A length with what a reader must know of it. */
export function lengthName(lengthTokens: number, trainedTokens: number | undefined): string {
  const isBeyond = trainedTokens !== undefined && lengthTokens > trainedTokens;
  return `${tokens(lengthTokens)}${isBeyond ? ` (beyond the ${tokens(trainedTokens)} of training)` : ""}`;
}

/** Lengths at which questions were asked, ascending. */
export function lengthsOf(tasks: readonly TaskFigure[]): number[] {
  return [...new Set(tasks.map(({ lengthTokens }) => lengthTokens))].sort((a, b) => a - b);
}

/** `tables.md`. `trainedTokens`: longer contexts are marked; `command`: how the figures were made. */
export function summaryOf(figures: Figures, options: { trainedTokens?: number; command: string }): string {
  const { tasks, fidelity, continuations } = figures;
  const lengths = lengthsOf(tasks);
  const budgets = budgetFigures(figures);
  const sections = [`    ${options.command}`];
  if (tasks.length > 0) {
    const rows = losslessRows(budgets, lengths);
    sections.push(
      "## From which budget on nothing is lost",
      `${LOSSLESS_RULE} Points of right answers against dense, in brackets the ends of the 95 % interval.`,
      markdownTable(losslessColumns(lengths, options.trainedTokens), rows),
    );
  }
  for (const length of lengths) {
    const here = budgets.filter(({ lengthTokens }) => lengthTokens === length);
    const steps = [...new Set(here.map(({ budgetTokens }) => budgetTokens))].sort((a, b) => a - b);
    const cell = (name: string, budget: number): string => {
      const found = here.find((row) => row.name === name && row.budgetTokens === budget);
      if (found === undefined) return "";
      const text = `${pointsOf(found.difference)} at ${percent(found.bytesShare)}`;
      return found.keepsAnswers ? `**${text}**` : text;
    };
    sections.push(
      `## Answers, ${lengthName(length, options.trainedTokens)}, ${Math.max(0, ...here.map(({ cases }) => cases))} questions of kinds that dense can answer`,
      markdownTable(
        [
          ["selection", (name: string) => name],
          ...steps.map((budget): Columns<string>[number] => [String(budget), (name) => cell(name, budget)]),
        ],
        [...new Set(here.map(({ name }) => name))],
      ),
      "Bold: answers are kept.",
      `## By kind, ${lengthName(length, options.trainedTokens)}`,
      kindTable(tasks.filter(({ lengthTokens }) => lengthTokens === length)),
    );
  }
  if (continuations.length > 0) {
    sections.push("## Long generation", markdownTable(continuationColumns, continuations));
  }
  const longest = lengths.at(-1) ?? Math.max(...fidelity.map(({ contextTokens }) => contextTokens));
  sections.push(`## One line each, ${tokens(longest)} tokens (README)`, glanceTable(figures, longest));
  return `${sections.join("\n\n")}\n`;
}

/** A row per kind; per selection its difference at each budget. */
function kindTable(tasks: readonly TaskFigure[]): string {
  const names = [...new Set(tasks.map(({ name }) => name))];
  const kinds = [...new Set(tasks.map(({ kind }) => kind))];
  const of = (kind: string) => tasks.filter((task) => task.kind === kind);
  const columns: Columns<string> = [
    ["kind", (kind) => kind],
    ["questions", (kind) => (of(kind)[0] as TaskFigure).cases],
    [
      "dense right",
      (kind) => {
        const { denseRight, cases, beyondDense } = of(kind)[0] as TaskFigure;
        return `${percent(denseRight / cases)}${beyondDense === undefined ? "" : `, ${beyondDense}`}`;
      },
    ],
    ...names.map((name): Columns<string>[number] => {
      const mine = tasks.filter((task) => task.name === name);
      const steps = [...new Set(mine.map(({ budgetTokens }) => budgetTokens))];
      const value = (kind: string, budget: number): string => {
        const found = mine.find((task) => task.kind === kind && task.budgetTokens === budget);
        return found === undefined ? "" : points(found.difference.mean);
      };
      return [`\`${name}\` at ${steps.join(", ")}`, (kind) => steps.map((budget) => value(kind, budget)).join(", ")];
    }),
  ];
  return markdownTable(columns, kinds);
}

/** Every selection at every budget behind one context: bytes, fidelity, answers, long generation, speed. */
function glanceTable(figures: Figures, contextTokens: number): string {
  const budgets = budgetFigures(figures);
  const of = <Row extends { name: string; budgetTokens: number }>(rows: readonly Row[], row: FidelityFigure) =>
    rows.find(({ name, budgetTokens }) => name === row.name && budgetTokens === row.budgetTokens);
  const answers = budgets.filter(({ lengthTokens }) => lengthTokens === contextTokens);
  const long = figures.continuations.filter((row) => row.contextTokens === contextTokens);
  const columns: Columns<FidelityFigure> = [
    ["selection", (row) => row.name],
    ["budget", (row) => row.budgetTokens],
    ["bytes a token, of dense's", (row) => percent(row.bytesShare)],
    ["attention kept", (row) => percent(row.mass.mean)],
    ["page recall", (row) => percent(row.pageRecall.mean)],
    ["KL, nats", (row) => row.text?.divergence.mean.toExponential(1) ?? ""],
    [
      "answers against dense, points",
      (row) => {
        const found = of(answers, row);
        return found === undefined ? "" : pointsOf(found.difference);
      },
    ],
    [
      "steps of a long generation as dense",
      (row) => {
        const found = of(long, row);
        return found === undefined ? "" : percent(found.agreement.mean);
      },
    ],
    ["ms a token", (row) => row.text?.stepMs.toFixed(2) ?? ""],
  ];
  const rows = figures.fidelity.filter((row) => row.contextTokens === contextTokens && row.isActive);
  const names = [...new Set(rows.map(({ name }) => name))];
  return markdownTable(
    filledColumns(columns, rows),
    names.flatMap((name) => rows.filter((row) => row.name === name)),
  );
}
