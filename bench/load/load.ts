/** `npm run bench -- load`: many conversations at once, open loop, against an edge or an engine. */
import { engineFlags } from "../../cli/engine-flags.ts";
import { type BenchContext, type BenchResult, defineBench } from "../bench.ts";
import { type Clock, systemClock } from "../clock.ts";
import { drive } from "./driver.ts";
import { checkTogether, type LoadValues, loadFlags } from "./flags.ts";
import { Measures } from "./measures.ts";
import { openTarget } from "./open-target.ts";
import { isFine, loadResult, reportLines } from "./report.ts";
import { drawScripts } from "./workload.ts";

const progressMs = 10_000;

/** The benchmark. */
export const loadBench = defineBench({
  summary:
    "Sessions arrive by chance (Poisson) and talk for some turns each: a passage with facts in it, then questions about them.\n" +
    "Latencies count from the moment at which a turn was meant to start. Exit code 1 when a turn failed. What the figures\n" +
    "mean and what JSON looks like: bench/README.md.",
  flags: loadFlags,
  run: runLoad,
});

async function runLoad(values: LoadValues, context: BenchContext): Promise<BenchResult> {
  checkTogether(values);
  const settings = settingsOf(values);
  context.print(`settings: ${settingsLine(settings)}`);
  const opened = await openTarget(values, context);
  if (opened === undefined) return { ok: true, data: { settings, interrupted: true } };
  const measures = new Measures();
  try {
    context.progress("measuring (Ctrl-C stops early and reports)");
    const times = await measure({ values, context, measures, target: opened.target, clock: systemClock });
    const interrupted = context.signal.aborted;
    const { description: measured } = opened.target;
    const result = loadResult({ measured, settings, measures, times, ratePerS: values.rate, interrupted });
    for (const line of reportLines(result)) context.print(line);
    return { ok: isFine(result, values["allow-429"] === "true"), data: { ...result } };
  } finally {
    await opened.close();
  }
}

interface MeasureOptions {
  values: LoadValues;
  context: BenchContext;
  measures: Measures;
  target: Parameters<typeof drive>[0]["target"];
  clock: Clock;
}

async function measure({ values, context, measures, target, clock }: MeasureOptions): ReturnType<typeof drive> {
  const startMs = clock.nowMs();
  const timer = setInterval(() => {
    const { offered, completed } = measures.sessions;
    const { turns } = measures.all.summary();
    const seconds = ((clock.nowMs() - startMs) / 1000).toFixed(0);
    context.progress(
      `${seconds} s: ${offered} sessions, ${completed} completed; ${turns.completed} turns, ${turns.failed} failed`,
    );
  }, progressMs);
  try {
    return await drive({
      scripts: drawScripts({
        seed: values.seed,
        ratePerS: values.rate,
        durationS: values.duration,
        turnsMax: values.turns,
        thinkMeanS: values.think,
        mix: values.mix,
        promptCharsMax: values["prompt-chars-max"],
      }),
      target,
      clock,
      measures,
      durationMs: values.duration * 1000,
      sessionsActiveMax: values["concurrency-max"],
      turnMsMax: values["turn-timeout"] * 1000,
      drainMs: values.drain * 1000,
      // What is this run's own vanishes with its folder; what is not, is left as it was.
      deleteSessions: values.url !== undefined,
      signal: context.signal,
    });
  } finally {
    clearInterval(timer);
  }
}

/** Everything that was asked for but the key; flags of an engine only where this run starts it. */
function settingsOf({ key: _secret, ...values }: LoadValues): Record<string, unknown> {
  const isOwn = values.url === undefined;
  return Object.fromEntries(Object.entries(values).filter(([name]) => isOwn || !Object.hasOwn(engineFlags, name)));
}

function settingsLine(settings: Record<string, unknown>): string {
  return Object.entries(settings)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name} ${value}`)
    .join(", ");
}
