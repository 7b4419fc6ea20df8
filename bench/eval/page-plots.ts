/** Which plots the page has. */
import type { ContinuationFigure } from "./continuation-figures.ts";
import type { DepthFigure, FidelityFigure, TaskFigure } from "./figures.ts";
import { heatMap } from "./heat-map.ts";
import { linePlot, type PlotOptions, type PlotSeries } from "./line-plot.ts";
import { colorOf, percent, tokens, withBounds } from "./page-words.ts";
import { type Estimate, meanOf, pairedDifference } from "./statistics.ts";

interface Measure {
  title: string;
  yLabel: string;
  yScale: PlotOptions["yScale"];
  yRange?: readonly [number, number];
  reference?: number;
  of(row: FidelityFigure): Estimate | undefined;
  write(value: number): string;
}

const MEASURES: readonly Measure[] = [
  {
    title: "Attention mass kept",
    yLabel: "mass",
    yScale: "linear",
    yRange: [1, 1],
    of: (row) => row.mass,
    write: (v) => percent(v),
  },
  {
    title: "Page recall",
    yLabel: "of the oracle's pages",
    yScale: "linear",
    yRange: [0, 1],
    of: (row) => row.pageRecall,
    write: (v) => percent(v),
  },
  {
    title: "Output error",
    yLabel: "relative error",
    yScale: "log",
    of: (row) => row.outputError,
    write: (v) => percent(v),
  },
  {
    title: "Divergence from dense",
    yLabel: "KL, nats",
    yScale: "log",
    of: (row) => row.text?.divergence,
    write: (v) => v.toExponential(0),
  },
  {
    title: "Same first choice as dense",
    yLabel: "of tokens",
    yScale: "linear",
    yRange: [1, 1],
    of: (row) => row.text?.topAgreement,
    write: (v) => percent(v),
  },
  {
    title: "Perplexity over dense",
    yLabel: "growth",
    yScale: "linear",
    reference: 0,
    of: (row) => row.text?.perplexityGrowth,
    write: (v) => percent(v, true),
  },
];

/** One list per measure, one plot per context. */
export function fidelityPlots(fidelity: readonly FidelityFigure[], names: readonly string[]): string[][] {
  const contexts = [...new Set(fidelity.map(({ contextTokens }) => contextTokens))];
  return MEASURES.map((measure) =>
    contexts.map((contextTokens) => {
      const here = fidelity.filter((row) => row.contextTokens === contextTokens && row.isActive);
      const series = names.map((name, index): PlotSeries => {
        const points = here
          .filter((row) => row.name === name)
          .flatMap((row) => {
            const value = measure.of(row);
            if (value === undefined) return [];
            const tip = `${name}, budget ${row.budgetTokens}: ${withBounds(value, measure.write)} at ${percent(row.bytesShare)} of the bytes`;
            return { x: row.bytesShare, y: value.mean, low: value.low, high: value.high, tip };
          });
        return { ...colorOf(name, index), points };
      });
      if (series.every(({ points }) => points.length === 0)) return "";
      const { title, yLabel, yScale, yRange, reference, write } = measure;
      const options: PlotOptions = {
        title: `${title}, ${tokens(contextTokens)} tokens`,
        xLabel: "bytes of a step, of dense",
        yLabel,
        xScale: "log",
        yScale,
        ...(yRange === undefined ? {} : { yRange }),
        ...(reference === undefined ? {} : { reference }),
        xTick: (value) => `${Number((value * 100).toPrecision(2))} %`,
        yTick: write,
      };
      return linePlot(options, series);
    }),
  );
}

/** Mass and output error by layer; `contexts`: which ones these figures are of, in words. */
export function layerPlots(fidelity: readonly FidelityFigure[], names: readonly string[], contexts: string): string[] {
  const budgets = [...new Set(fidelity.map(({ budgetTokens }) => budgetTokens))];
  const budget = budgets[Math.floor((budgets.length - 1) / 2)] as number;
  const rows = fidelity.filter((row) => row.isActive && row.budgetTokens === budget);
  if (rows.length === 0) return [];
  const plot = (title: string, key: "massByHead" | "errorByHead"): string => {
    const series = names.map((name, index): PlotSeries => {
      const mine = rows.filter((row) => row.name === name);
      const layers = mine[0]?.[key].keys() ?? [];
      const points = [...layers].map((layer) => {
        const y = meanOf(mine.map((row) => meanOf(row[key][layer] as number[])));
        return { x: layer, y, tip: `${name}, layer ${layer}: ${percent(y)}` };
      });
      return { ...colorOf(name, index), points };
    });
    const write = (value: number): string => percent(value);
    const axis = { xLabel: `layer, contexts ${contexts}`, yLabel: "", xScale: "linear", yScale: "linear" } as const;
    const xTick = (value: number): string => (Number.isInteger(value) ? String(value) : "");
    return linePlot({ title: `${title}, budget ${budget}`, ...axis, xTick, yTick: write }, series);
  };
  return [plot("Attention mass by layer", "massByHead"), plot("Output error by layer", "errorByHead")];
}

