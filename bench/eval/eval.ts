/** `npm run eval`: which selection costs a model what, at which budget and context. */
import { mkdir, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { UsageError } from "../../cli/usage-error.ts";
import { type BenchContext, type BenchResult, defineBench } from "../bench.ts";
import { describeMachine } from "../machine.ts";
import { figuresOf } from "./figures.ts";
import { type EvalValues, evalFlags, type GivenValues, gridValues, refuseModelFlags } from "./flags.ts";
import { ablationLines, runAblations } from "./lab/ablation.ts";
import type { AblationName } from "./lab/ablation-names.ts";
import { pageOf } from "./page.ts";
import { modelIntro } from "./page-intro.ts";
import { runEval } from "./run.ts";
import { summaryOf } from "./summary.ts";
import { continuationsCsv, csvOf, fidelityCsv, fidelityLines, filledColumns, tasksCsv } from "./tables.ts";
import { runTraces } from "./trace/run-traces.ts";
import { traceIntro } from "./trace/trace-intro.ts";

/** The instrument. */
export const evalBench = defineBench({
  summary:
    "Judges selections on a model that the engine loads, or on attention that another system captured (--trace): how much of the attention they keep, at which bytes, layer by layer and\n" +
    "head by head; what the model then makes of a text; and whether it still answers questions. Writes --out/index.html (for people),\n" +
    "tables.md (the same in short), figures.json and CSV files. What the figures mean: docs/selection.md.",
  flags: evalFlags,
  run: (values, context) =>
    values.trace === undefined
      ? evaluate(gridValues(values), context)
      : evaluateTraces({ ...values, trace: values.trace }, context),
});

async function ablate(names: readonly AblationName[], values: EvalValues, context: BenchContext): Promise<BenchResult> {
  const folder = values.out as string;
  await mkdir(folder, { recursive: true });
  const figures = await runAblations(names, values, context);
  const data = { settings: values, ablations: figures, interrupted: context.signal.aborted };
  const path = join(folder, "ablations.json");
  await writeFile(path, `${JSON.stringify({ machine: describeMachine(), ...data }, undefined, 1)}\n`);
  for (const line of ablationLines(figures)) context.print(line);
  context.print(`figures: ${path}`);
  return { ok: true, data };
}

async function evaluate(values: EvalValues, context: BenchContext): Promise<BenchResult> {
  const folder = reportFolder(values);
  if (values.ablation !== undefined) return await ablate(values.ablation, values, context);
  const run = await runEval(values, folder, context);
  const figures = figuresOf(run);
  const { model, interrupted } = run;
  if (run.windows.length === 0) return { ok: true, data: { settings: values, model, interrupted } };
  const machine = describeMachine();
  const data = { settings: values, model, interrupted, ...figures };
  const page = { modelId: model.id, trainedTokens: values.trained };
  await writeReport(folder, {
    "figures.json": `${JSON.stringify({ machine, ...data }, undefined, 1)}\n`,
    "fidelity.csv": csvOf(fidelityCsv, figures.fidelity),
    "tasks.csv": csvOf(tasksCsv, figures.tasks),
    "continuations.csv": csvOf(continuationsCsv, figures.continuations),
    "tables.md": summaryOf(figures, { trainedTokens: values.trained, command: commandOf(values) }),
    "index.html": pageOf(figures, { ...page, intro: modelIntro(figures, { values, model, machine, interrupted }) }),
  });
  for (const line of fidelityLines(figures.fidelity)) context.print(line);
  context.print(`report: ${join(folder, "index.html")}`);
  return { ok: true, data };
}

async function evaluateTraces(
  values: GivenValues & { trace: readonly string[] },
  context: BenchContext,
): Promise<BenchResult> {
  refuseModelFlags(values, context.env);
  const folder = reportFolder(values);
  const run = await runTraces(values, folder, context);
  const { model, traces, interrupted, candidates, windows } = run;
  const { policies, budgets, kv, seed } = values;
  const settings = { trace: values.trace.map((path) => basename(path)), policies, budgets, kv, seed };
  if (windows.length === 0) return { ok: true, data: { settings, model, interrupted } };
  const figures = figuresOf({ candidates, windows, tasks: [], continuations: [] });
  const { fidelity } = figures;
  const machine = describeMachine();
  const data = { settings, model, traces, interrupted, fidelity };
  await writeReport(folder, {
    "figures.json": `${JSON.stringify({ machine, ...data }, undefined, 1)}\n`,
    "fidelity.csv": csvOf(filledColumns(fidelityCsv, fidelity), fidelity),
    "tables.md": summaryOf(figures, { command: commandLine(settings) }),
    "index.html": pageOf(figures, { modelId: model.id, intro: traceIntro(run, { kv, machine }) }),
  });
  for (const line of fidelityLines(fidelity)) context.print(line);
  context.print(`report: ${join(folder, "index.html")}`);
  return { ok: true, data };
}

/** @throws {UsageError} */
function reportFolder({ out }: Pick<GivenValues, "out">): string {
  if (out === undefined) throw new UsageError("--out is needed: a folder for the report");
  return out;
}

async function writeReport(folder: string, files: Readonly<Record<string, string>>): Promise<void> {
  for (const [name, text] of Object.entries(files)) await writeFile(join(folder, name), text);
}

/** The command that makes these figures. */
function commandOf(values: EvalValues): string {
  const { quick, out: _, ablation: __, ...rest } = values;
  return quick === "true" ? "npm run eval -- --out DIR --quick" : commandLine(rest);
}

function commandLine(values: Readonly<Record<string, unknown>>): string {
  const flags = Object.entries(values).flatMap(([name, value]) =>
    value === undefined ? [] : [`--${name} "${value}"`],
  );
  return `npm run eval -- --out DIR ${flags.join(" ")}`;
}
