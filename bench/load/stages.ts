/** Loads that are compared with each other: each on an engine of its own, which has seen nothing before, so that order does not matter. */
import { engineFlags } from "../../cli/engine-flags.ts";
import { type FlagValues, parseFlags, parseInteger } from "../../cli/flags.ts";
import { UsageError } from "../../cli/usage-error.ts";
import type { BenchContext, BenchResult } from "../bench.ts";
import type { DurationSummary } from "../histogram.ts";
import { type Column, renderTable } from "../table.ts";
import { type Bar, barLines } from "./bars.ts";
import { type LoadValues, loadFlags } from "./flags.ts";
import { measure, warmUp } from "./load.ts";
import { Measures } from "./measures.ts";
import { openTarget } from "./open-target.ts";
import type { Script } from "./workload.ts";

const { mix, seed, policy, budget, "max-tokens": maxTokens } = loadFlags;

/** Flags of the benchmarks that compare loads. */
export const stageFlags = {
  probe: {
    help: "seconds in which the engine is asked for as much as it can do",
    placeholder: "SECONDS",
    fallback: "20",
    parse: parseInteger({ min: 2, max: 600 }),
  },
  stage: {
    help: "seconds of each load that is compared",
    placeholder: "SECONDS",
    fallback: "60",
    parse: parseInteger({ min: 2, max: 3_600 }),
  },
  "first-token-objective": loadFlags["first-token-objective"],
  "per-token-objective": loadFlags["per-token-objective"],
  ...{ mix, seed, policy, budget, "max-tokens": maxTokens },
  ...engineFlags,
  // The other core of a small machine is the load generator's.
  threads: { ...engineFlags.threads, fallback: "1" },
} as const;

/** Their values. */
export type StageValues = FlagValues<typeof stageFlags>;

/** One load, and what came of it. */
export interface Stage {
  name: string;
  /** Sessions of one turn that arrive per second; undefined in a closed loop. */
  ratePerS?: number | undefined;
  turnsSent: number;
  turnsCompleted: number;
  refusals: number;
  failed: number;
  /** Completed per second, and of them those within the objectives. */
  turnsPerS: number;
  goodTurnsPerS: number;
  firstTokenMs: DurationSummary;
  retryAfter: { told: number; cameBack: number; admitted: number };
  /** By tenant, where there are several. */
  tenants: { name: string; firstTokenMs: DurationSummary; turnsCompleted: number; failed: number }[];
}

/** What is particular to one load. */
export interface StageOptions {
  name: string;
  values: StageValues;
  load: Partial<LoadValues>;
  context: BenchContext;
  /** Which of the sessions are played (default: all). */
  keep?: ((script: Script) => boolean) | undefined;
  /** Tenants that are counted together have the same number (default: each by itself). */
  groupOf?: ((tenant: number) => number) | undefined;
}

/** Turns before each load: the engine learns from them what its steps cost. */
const WARM_UP_TURNS = 8;
/** Where the search for a sustainable load begins, how much it goes down by, how often, and when it is content. */
const SUSTAINABLE_SHARE = 0.8;
const STEP_SHARE = 0.8;
const TRIES_MAX = 5;
const CONTENT_SHARE = 0.95;

/** Plays a load on a fresh engine. @throws {UsageError} for an engine that does not come up, or fails before any load is on it. */
export async function playStage({ name, values, load, context, keep, groupOf }: StageOptions): Promise<Stage> {
  const { probe: _probe, stage, ...shared } = values;
  const all: LoadValues = {
    ...parseFlags(loadFlags, [], {}),
    ...shared,
    ...{ target: "engine", turns: 1, think: 0, verify: 0, duration: stage, warmup: WARM_UP_TURNS },
    "concurrency-max": 10_000,
    ...load,
  };
  const opened = await openTarget(all, context);
  if (opened === undefined) throw new UsageError("stopped before there was anything to tell");
  const measures = new Measures(groupOf);
  try {
    await warmUp(opened.target, all, context.signal);
    context.progress(`${name}: ${all.users === undefined ? `${shown(all.rate)}/s` : `${all.users} users`}`);
    const { times } = await measure({ values: all, measures, target: opened.target, signal: context.signal, keep });
    if (context.signal.aborted) throw new UsageError("stopped before there was anything to compare");
    return stageOf(name, measures, { windowS: times.windowMs / 1000, values: all });
  } finally {
    await opened.close();
  }
}

