/** The report as one HTML page that needs nothing else: tables and plots with what they mean beside them. */
import { budgetFigures, LOSSLESS_RULE, losslessRows } from "./budgets.ts";
import type { ContinuationFigure } from "./continuation-figures.ts";
import type { FidelityFigure, Figures } from "./figures.ts";
import { heatMap } from "./heat-map.ts";
import { escapeText } from "./line-plot.ts";
import { continuationPlots, depthMaps, fidelityPlots, layerPlots, taskPlots } from "./page-plots.ts";
import { colorOf, namesOf, number, percent, percentOf, tokens } from "./page-words.ts";
import { continuationColumns, lengthsOf, losslessColumns } from "./summary.ts";
import { type Columns, filledColumns, htmlTable } from "./tables.ts";

/** What the page says beside the figures. */
export interface PageContext {
  /** What was judged. */
  modelId: string;
  /** HTML below the title: what was measured, on what, and what the reader must know of it. */
  intro: string;
  /** Longer contexts have plots of their own; absent: all are plotted together. */
  trainedTokens?: number;
}

const STYLE = `
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1240px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px; } th, td { padding: 3px 8px; text-align: right; border-bottom: 1px solid #eee; }
td { white-space: nowrap; } .words td { white-space: normal; text-align: left; } .words th { text-align: left; }
th:first-child, td:first-child { text-align: left; } td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 9em; max-width: 15em; } thead th { border-bottom: 2px solid #999; vertical-align: bottom; }
.plots { display: flex; flex-wrap: wrap; gap: 10px; } .legend span { display: inline-block; margin-right: 1.2em; }
.legend i { display: inline-block; width: 1.6em; height: 0; border-top: 3px solid; vertical-align: middle; margin-right: 0.4em; }
.title { font-size: 12px; font-weight: 600; } .tick { font-size: 10px; fill: #555; } .label { font-size: 11px; fill: #333; }
.grid { stroke: #e6e6e6; } .reference { stroke: #222; stroke-width: 1; } p { max-width: 75ch; } .warn { background: #fff3cd; padding: 0.6em; }
dt { font-weight: 600; margin-top: 0.6em; } dd { margin-left: 1.5em; max-width: 72ch; }`;

/** The page. */
export function pageOf(figures: Figures, context: PageContext): string {
  const { fidelity, tasks } = figures;
  const { modelId, trainedTokens } = context;
  const names = namesOf(fidelity);
  const sections = [
    context.intro,
    legend(names),
    section("At a glance", glanceText(figures), glanceTable(figures)),
    section(
      "Fidelity against bytes",
      "One plot per context. The further left a selection reaches a height, the cheaper it is. Bytes are those that a token's step reads " +
        "in all layers, summaries and keys read for scoring included, over those of a dense step. Bars are 95 % intervals.",
      ...plotRows(fidelityPlots(fidelity, names)),
    ),
    section(
      "Layer by layer",
      "Mean over heads and contexts at which something was left out, at the middle budget. A layer that falls behind is one that would " +
        "deserve a larger budget or dense attention.",
      ...layerRows(fidelity, names, trainedTokens),
      plots(headMaps(fidelity, names)),
    ),
    section(
      "Against the length of the context",
      "Attention mass kept at each context, at the middle budget: what a fixed budget loses as the context grows.",
      plots([lengthMap(fidelity, names)]),
    ),
  ];
  if (tasks.length > 0) {
    const lengths = lengthsOf(tasks);
    sections.push(
      section(
        "From which budget on nothing is lost",
        LOSSLESS_RULE,
        `<div class="words">${htmlTable(losslessColumns(lengths, trainedTokens), losslessRows(budgetFigures(figures), lengths))}</div>`,
      ),
      section(
        "Questions",
        "The same questions under every selection and densely, from the same KV of the document, which was read densely. Plotted is the difference of the shares of " +
          "right answers to dense, with its 95 % interval; on the line nothing is lost. What a model cannot answer densely says nothing " +
          "about a selection: where dense answers less than half, or no more than a toss of coins would, the kind is marked and counts in no sum.",
        plots(taskPlots(tasks, names)),
        folded("Every kind, selection and budget", htmlTable(taskColumns, tasks)),
        "<p>Share of right answers by length and by where in the passage the answer stands (0: at its front).</p>",
        plots(depthMaps(figures.depths, names)),
      ),
    );
  }
  if (figures.continuations.length > 0) sections.push(continuationSection(figures, names));
  sections.push(section("How to read it", "", glossary));
  const title = `Selections on ${modelId}`;
  return `<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>${escapeText(title)}</title><style>${STYLE}</style></head>
<body>\n<h1>${escapeText(title)}</h1>\n${sections.join("\n")}\n</body></html>\n`;
}

