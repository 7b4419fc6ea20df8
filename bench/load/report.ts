/** The result of a run: as JSON, and as a table for people. */
import type { DurationSummary } from "../histogram.ts";
import { type Column, renderTable } from "../table.ts";
import { type Bar, barLines } from "./bars.ts";
import type { DriveTimes } from "./driver.ts";
import type { GroupSummary, Measures, SessionCounts, WrongAnswer } from "./measures.ts";
import type { MemoryTrend } from "./memory.ts";
import type { EngineAtRest } from "./rest.ts";
import type { Verification } from "./verify.ts";

/** What `--json` holds beside the head (`bench/README.md`). */
export interface LoadResult {
  measured: string;
  settings: Record<string, unknown>;
  /** By length of the first prompt: short, medium, long. */
  classes: GroupSummary[];
  /** First turns and later turns. */
  turns: GroupSummary[];
  /** By tenant, in the order of their weights. */
  tenants: GroupSummary[];
  totals: LoadTotals;
  /** What the run had to meet, where it was made for that. */
  bars: Bar[];
}

/** Everything together. */
export interface LoadTotals extends GroupSummary {
  windowS: number;
  elapsedS: number;
  interrupted: boolean;
  sessions: SessionCounts;
  /** Later turns of sessions that were cut short. */
  turnsNotSent: number;
  refusals: number;
  /** Turns that were neither answered nor refused for want of room, and those that a session had forgotten afterwards. */
  lostTurns: number;
  /** Refused clients that obeyed Retry-After: told to wait, came back, were not refused again. */
  retryAfter: { told: number; cameBack: number; admitted: number };
  cleanupFailures: number;
  /** Turns whose client went away. */
  aborts: number;
  /** Jain's index over the tenants' mean speeds to the first token (1 / mean): 1 where all feel the same. Undefined with one tenant. */
  fairness?: number | undefined;
  verification?: Verification | undefined;
  /** Engines that the run killed. */
  engineKills: number;
  /** Processes of the run's own. */
  memory: MemoryTrend[];
  /** Engines of the run's own, when nothing was asked of them any more. */
  enginesAtRest: EngineAtRest[];
  /** The first message of each error code. */
  errorExamples: Record<string, string>;
  /** At most the first 20. */
  wrongAnswers: WrongAnswer[];
  /** How late turns were sent, by the generator's own fault. */
  generatorLagMs: DurationSummary;
  /** Within the window of the arrivals: asked for, and achieved. */
  rates: {
    sessionsPerSPlanned: number;
    sessionsPerSOffered: number;
    turnsPerSSent: number;
    turnsPerSCompleted: number;
    /** Goodput: completed within the objectives. */
    goodTurnsPerS: number;
    completionTokensPerS: number;
  };
}

/** What {@link loadResult} reads. */
export interface ResultInput {
  measured: string;
  settings: Record<string, unknown>;
  measures: Measures;
  times: DriveTimes;
  ratePerS: number;
  interrupted: boolean;
  verification?: Verification | undefined;
  engineKills?: number | undefined;
  memory?: MemoryTrend[] | undefined;
  enginesAtRest?: EngineAtRest[] | undefined;
}

/** Sums a run up. */
export function loadResult({
  measured,
  settings,
  measures,
  times,
  ratePerS,
  interrupted,
  verification,
  engineKills = 0,
  memory = [],
  enginesAtRest = [],
}: ResultInput): LoadResult {
  const windowS = times.windowMs / 1000;
  const perS = (count: number): number => (windowS > 0 ? round(count / windowS, 3) : 0);
  const { sessions, window } = measures;
  const all = measures.all.summary();
  return {
    measured,
    settings,
    classes: [...measures.classes.values()].map((group) => group.summary()),
    turns: [measures.first.summary(), measures.later.summary()],
    tenants: tenantGroups(measures),
    bars: [],
    totals: {
      ...all,
      windowS: round(windowS, 3),
      elapsedS: round(times.elapsedMs / 1000, 3),
      interrupted,
      sessions: { ...sessions },
      turnsNotSent: measures.turnsNotSent,
      refusals: measures.refusals,
      lostTurns: all.turns.failed - measures.refusals,
      retryAfter: { ...measures.retryAfter },
      cleanupFailures: measures.cleanupFailures,
      aborts: measures.aborts,
      fairness: fairness(tenantGroups(measures)),
      verification,
      engineKills,
      memory,
      enginesAtRest,
      errorExamples: Object.fromEntries(measures.examples),
      wrongAnswers: [...measures.wrongAnswers],
      generatorLagMs: measures.lag.summary(),
      rates: {
        sessionsPerSPlanned: ratePerS,
        sessionsPerSOffered: perS(sessions.offered),
        turnsPerSSent: perS(window.turnsSent),
        turnsPerSCompleted: perS(window.turnsCompleted),
        goodTurnsPerS: perS(window.turnsWithinObjectives),
        completionTokensPerS: perS(window.completionTokens),
      },
    },
  };
}

function tenantGroups({ tenants }: Measures): GroupSummary[] {
  return [...tenants].sort(([a], [b]) => a - b).map(([, group]) => group.summary());
}

