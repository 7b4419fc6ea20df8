/** `quire calibrate MODEL`: measures what `auto` should choose on a model, and writes it beside the model. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type CalibrationRow,
  calibrationRows,
  decideCalibration,
  type SelectionPromise,
} from "../bench/eval/calibrate.ts";
import { figuresOf } from "../bench/eval/figures.ts";
import { evalFlags } from "../bench/eval/flags.ts";
import { runEval } from "../bench/eval/run.ts";
import { describeMachine } from "../bench/machine.ts";
import { renderTable } from "../bench/table.ts";
import { pathBeside } from "../engine/calibration.ts";
import { CALIBRATION_FILE, describeCalibration, UNCALIBRATED_SELECTION } from "../models/selection/calibration.ts";
import type { SelectionConfiguration } from "../protocol/generate.ts";
import type { Command } from "./command.ts";
import { describeFlags, type FlagValues, parseNumber, parseSelectionFlag, parseWithOperand } from "./flags.ts";
import { assertWritable, writeOutput } from "./output-file.ts";
import { listenForStop } from "./stop-request.ts";
import { UsageError } from "./usage-error.ts";

const { kinds, budgets, documents, tokens, text, device, threads, weights, kv } = evalFlags;

/** What is promised of the next token where nothing else is. */
const DIVERGENCE_MAX = 0.01;

const calibrateFlags = {
  selection: {
    help: "what auto is to choose where it does not stay dense",
    placeholder: "SELECTION",
    fallback: UNCALIBRATED_SELECTION,
    parse: parseSelectionFlag,
  },
  "divergence-max": {
    help: `promised KL of the next token from dense, upper end of its 95 % interval, in nats; ${DIVERGENCE_MAX} where nothing is promised of answers`,
    placeholder: "NATS",
    parse: parseNumber({ max: 10 }),
  },
  "answers-lost-max": {
    help: "promised share of answers lost against dense, upper end of its 95 % interval, in points of 100, over all kinds that dense can answer",
    placeholder: "POINTS",
    parse: parseNumber({ max: 100 }),
  },
  cases: {
    ...evalFlags.cases,
    help: "questions of each kind and context, where something is promised of answers",
    fallback: "96",
  },
  "case-file": { ...evalFlags["case-file"], fallback: "weights/house/dev-documents.jsonl.gz" },
  out: {
    ...evalFlags.out,
    help: "folder that keeps what was measured: a run that was stopped goes on there; without it nothing is kept",
  },
  contexts: {
    ...evalFlags.contexts,
    help: "tokens before a window, and of a conversation",
    fallback: "2048,4096,8192,16384",
  },
  ...{ kinds, budgets, documents, tokens, text, device, threads, weights, kv },
} as const;

type CalibrateValues = FlagValues<typeof calibrateFlags>;

/** The command. */
export const calibrateCommand: Command = {
  help: () =>
    `Usage: quire calibrate MODEL [flags]\n\n  MODEL    HF model folder or GGUF file; selection.json is written beside it\n\n${describeFlags(calibrateFlags)}\n`,
  async run(args) {
    const missing = "calibrate needs a model folder or GGUF file";
    const { operand: model, values } = parseWithOperand(calibrateFlags, args, { env: process.env, missing });
    await calibrate(model, values);
    return 0;
  },
};

async function calibrate(model: string, values: CalibrateValues): Promise<void> {
  const path = await pathBeside(model, CALIBRATION_FILE);
  await assertWritable(path);
  const folder = values.out ?? (await mkdtemp(join(tmpdir(), "quire-calibrate-")));
  try {
    const stop = listenForStop(process, () => performance.now());
    const life = new AbortController();
    void stop.requested.then(() => life.abort());
    const promise = promiseOf(values);
    const measured = {
      ...values,
      model,
      policies: [values.selection],
      cases: promise.answersLostMax === undefined ? 0 : values.cases,
      ablation: undefined,
      ...{ lengths: values.contexts, continued: [], continuations: 0, generated: 1 },
      ...{ "bytes-max": 1, trained: Math.max(...values.contexts) },
    };
    const run = await runEval({ ...measured, out: folder, seed: 1, quick: "false" }, folder, {
      print: (line) => void process.stdout.write(`${line}\n`),
      progress: (line) => void process.stderr.write(`${line}\n`),
      save: async () => {},
      signal: life.signal,
      insisted: stop.insisted,
      env: process.env,
    });
    if (run.interrupted) throw new UsageError("stopped; nothing was written");
    const figures = figuresOf(run);
    const rows = calibrationRows(figures, values.selection, promise);
    const { fingerprint } = run.model;
    const [selection] = run.resolved as [SelectionConfiguration];
    const calibration = decideCalibration(rows, { fingerprint, selection });
    const notes = { promise, measured: rows, model: run.model, machine: describeMachine() };
    await writeOutput(path, `${JSON.stringify({ ...calibration, ...notes }, undefined, 2)}\n`);
    process.stdout.write(
      `${[...table(rows), "", `auto: ${describeCalibration(calibration)}`, `written: ${path}`].join("\n")}\n`,
    );
  } finally {
    if (values.out === undefined) await rm(folder, { recursive: true });
  }
}

function promiseOf(values: CalibrateValues): SelectionPromise {
  const [divergenceMax, points] = [values["divergence-max"], values["answers-lost-max"]];
  if (points === undefined) return { divergenceMax: divergenceMax ?? DIVERGENCE_MAX };
  return { ...(divergenceMax === undefined ? {} : { divergenceMax }), answersLostMax: points / 100 };
}

function table(rows: readonly CalibrationRow[]): string[] {
  const number = (value: number | undefined, digits: number): string => value?.toFixed(digits) ?? "-";
  return renderTable<CalibrationRow>(
    [
      { header: "context", cell: (row) => String(row.contextTokens) },
      { header: "budget", cell: (row) => number(row.budgetTokens, 0) },
      { header: "KL nats", cell: (row) => number(row.divergence, 4) },
      { header: "lost %", cell: (row) => number(row.answersLost === undefined ? undefined : row.answersLost * 100, 2) },
      { header: "bytes %", cell: (row) => number(row.bytesShare === undefined ? undefined : row.bytesShare * 100, 1) },
      { header: "ms", cell: (row) => number(row.stepMs, 2) },
      { header: "dense ms", cell: (row) => number(row.denseStepMs, 2) },
      { header: "pays", align: "left", cell: (row) => (row.pays ? "yes" : "no") },
    ],
    rows,
  );
}