/** Difference to dense against the budget, one plot per length, all kinds of questions together. */
export function taskPlots(tasks: readonly TaskFigure[], names: readonly string[]): string[] {
  const lengths = [...new Set(tasks.map(({ lengthTokens }) => lengthTokens))];
  return lengths.map((lengthTokens) => {
    const series = names.map((name, index): PlotSeries => {
      const mine = tasks.filter((task) => task.name === name && task.lengthTokens === lengthTokens);
      const budgets = [...new Set(mine.map(({ budgetTokens }) => budgetTokens))];
      const points = budgets.map((budgetTokens) => {
        const { mean, low, high } = pooled(mine.filter((task) => task.budgetTokens === budgetTokens));
        const tip = `${name}, budget ${budgetTokens}: ${percent(mean, true)}`;
        return { x: budgetTokens, y: mean, low, high, tip };
      });
      return { ...colorOf(name, index), points };
    });
    return linePlot(
      {
        title: `Right answers against dense, ${tokens(lengthTokens)} tokens`,
        xLabel: "budget, tokens",
        yLabel: "difference of shares",
        xScale: "log",
        yScale: "linear",
        reference: 0,
        xTicks: [...new Set(tasks.map(({ budgetTokens }) => budgetTokens))],
        xTick: String,
        yTick: (value) => percent(value, true),
      },
      series,
    );
  });
}

/** Kinds of questions together, as far as dense can answer them; every question counts once. */
function pooled(tasks: readonly TaskFigure[]): Estimate {
  const answered = tasks.filter(({ beyondDense }) => beyondDense === undefined);
  return pairedDifference(answered.flatMap(({ pairs }) => pairs));
}

/** Agreement along dense's text and the step of the first difference against bytes, one plot each per context. */
export function continuationPlots(continuations: readonly ContinuationFigure[], names: readonly string[]): string[] {
  const contexts = [...new Set(continuations.map(({ contextTokens }) => contextTokens))];
  const measures = [
    {
      ...{ title: "Steps as dense", yLabel: "of a long generation", write: (value: number) => percent(value) },
      of: (row: ContinuationFigure) => row.agreement,
    },
    {
      ...{ title: "First difference from dense", yLabel: "step", write: (value: number) => value.toFixed(0) },
      of: (row: ContinuationFigure) => row.divergedAt,
    },
  ];
  return measures.flatMap(({ title, yLabel, write, of }) =>
    contexts.map((contextTokens) => {
      const series = names.map((name, index): PlotSeries => {
        const mine = continuations.filter((row) => row.name === name && row.contextTokens === contextTokens);
        const points = mine.map((row) => {
          const { mean, low, high } = of(row);
          const tip = `${name}, budget ${row.budgetTokens}: ${withBounds(of(row), write)} at ${percent(row.bytesShare)} of the bytes`;
          return { x: row.bytesShare, y: mean, low, high, tip };
        });
        return { ...colorOf(name, index), points };
      });
      const options = {
        title: `${title}, ${tokens(contextTokens)} tokens`,
        xLabel: "bytes of a step, of dense",
        yLabel,
      };
      const xTick = (value: number): string => `${Number((value * 100).toPrecision(2))} %`;
      return linePlot({ ...options, xScale: "log", yScale: "linear", xTick, yTick: write }, series);
    }),
  );
}

/** Right answers by depth and length, one map per selection at the middle budget. */
export function depthMaps(depths: readonly DepthFigure[], names: readonly string[]): string[] {
  const lengths = [...new Set(depths.map(({ lengthTokens }) => lengthTokens))];
  const budgets = [...new Set(depths.map(({ budgetTokens }) => budgetTokens))];
  const budget = budgets[Math.floor((budgets.length - 1) / 2)];
  const shown = names.filter((name) => depths.some((row) => row.name === name));
  const map = (title: string, share: (row: DepthFigure) => number, rows: readonly DepthFigure[]): string => {
    const cell = (depth: number, lengthTokens: number) =>
      rows.filter((row) => row.depth === depth && row.lengthTokens === lengthTokens).map(share)[0];
    return heatMap({
      title,
      rowLabel: "depth",
      columnLabel: "tokens",
      rows: [0, 1, 2, 3, 4].map((depth) => `${depth * 20}-${depth * 20 + 20} %`),
      columns: lengths.map(tokens),
      values: [0, 1, 2, 3, 4].map((depth) => lengths.map((length) => cell(depth, length))),
      range: [1, 0],
      format: (value) => `${Math.round(value * 100)} %`,
    });
  };
  const rowsOf = (name: string) => depths.filter((row) => row.name === name && row.budgetTokens === budget);
  const dense = shown[0] === undefined ? [] : [map("dense", (row) => row.denseRight / row.cases, rowsOf(shown[0]))];
  return [...dense, ...shown.map((name) => map(`${name}, ${budget}`, (row) => row.right / row.cases, rowsOf(name)))];
}