function fairness(groups: readonly GroupSummary[]): number | undefined {
  const speeds = groups.flatMap(({ firstTokenMs: { mean } }) => (mean === undefined ? [] : [1 / Math.max(mean, 1e-3)]));
  if (speeds.length < 2) return undefined;
  const sum = speeds.reduce((a, b) => a + b, 0);
  return round(sum ** 2 / (speeds.length * speeds.reduce((total, speed) => total + speed ** 2, 0)), 3);
}

/** Engines of which what they hold has leaked. A run that its user stopped does not wait for them, and what a busy one holds is in use. */
function judgedAtRest({ enginesAtRest, interrupted }: LoadTotals): LoadTotals["enginesAtRest"] {
  return interrupted ? enginesAtRest.filter(({ busy }) => busy === 0) : enginesAtRest;
}

/** Blocks and slots that engines still hold though nothing runs; undefined where none could be asked. */
export function leakedCount(totals: LoadTotals): number | undefined {
  const judged = judgedAtRest(totals);
  if (judged.length === 0) return undefined;
  return judged.reduce((sum, { leakedBlocks, leakedSlots }) => sum + leakedBlocks + leakedSlots, 0);
}

/** Whether nothing failed that should not have, no text was another one alone, nothing leaked, and something was measured at all. */
export function isFine({ totals, bars }: LoadResult, allowRefusals: boolean): boolean {
  if ((leakedCount(totals) ?? 0) > 0 || bars.some(({ isMet }) => !isMet)) return false;
  const unexpected = totals.lostTurns + (allowRefusals ? 0 : totals.refusals);
  const answered = totals.turns.completed + totals.refusals > 0;
  const wrongTexts = (totals.verification?.wrong.length ?? 0) + (totals.verification?.failed ?? 0);
  return unexpected === 0 && wrongTexts === 0 && (answered || totals.interrupted || totals.sessions.offered === 0);
}

/** The report's lines. */
export function reportLines(result: LoadResult): string[] {
  const { totals } = result;
  const tenants = result.tenants.length > 1 ? result.tenants : [];
  const groups = [...result.classes, ...result.turns, ...tenants, totals];
  return [
    `measured: ${result.measured}`,
    ...(totals.interrupted ? ["stopped early: what follows was measured until then"] : []),
    "",
    ...renderTable(latencyColumns, groups),
    "",
    ...renderTable(reuseColumns, groups),
    "",
    ...summaryLines(totals),
    ...verificationLines(totals),
    ...restLines(totals, result.settings.url === undefined),
    ...errorLines(totals),
    ...(result.bars.length === 0 ? [] : ["", ...barLines(result.bars)]),
  ];
}

const latencyColumns: Column<GroupSummary>[] = [
  { header: "latency, ms", align: "left", cell: ({ name }) => name },
  { header: "turns", cell: ({ turns }) => String(turns.completed) },
  { header: "first token p50", cell: ({ firstTokenMs }) => ms(firstTokenMs.p50) },
  { header: "p90", cell: ({ firstTokenMs }) => ms(firstTokenMs.p90) },
  { header: "p95", cell: ({ firstTokenMs }) => ms(firstTokenMs.p95) },
  { header: "p99", cell: ({ firstTokenMs }) => ms(firstTokenMs.p99) },
  { header: "between p50", cell: ({ betweenDeltasMs }) => ms(betweenDeltasMs.p50) },
  { header: "p95", cell: ({ betweenDeltasMs }) => ms(betweenDeltasMs.p95) },
  { header: "p99", cell: ({ betweenDeltasMs }) => ms(betweenDeltasMs.p99) },
  { header: "per token p50", cell: ({ perTokenMs }) => ms(perTokenMs.p50) },
  { header: "turn p50", cell: ({ turnMs }) => ms(turnMs.p50) },
  { header: "p95", cell: ({ turnMs }) => ms(turnMs.p95) },
  { header: "p99", cell: ({ turnMs }) => ms(turnMs.p99) },
];

const reuseColumns: Column<GroupSummary>[] = [
  { header: "turns and tokens", align: "left", cell: ({ name }) => name },
  { header: "completed", cell: ({ turns }) => String(turns.completed) },
  { header: "failed", cell: ({ turns }) => String(turns.failed) },
  { header: "prompt tokens", cell: ({ tokens }) => String(tokens.prompt) },
  { header: "reply tokens", cell: ({ tokens }) => String(tokens.completion) },
  { header: "cached %", cell: ({ cachedShare }) => percent(cachedShare) },
  { header: "device %", cell: ({ cachedShareBySource }) => percent(cachedShareBySource?.device) },
  { header: "host %", cell: ({ cachedShareBySource }) => percent(cachedShareBySource?.host) },
  { header: "store %", cell: ({ cachedShareBySource }) => percent(cachedShareBySource?.store) },
  { header: "right", cell: ({ answers }) => String(answers.right) },
  { header: "right %", cell: ({ answers, turns }) => percent(answers.right / turns.completed) },
];