function continuationSection({ continuations }: Figures, names: readonly string[]): string {
  const [first] = continuations as [ContinuationFigure, ...ContinuationFigure[]];
  const contexts = [...new Set(continuations.map(({ contextTokens }) => contextTokens))];
  const fresh = contexts.map((context) => {
    const { freshShare } = continuations.find(({ contextTokens }) => contextTokens === context) as ContinuationFigure;
    return `${percent(freshShare)} at ${tokens(context)}`;
  });
  return section(
    "Long generation",
    `Behind each context dense writes ${first.tokenCount} tokens, greedily, with what it has said made less likely (penalty 1.3), since a small model repeats itself ` +
      `without end otherwise; of all runs of four tokens in its texts ${fresh.join(", ")} are new. Each selection reads the text along: up to the first difference its own text ` +
      "would have been the same. Means over texts; a text without a difference counts with its whole length.",
    plots(continuationPlots(continuations, names)),
    folded("Every selection and budget", htmlTable(continuationColumns, continuations)),
  );
}

function folded(title: string, content: string): string {
  return `<details><summary>${escapeText(title)}</summary>\n${content}\n</details>`;
}

/** Contexts beyond the training have plots of their own. */
function layerRows(
  fidelity: readonly FidelityFigure[],
  names: readonly string[],
  trainedTokens: number | undefined,
): string[] {
  if (trainedTokens === undefined) return [plots(layerPlots(fidelity, names, "together"))];
  const reach = (row: FidelityFigure) => row.contextTokens > trainedTokens;
  const [within, beyond] = [fidelity.filter((row) => !reach(row)), fidelity.filter(reach)];
  return [
    plots(layerPlots(within, names, `to ${tokens(trainedTokens)}`)),
    plots(layerPlots(beyond, names, `beyond ${tokens(trainedTokens)}`)),
  ];
}

function section(title: string, text: string, ...content: string[]): string {
  return `<h2>${escapeText(title)}</h2>\n${text === "" ? "" : `<p>${escapeText(text)}</p>\n`}${content.join("\n")}`;
}

function plots(items: readonly string[]): string {
  return `<div class="plots">${items.join("\n")}</div>`;
}

/** A row per measure; one row for all where each has one plot only. */
function plotRows(measures: readonly (readonly string[])[]): string[] {
  return measures.every((each) => each.length === 1) ? [plots(measures.flat())] : measures.map(plots);
}

function legend(names: readonly string[]): string {
  const item = (name: string, index: number) => {
    const { color, isDashed } = colorOf(name, index);
    const style = `border-color:${color}${isDashed ? ";border-top-style:dashed" : ""}`;
    return `<span><i style="${style}"></i>${escapeText(name)}</span>`;
  };
  return `<p class="legend">${names.map(item).join("")}</p>`;
}

/** The longest context behind which questions were asked as well, or the longest of all. */
function glanceContext({ fidelity, tasks }: Figures): number {
  const measured = fidelity.map(({ contextTokens }) => contextTokens);
  const asked = measured.filter((context) => tasks.some(({ lengthTokens }) => lengthTokens === context));
  return Math.max(...(asked.length > 0 ? asked : measured));
}

function glanceRows(figures: Figures): FidelityFigure[] {
  const { fidelity } = figures;
  const here = fidelity.filter(({ contextTokens }) => contextTokens === glanceContext(figures));
  return namesOf(fidelity).flatMap((name) => here.filter((row) => row.name === name));
}

function glanceTable(figures: Figures): string {
  const rows = glanceRows(figures);
  return htmlTable(filledColumns(glanceColumns(figures), rows), rows);
}

function glanceText(figures: Figures): string {
  const { fidelity, tasks } = figures;
  const context = glanceContext(figures);
  const dense = fidelity.find(({ contextTokens, text }) => contextTokens === context && text)?.text?.denseStepMs;
  const speed = dense === undefined ? "" : ` A dense step takes ${number(dense)} ms on this machine.`;
  const asked = tasks.length > 0 ? " at which questions were asked" : " measured";
  return `At ${tokens(context)} tokens of context, the longest${asked}.${speed} Intervals are 95 %.`;
}

function glanceColumns({ tasks }: Figures): Columns<FidelityFigure> {
  const answers = (row: FidelityFigure): string => {
    const same = tasks.filter((task) => task.name === row.name && task.budgetTokens === row.budgetTokens);
    const here = same.filter(({ lengthTokens }) => lengthTokens === row.contextTokens);
    const [cases, right, dense] = (["cases", "right", "denseRight"] as const).map((key) =>
      here.reduce((sum, task) => sum + task[key], 0),
    );
    return cases ? `${right} (${dense}) / ${cases}` : "";
  };
  const columns: Columns<FidelityFigure> = [
    ["selection", (row) => row.name],
    ["budget", (row) => row.budgetTokens],
    ["KiB a token", (row) => number((row.kvBytes + row.metadataBytes) / 1024)],
    ["of dense", (row) => percent(row.bytesShare)],
    ["of it metadata", (row) => percent(row.metadataBytes / (row.kvBytes + row.metadataBytes))],
    ["attention mass", (row) => percentOf(row.mass)],
    ["oracle's at equal bytes", (row) => percent(row.oracleMass.mean)],
    ["page recall", (row) => percentOf(row.pageRecall)],
    ["output error", (row) => percentOf(row.outputError)],
    ["KL, nats", (row) => (row.text ? row.text.divergence.mean.toExponential(1) : "")],
    ["top-1 as dense", (row) => (row.text ? percent(row.text.topAgreement.mean) : "")],
    ["perplexity", (row) => (row.text ? percentOf(row.text.perplexityGrowth, true) : "")],
    ["ms a token", (row) => (row.text ? number(row.text.stepMs) : "")],
  ];
  return tasks.length === 0 ? columns : [...columns, ["right (dense) answers", answers]];
}

