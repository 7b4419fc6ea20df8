/** `npm run bench -- load`: many conversations at once, open or closed loop, against an edge or an engine. */
import { writeFile } from "node:fs/promises";
import { engineFlags } from "../../cli/engine-flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { type BenchContext, type BenchResult, defineBench } from "../bench.ts";
import { systemClock } from "../clock.ts";
import { seededRandom } from "../random.ts";
import type { Bar } from "./bars.ts";
import { drive } from "./driver.ts";
import { checkTogether, type LoadValues, loadFlags, verifiedCount } from "./flags.ts";
import { Measures } from "./measures.ts";
import { type OpenTarget, openTarget } from "./open-target.ts";
import { loadPage } from "./page.ts";
import { isFine, type LoadResult, loadResult, reportLines } from "./report.ts";
import { engineRest } from "./rest.ts";
import type { Target } from "./target.ts";
import { drawProse } from "./text.ts";
import { chooseSessions, type PlayedSession, verify } from "./verify.ts";
import { watchRun } from "./watch.ts";
import { drawEndlessly, drawScripts, type Script, type WorkloadSettings } from "./workload.ts";

/** Sessions of the run are far below, so that no text of the warm-up is theirs. */
const warmUpStream = 0x8000_0000;

/** The benchmark. */
export const loadBench = defineBench({
  summary:
    "Sessions arrive by chance (Poisson) and talk for some turns each: a passage with facts in it, then questions about them.\n" +
    "Latencies count from the moment at which a turn was meant to start. Exit code 1 when a turn failed. What the figures\n" +
    "mean and what JSON looks like: bench/README.md.",
  flags: loadFlags,
  run: (values, context) => runLoad(values, context),
});

/** Plays one load, reports it, and writes its page; `judge` says what the result has to meet. */
export async function runLoad(
  values: LoadValues,
  context: BenchContext,
  judge: (result: LoadResult) => Bar[] = () => [],
): Promise<BenchResult> {
  checkTogether(values);
  const settings = settingsOf(values);
  context.print(`settings: ${settingsLine(settings)}`);
  const opened = await openTarget(values, context);
  if (opened === undefined) return { ok: true, data: { settings, interrupted: true } };
  try {
    const seen = await playLoad(values, opened, context);
    const result = loadResult({ ...seen.figures, settings, ratePerS: values.rate });
    result.bars = judge(result);
    const lines = reportLines(result);
    for (const line of lines) context.print(line);
    if (values.html !== undefined) {
      await writeFile(values.html, loadPage(result, lines, seen.samples));
      context.print(`page: ${values.html}`);
    }
    return {
      ok: isFine(result, values["allow-429"] === "true"),
      data: { ...result, samples: seen.samples, memoryParts: seen.memoryParts },
    };
  } finally {
    await opened.close();
  }
}

/** Warm-up, load, the same texts alone, and what is left when all is over. */
async function playLoad(values: LoadValues, opened: OpenTarget, context: BenchContext) {
  const { target, own } = opened;
  const measures = new Measures();
  await warmUp(target, values, context.signal);
  if (context.terminal === undefined) context.progress("measuring (Ctrl-C stops early and reports)");
  const durationMs = values.duration * 1000;
  const generator = { name: "generator", pid: process.pid };
  const processes = () => (own === undefined ? [] : [...own.processes(), generator]);
  const engines = () => own?.engines() ?? [];
  const collectMs = collectMsOf(values);
  const watch = watchRun({ measures, clock: systemClock, durationMs, processes, collectMs, engines, context });
  const killer = killEvery(values["kill-every"], opened, watch.note);
  try {
    const { times, played } = await measure({ values, measures, target, signal: context.signal });
    watch.stop();
    const engineKills = await killer.end();
    const interrupted = context.signal.aborted;
    const verification = await verified(target, played, values, context);
    const enginesAtRest = own === undefined ? [] : await engineRest(engines(), context.signal);
    const memory = watch.memory.trends(times.windowMs / 1000);
    const { description: measured } = target;
    const figures = { measured, measures, times, interrupted, verification, engineKills, memory, enginesAtRest };
    return { figures, samples: watch.samples, memoryParts: watch.parts };
  } finally {
    watch.stop();
    await killer.end();
  }
}