function summaryLines({ rates, sessions, windowS, elapsedS, turnsNotSent, ...totals }: LoadTotals): string[] {
  const lag = totals.generatorLagMs;
  return [
    `sessions: ${sessions.offered} offered in ${windowS.toFixed(1)} s (${rates.sessionsPerSOffered.toFixed(2)}/s, planned ` +
      `${rates.sessionsPerSPlanned}/s), ${sessions.started} started, ${sessions.completed} completed, ` +
      `${sessions.cutShort} cut short, ${sessions.notSent} not sent (bound on concurrency)`,
    `turns: ${rates.turnsPerSSent.toFixed(2)}/s sent, ${rates.turnsPerSCompleted.toFixed(2)}/s completed, ` +
      `${turnsNotSent} not sent behind a failed one or the end; ${totals.turns.interrupted} interrupted`,
    `goodput: ${rates.goodTurnsPerS.toFixed(2)} turns/s within the objectives` +
      (totals.fairness === undefined ? "" : `; fairness between tenants ${totals.fairness.toFixed(3)}`) +
      (totals.aborts === 0 ? "" : `; ${totals.aborts} turns were left by their clients`) +
      (totals.engineKills === 0 ? "" : `; ${totals.engineKills} engines were killed`),
    ...retryLines(totals.retryAfter),
    `reply tokens: ${rates.completionTokensPerS.toFixed(1)}/s; the last turn ended after ${elapsedS.toFixed(1)} s`,
    `generator lag, ms: p50 ${ms(lag.p50)}, p99 ${ms(lag.p99)}, max ${ms(lag.max)} (part of the latencies)`,
    ...(totals.cleanupFailures > 0 ? [`sessions that could not be deleted: ${totals.cleanupFailures}`] : []),
  ];
}

function verificationLines({ verification }: LoadTotals): string[] {
  if (verification === undefined) return [];
  const { sessionsCompared, turnsCompared, failed, firstFailure, wrong } = verification;
  const examples = wrong
    .slice(0, 3)
    .map(
      ({ session, turn, loaded, alone }) =>
        `  session ${session}, turn ${turn}: ${JSON.stringify(loaded)} under load, ${JSON.stringify(alone)} alone`,
    );
  return [
    `texts: ${turnsCompared} turns of ${sessionsCompared} sessions compared with a run alone, ${wrong.length} WRONG, ${failed} sessions could not be played again`.replace(
      "0 WRONG",
      "none differs",
    ),
    ...(firstFailure === undefined ? [] : [`  ${firstFailure}`]),
    ...examples,
  ];
}

function retryLines({ told, cameBack, admitted }: LoadTotals["retryAfter"]): string[] {
  if (told === 0) return [];
  return [`Retry-After: ${told} were told to wait, ${cameBack} came back, ${admitted} of them were then taken in`];
}

function restLines(totals: LoadTotals, isOwn: boolean): string[] {
  const { enginesAtRest, memory } = totals;
  if (!isOwn) return ["memory, and what engines hold at rest: not judged, the target is not this run's own"];
  const judgedCount = judgedAtRest(totals).length;
  const busyCount = enginesAtRest.length - judgedCount;
  return [
    ...(judgedCount === 0 ? [] : [`at rest: ${leakedCount(totals)} leaked blocks and slots in ${judgedCount} engines`]),
    ...(busyCount === 0
      ? []
      : [`at rest: not judged in ${busyCount} engines, which were still busy when the run was stopped`]),
    ...memory.flatMap(memoryLine),
  ];
}

function memoryLine({ name, isCollected, peakBytes, growth, ...lowest }: MemoryTrend): string[] {
  const { firstThirdBytes, lastThirdBytes, firstThirdHeapBytes, lastThirdHeapBytes } = lowest;
  if (growth === undefined || firstThirdBytes === undefined || lastThirdBytes === undefined) return [];
  const how = isCollected ? "behind collections of garbage" : "as it was";
  const heap =
    firstThirdHeapBytes === undefined || lastThirdHeapBytes === undefined
      ? ""
      : `; heap in use ${mebibytes(firstThirdHeapBytes)} to ${mebibytes(lastThirdHeapBytes)} MiB`;
  return [
    `memory of ${name}, ${how}, lowest of the first and the last third behind the warm-up: ${mebibytes(firstThirdBytes)} to ` +
      `${mebibytes(lastThirdBytes)} MiB (${percent(growth)} %)${heap}; highest seen at any moment ${mebibytes(peakBytes)} MiB`,
  ];
}

function mebibytes(bytes: number): string {
  return (bytes / 2 ** 20).toFixed(1);
}

function errorLines({ errors, errorExamples }: LoadTotals): string[] {
  const codes = Object.entries(errors);
  if (codes.length === 0) return ["errors: none"];
  return ["errors:", ...codes.map(([code, count]) => `  ${count} ${code}: ${errorExamples[code] ?? ""}`)];
}

function ms(value: number | undefined): string {
  return value === undefined ? "-" : value.toFixed(1);
}

function percent(share: number | undefined): string {
  return share === undefined || Number.isNaN(share) ? "-" : (share * 100).toFixed(1);
}

function round(value: number, digits: number): number {
  return Math.round(value * 10 ** digits) / 10 ** digits;
}