function stageOf(
  name: string,
  measures: Measures,
  { windowS, values }: { windowS: number; values: LoadValues },
): Stage {
  const { window, retryAfter } = measures;
  const { turns, firstTokenMs } = measures.all.summary();
  const groups = [...measures.tenants].sort(([a], [b]) => a - b).map(([, group]) => group.summary());
  return {
    name,
    ratePerS: values.users === undefined ? values.rate : undefined,
    turnsSent: window.turnsSent,
    turnsCompleted: turns.completed,
    refusals: measures.refusals,
    failed: turns.failed - measures.refusals,
    turnsPerS: window.turnsCompleted / windowS,
    goodTurnsPerS: window.turnsWithinObjectives / windowS,
    firstTokenMs,
    retryAfter: { ...retryAfter },
    tenants: groups.map((group) => ({
      name: group.name,
      firstTokenMs: group.firstTokenMs,
      turnsCompleted: group.turns.completed,
      failed: group.turns.failed,
    })),
  };
}

/** What the engine does when it is asked for as much as it can: turns per second. */
export async function probeCapacity(values: StageValues, context: BenchContext): Promise<Stage> {
  const load = { users: 32, duration: values.probe };
  const stage = await playStage({ name: "as much as it can", values, load, context });
  if (stage.turnsPerS > 0) return stage;
  throw new UsageError("the engine completed no turn while it was asked for as much as it can do");
}

/** The largest load tried, from 0.8 of the capacity down, at which nobody is refused and 95 % of the turns meet the objectives. */
export async function findSustainable(values: StageValues, context: BenchContext): Promise<Stage[]> {
  const stages = [await probeCapacity(values, context)];
  let rate = stages[0]!.turnsPerS * SUSTAINABLE_SHARE;
  for (let tries = 1; ; tries++) {
    const stage = await playStage({ name: `load ${tries}`, values, load: { rate }, context });
    stages.push(stage);
    const isContent = stage.goodTurnsPerS >= CONTENT_SHARE * stage.turnsPerS && stage.turnsPerS > 0;
    if (isContent && stage.refusals + stage.failed === 0) return stages;
    if (tries === TRIES_MAX)
      throw new UsageError(`no load down to ${shown(rate)}/s is served within the objectives: the machine is too busy`);
    rate *= STEP_SHARE;
  }
}

const columns: readonly Column<Stage>[] = [
  { header: "load", align: "left", cell: ({ name }) => name },
  { header: "sessions/s", cell: ({ ratePerS }) => (ratePerS === undefined ? "-" : shown(ratePerS)) },
  { header: "sent", cell: ({ turnsSent }) => String(turnsSent) },
  { header: "completed", cell: ({ turnsCompleted }) => String(turnsCompleted) },
  { header: "refused", cell: ({ refusals }) => String(refusals) },
  { header: "failed", cell: ({ failed }) => String(failed) },
  { header: "turns/s", cell: ({ turnsPerS }) => shown(turnsPerS) },
  { header: "good/s", cell: ({ goodTurnsPerS }) => shown(goodTurnsPerS) },
  { header: "first token p50, ms", cell: ({ firstTokenMs }) => (firstTokenMs.p50 ?? Number.NaN).toFixed(1) },
  { header: "p95", cell: ({ firstTokenMs }) => (firstTokenMs.p95 ?? Number.NaN).toFixed(1) },
];

/** Prints the loads and the bars; the benchmark's result. */
export function stagesResult(
  { print }: BenchContext,
  { values, stages, bars }: { values: StageValues; stages: readonly Stage[]; bars: readonly Bar[] },
): BenchResult {
  for (const line of [...renderTable(columns, stages), "", ...barLines(bars)]) print(line);
  const isSound = stages.every(({ failed }) => failed === 0);
  if (!isSound) print("turns failed that were not refused for want of room");
  return { ok: isSound && bars.every(({ isMet }) => isMet), data: { settings: values, stages, bars } };
}

function shown(value: number): string {
  return value.toFixed(2);
}
