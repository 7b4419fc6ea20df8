/** `npm run bench -- batching`: tokens per second of many sequences that decode together, against one, and where the time goes. */
import { parseInteger } from "../../cli/flags.ts";
import type { ModelRunner } from "../../models/contract.ts";
import type { SelectionRequest } from "../../protocol/generate.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { modelFlags, parseList } from "../decode/flags.ts";
import { type Column, renderTable } from "../table.ts";
import { type BenchEngine, openBenchEngine, pause, randomTokens, startTurn } from "./bench-engine.ts";

const flags = {
  ...modelFlags,
  counts: {
    help: "sequences that decode together, between commas; the first is what the others are compared with",
    placeholder: "LIST",
    fallback: "1,4,16",
    parse: parseList(parseInteger({ min: 1, max: 32 })),
  },
  context: {
    help: "tokens of each prompt",
    placeholder: "COUNT",
    fallback: "256",
    parse: parseInteger({ min: 16, max: 16_384 }),
  },
  budget: {
    help: "tokens that decoding attends to (quest)",
    placeholder: "COUNT",
    fallback: "1024",
    parse: parseInteger({ min: 128, max: 16_384 }),
  },
  seconds: {
    help: "seconds of decoding per count",
    placeholder: "COUNT",
    fallback: "5",
    parse: parseInteger({ min: 1, max: 600 }),
  },
} as const;

/** One count of sequences. */
interface BatchingRow {
  sequenceCount: number;
  tokensPerS: number;
  /** Against the first row. */
  ratio: number;
  /** Of a step: in the device, and between two steps (scheduling, sampling's results, events, I/O). */
  deviceMsPerStep: number;
  hostMsPerStep: number;
}

const columns: readonly Column<BatchingRow>[] = [
  { header: "sequences", cell: (row) => String(row.sequenceCount) },
  { header: "tokens/s", cell: (row) => row.tokensPerS.toFixed(1) },
  { header: "ratio", cell: (row) => row.ratio.toFixed(2) },
  { header: "device ms/step", cell: (row) => row.deviceMsPerStep.toFixed(2) },
  { header: "host ms/step", cell: (row) => row.hostMsPerStep.toFixed(2) },
];

/** The benchmark as the registry names it. */
export const batchingBench = defineBench({
  summary:
    "Decodes with different numbers of sequences at once: tokens per second, and what the engine adds to the device's steps.",
  flags,
  async run(values, context) {
    const most = Math.max(...values.counts);
    // The first to be read decodes while the last is read, and must not come to its end before.
    const replyTokens = 4096 + 512 * values.seconds;
    const poolTokens = most * (values.context + replyTokens + 64);
    const bench = await openBenchEngine({ ...values, poolTokens });
    try {
      const timer = timedSteps(bench.runner);
      const rows: BatchingRow[] = [];
      for (const sequenceCount of values.counts) {
        if (context.signal.aborted) break;
        const measured = await measure(bench, { ...values, sequenceCount, replyTokens, timer }, context);
        const ratio = measured.tokensPerS / (rows[0]?.tokensPerS ?? measured.tokensPerS);
        rows.push({ sequenceCount, ratio, ...measured });
        context.progress(renderTable(columns, rows.slice(-1))[1]!);
      }
      const device = bench.device.report.description;
      context.print(`${values.model ?? values.shape}, ${device}, prompts of ${values.context} tokens`);
      for (const line of renderTable(columns, rows)) context.print(line);
      return { ok: true, data: { settings: values, device, rows } };
    } finally {
      await bench.close();
    }
  },
});

interface StepTimer {
  stepCount: number;
  deviceMs: number;
}

/** Counts the steps of a runner and their time. */
function timedSteps(runner: ModelRunner): StepTimer {
  const timer: StepTimer = { stepCount: 0, deviceMs: 0 };
  const step = runner.step.bind(runner);
  runner.step = async (sequences) => {
    const startMs = performance.now();
    const results = await step(sequences);
    timer.stepCount += 1;
    timer.deviceMs += performance.now() - startMs;
    return results;
  };
  return timer;
}

interface Case {
  sequenceCount: number;
  context: number;
  budget: number;
  seconds: number;
  seed: number;
  replyTokens: number;
  timer: StepTimer;
}

async function measure(
  bench: BenchEngine,
  item: Case,
  context: BenchContext,
): Promise<Omit<BatchingRow, "sequenceCount" | "ratio">> {
  const selection: SelectionRequest = { policy: "quest", budgetTokens: item.budget, exact: true };
  const turns = Array.from({ length: item.sequenceCount }, (_, index) =>
    startTurn(bench, {
      tokens: randomTokens(bench.config, item.seed + 100 * item.sequenceCount + index, item.context),
      maxTokens: item.replyTokens,
      selection,
    }),
  );
  try {
    while (turns.some(({ tokensMs }) => tokensMs.length < 8) && !context.signal.aborted) await pause(5, context.signal);
    const before = { ...item.timer };
    const startMs = performance.now();
    const tokensBefore = turns.reduce((sum, { tokensMs }) => sum + tokensMs.length, 0);
    await Promise.race([pause(item.seconds * 1000, context.signal), ...turns.map(({ ended }) => ended)]);
    const ms = performance.now() - startMs;
    const tokens = turns.reduce((sum, { tokensMs }) => sum + tokensMs.length, 0) - tokensBefore;
    const steps = item.timer.stepCount - before.stepCount;
    const deviceMs = item.timer.deviceMs - before.deviceMs;
    return {
      tokensPerS: (1000 * tokens) / ms,
      deviceMsPerStep: deviceMs / steps,
      hostMsPerStep: (ms - deviceMs) / steps,
    };
  } finally {
    for (const turn of turns) turn.cancel();
    await Promise.allSettled(turns.map(({ ended }) => ended));
  }
}
