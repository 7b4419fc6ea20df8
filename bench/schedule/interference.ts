/** `npm run bench -- interference`: what those who stream feel of a long prompt, and what the prompt pays for it. */
import { parseInteger } from "../../cli/flags.ts";
import type { SelectionRequest } from "../../protocol/generate.ts";
import { type BenchContext, defineBench } from "../bench.ts";
import { modelFlags, parseBudgetTokens } from "../decode/flags.ts";
import {
  type BenchEngine,
  gapsBetween,
  openBenchEngine,
  pause,
  percentileMs,
  type RunningTurn,
  randomTokens,
  startTurn,
} from "./bench-engine.ts";

const integer = (help: string, fallback: string, range: { min: number; max: number }) =>
  ({ help, placeholder: "COUNT", fallback, parse: parseInteger(range) }) as const;

const flags = {
  ...modelFlags,
  streams: integer("sequences that decode", "4", { min: 1, max: 16 }),
  "stream-tokens": integer("tokens of their prompts", "512", { min: 16, max: 16_384 }),
  budget: {
    help: "tokens that their decoding attends to (quest)",
    placeholder: "TOKENS",
    fallback: "1024",
    parse: parseBudgetTokens,
  },
  prompt: integer("tokens of the prompt beside them, read densely", "16384", { min: 256, max: 65_536 }),
  quiet: integer("seconds of decoding without it", "10", { min: 1, max: 600 }),
  "prompt-seconds": integer("give the prompt up after so long (its deepest rows are then not seen)", "900", {
    min: 1,
    max: 3_600,
  }),
} as const;

/** Longer than any run: nothing ends by itself. */
const STREAM_TOKENS_MAX = 24_000;

/** The benchmark as the registry names it. */
export const interferenceBench = defineBench({
  summary:
    "Sequences decode, then a long prompt is prefilled beside them: times between their tokens without and with it.\n" +
    "Bars: p95 with at most twice p95 without; the house shape: at most that or 20 ms.",
  flags,
  async run(values, context) {
    const poolTokens = values.streams * (values["stream-tokens"] + STREAM_TOKENS_MAX) + values.prompt + 64;
    const bench = await openBenchEngine({ ...values, poolTokens, settings: { turnMsMax: 7_200_000 } });
    try {
      const result = await measure(bench, values, context);
      const { withoutMs, withMs, isWhole, promptMs } = result;
      context.print(`${values.model ?? values.shape}, ${bench.device.report.description}, ${values.streams} decoding`);
      context.print(
        `between tokens without: p50 ${ms(withoutMs.p50)}  p95 ${ms(withoutMs.p95)}  max ${ms(withoutMs.max)}`,
      );
      context.print(`while prefilled:        p50 ${ms(withMs.p50)}  p95 ${ms(withMs.p95)}  max ${ms(withMs.max)}`);
      const outcome = isWhole
        ? `${values.prompt} prompt tokens at ${((1000 * values.prompt) / promptMs).toFixed(0)}/s`
        : "the prompt was given up";
      context.print(
        `p95 with / without: ${result.p95Ratio.toFixed(2)}; ${outcome} after ${(promptMs / 1000).toFixed(1)} s`,
      );
      return { ok: true, data: { settings: values, device: bench.device.report.description, ...result } };
    } finally {
      await bench.close();
    }
  },
});

interface Values {
  streams: number;
  "stream-tokens": number;
  budget: number;
  prompt: number;
  quiet: number;
  "prompt-seconds": number;
  seed: number;
}

async function measure(bench: BenchEngine, values: Values, context: BenchContext) {
  const selection: SelectionRequest = { policy: "quest", budgetTokens: values.budget, exact: true };
  const streams = Array.from({ length: values.streams }, (_, index) =>
    startTurn(bench, {
      tokens: randomTokens(bench.config, values.seed + index, values["stream-tokens"]),
      maxTokens: STREAM_TOKENS_MAX,
      selection,
    }),
  );
  try {
    while (streams.some(({ tokensMs }) => tokensMs.length < 8) && !context.signal.aborted)
      await pause(20, context.signal);
    const quietMs = performance.now();
    context.progress(`${values.streams} sequences decode`);
    await pause(values.quiet * 1000, context.signal);
    const promptFromMs = performance.now();
    const prompt = startTurn(bench, {
      tokens: randomTokens(bench.config, values.seed + 1000, values.prompt),
      maxTokens: 1,
      selection: { policy: "dense", budgetTokens: 0, exact: true },
    });
    const isWhole = await prefilled(prompt, values, context);
    const promptToMs = performance.now();
    const withoutMs = summary(gapsBetween(streams, quietMs, promptFromMs));
    const withMs = summary(gapsBetween(streams, promptFromMs, promptToMs));
    const promptMs = promptToMs - promptFromMs;
    return { withoutMs, withMs, p95Ratio: withMs.p95 / withoutMs.p95, isWhole, promptMs };
  } finally {
    for (const stream of streams) stream.cancel();
    await Promise.allSettled(streams.map((stream) => stream.ended));
  }
}

/** Waits for the prompt's end, or gives it up: false. */
async function prefilled(prompt: RunningTurn, values: Values, context: BenchContext): Promise<boolean> {
  const timer = setTimeout(() => prompt.cancel(), values["prompt-seconds"] * 1000);
  context.signal.addEventListener("abort", () => prompt.cancel(), { once: true });
  if (context.signal.aborted) prompt.cancel();
  try {
    return (await prompt.ended).reason !== "cancelled";
  } finally {
    clearTimeout(timer);
  }
}

function summary(values: readonly number[]) {
  return {
    count: values.length,
    ...{ p50: percentileMs(values, 50), p95: percentileMs(values, 95), p99: percentileMs(values, 99) },
    max: Math.max(...values),
  };
}

function ms(value: number): string {
  return `${value.toFixed(1)} ms`;
}