/** Thirds of the run have enough samples also where it is short: a third of what is behind the warm-up gets eight. */
function collectMsOf({ collect, duration }: LoadValues): number {
  return 1000 * Math.min(collect, Math.max(1, duration / 30));
}

/** Kills an engine every so often while the run lasts; how often is known at the end. */
function killEvery(seconds: number | undefined, { own }: OpenTarget, note: (line: string) => void) {
  let count = 0;
  let last: Promise<void> | undefined;
  const kill = (): void => {
    // One at a time: the others stand in for it.
    if (last !== undefined) return;
    count += 1;
    note(`killing an engine (${count})`);
    last = Promise.resolve(own?.killOne())
      .catch((error: unknown) => note(`an engine did not come back: ${(error as Error).message}`))
      .finally(() => {
        last = undefined;
      });
  };
  const timer = seconds === undefined ? undefined : setInterval(kill, seconds * 1000);
  return {
    async end(): Promise<number> {
      clearInterval(timer);
      await last;
      return count;
    },
  };
}

/** What a default-mode turn says may depend on which pages were there in time; only exact turns are compared. */
async function verified(
  target: Target,
  played: readonly PlayedSession[],
  values: LoadValues,
  { signal, progress }: BenchContext,
) {
  const isComparable = verifiedCount(values) > 0 && values.exact !== "false" && played.length > 0 && !signal.aborted;
  if (!isComparable) return undefined;
  const chosen = chooseSessions(played, verifiedCount(values));
  progress(`playing ${chosen.length} sessions again, alone`);
  return verify(target, chosen, { turnMsMax: values["turn-timeout"] * 1000, signal });
}

/**
 * What is loaded or compiled at the first request is no part of the figures.
 * @throws {UsageError} for a target that fails before any load is on it.
 */
export async function warmUp(target: Target, values: LoadValues, stop: AbortSignal): Promise<void> {
  for (let index = 0; index < values.warmup && !stop.aborted; index++) {
    const conversation = target.openConversation();
    const text = `${drawProse(seededRandom(values.seed, warmUpStream + index), 600)} What is the code of Badoru?`;
    const deadline = AbortSignal.timeout(values["turn-timeout"] * 1000);
    try {
      await conversation.send({ text, signal: AbortSignal.any([stop, deadline]), onText: () => {} });
      if (values.url !== undefined) await conversation.end(AbortSignal.any([stop, deadline]));
    } catch (error) {
      if (stop.aborted) return;
      throw new UsageError(`the warm-up failed: ${(error as Error).message}`);
    }
  }
}

/** What a load is played with. */
export interface MeasureOptions {
  values: LoadValues;
  measures: Measures;
  target: Target;
  signal: AbortSignal;
  /** Which of the sessions are played; without it all. Closed loops play all. */
  keep?: ((script: Script) => boolean) | undefined;
}

/** Plays the load of the flags; resolves to its times and the sessions that came to answers. */
export async function measure({ values, measures, target, signal, keep = () => true }: MeasureOptions) {
  const workload = workloadOf(values);
  const played: PlayedSession[] = [];
  const times = await drive({
    scripts: values.users === undefined ? kept(drawScripts(workload), keep) : drawEndlessly(workload),
    users: values.users,
    objectives: { firstTokenMs: values["first-token-objective"], perTokenMs: values["per-token-objective"] },
    returnsMax: values["obey-retry-after"],
    onSession: (script, replies) => played.push({ script, replies }),
    ...{ target, clock: systemClock, measures },
    durationMs: values.duration * 1000,
    sessionsActiveMax: values["concurrency-max"],
    turnMsMax: values["turn-timeout"] * 1000,
    drainMs: values.drain * 1000,
    // What is this run's own vanishes with its folder; what is not, is left as it was.
    deleteSessions: values.url !== undefined,
    signal,
  });
  return { times, played };
}

function* kept(scripts: Iterable<Script>, keep: (script: Script) => boolean): Generator<Script> {
  for (const script of scripts) if (keep(script)) yield script;
}

function workloadOf(values: LoadValues): WorkloadSettings {
  return {
    seed: values.seed,
    ratePerS: values.rate,
    durationS: values.duration,
    turnsMax: values.turns,
    thinkMeanS: values.think,
    mix: values.mix,
    promptCharsMax: values["prompt-chars-max"],
    burstPeriodS: values.bursts,
    tenants: values.tenants,
    abortShare: values.abort,
    slowShare: values.slow,
  };
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