const taskColumns: Columns<Figures["tasks"][number]> = [
  ["kind", (row) => row.kind],
  ["tokens", (row) => row.lengthTokens],
  ["selection", (row) => row.name],
  ["budget", (row) => row.budgetTokens],
  ["questions", (row) => row.cases],
  ["right", (row) => percent(row.right / row.cases)],
  ["dense", (row) => percent(row.denseRight / row.cases)],
  ["dense is", (row) => row.beyondDense ?? ""],
  ["difference", (row) => percentOf(row.difference, true)],
  ["bytes of dense", (row) => percent(row.bytesShare)],
];

function headMaps(fidelity: readonly FidelityFigure[], names: readonly string[]): string[] {
  const longest = Math.max(...fidelity.map(({ contextTokens }) => contextTokens));
  return names
    .filter((name) => name !== "random" && name !== "oracle")
    .flatMap((name) => {
      const rows = fidelity.filter((row) => row.name === name && row.contextTokens === longest && row.isActive);
      const row = rows[Math.floor((rows.length - 1) / 2)];
      if (row === undefined) return [];
      return heatMap({
        title: `${name}, ${row.budgetTokens}: output error, %`,
        rowLabel: "layer",
        columnLabel: `head, at ${tokens(longest)} tokens`,
        rows: row.errorByHead.map((_, layer) => String(layer)),
        columns: (row.errorByHead[0] ?? []).map((_, head) => String(head)),
        values: row.errorByHead.map((layer) => layer.map((value) => value * 100)),
        range: [0, 25],
        format: (value) => number(value),
      });
    });
}

function lengthMap(fidelity: readonly FidelityFigure[], names: readonly string[]): string {
  const contexts = [...new Set(fidelity.map(({ contextTokens }) => contextTokens))];
  const budgets = [...new Set(fidelity.map(({ budgetTokens }) => budgetTokens))];
  const budget = budgets[Math.floor((budgets.length - 1) / 2)] as number;
  const cell = (name: string, contextTokens: number) =>
    fidelity.find((row) => row.name === name && row.contextTokens === contextTokens && row.budgetTokens === budget);
  return heatMap({
    title: `Attention mass left out, %, at a budget of ${budget} tokens`,
    rowLabel: "selection",
    columnLabel: "tokens of context",
    rows: names.map((name) => name.slice(0, 15)),
    columns: contexts.map(tokens),
    values: names.map((name) => contexts.map((context) => 100 - (cell(name, context)?.mass.mean ?? Number.NaN) * 100)),
    range: [0, 20],
    format: (value) => number(value),
  });
}

const glossary = `<dl>
<dt>Attention mass</dt><dd>The share of the softmax weights of full attention that falls on the tokens a selection chose: mean over texts, rows,
layers and heads. Queries are those of a dense run, so a layer is not blamed for the one before it.</dd>
<dt>Oracle's at equal bytes</dt><dd>The mass of the best pages that could have been read for the same bytes. A selection pays for its summaries, so it
stays below this even when every page it takes is a right one.</dd>
<dt>Page recall</dt><dd>Of those best pages, the share that was chosen. A page of which some tokens are attended counts in part.</dd>
<dt>Output error</dt><dd>Distance of a head's output from that of full attention, over the latter's length.</dd>
<dt>KL, top-1, perplexity</dt><dd>The model reads the text token by token through the sparse path, in all layers at once, and its KV is its own.
KL is from dense to the selection; top-1 is how often the likeliest next token is dense's; perplexity is the growth over dense.</dd>
<dt>First difference, steps as dense</dt><dd>Of a long generation: the step from which on the selection's own text would be another one, and the share of all steps at
which, behind dense's words, it would say dense's next.</dd>
<dt>Intervals</dt><dd>95 %: Student's t over texts (rows of one text are not independent), or where there is one trace alone a bootstrap over its rows; for answers, paired differences after Agresti and Min,
widened by the design effect of asking many questions about one document.</dd>
<dt>Bytes</dt><dd>Counted by the device while it attends; a selection that had not run would show it here.</dd>
</dl>`;
