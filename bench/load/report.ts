/** The result of a run: as JSON, and as a table for people. */
import type { DurationSummary } from "../histogram.ts";
import { type Column, renderTable } from "../table.ts";
import type { DriveTimes } from "./driver.ts";
import type { GroupSummary, Measures, SessionCounts, WrongAnswer } from "./measures.ts";

/** What `--json` holds beside the head (`bench/README.md`). */
export interface LoadResult {
  measured: string;
  settings: Record<string, unknown>;
  /** By length of the first prompt: short, medium, long. */
  classes: GroupSummary[];
  /** First turns and later turns. */
  turns: GroupSummary[];
  totals: LoadTotals;
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
  cleanupFailures: number;
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
}

/** Sums a run up. */
export function loadResult({ measured, settings, measures, times, ratePerS, interrupted }: ResultInput): LoadResult {
  const windowS = times.windowMs / 1000;
  const perS = (count: number): number => (windowS > 0 ? round(count / windowS, 3) : 0);
  const { sessions, window } = measures;
  return {
    measured,
    settings,
    classes: [...measures.classes.values()].map((group) => group.summary()),
    turns: [measures.first.summary(), measures.later.summary()],
    totals: {
      ...measures.all.summary(),
      windowS: round(windowS, 3),
      elapsedS: round(times.elapsedMs / 1000, 3),
      interrupted,
      sessions: { ...sessions },
      turnsNotSent: measures.turnsNotSent,
      refusals: measures.refusals,
      cleanupFailures: measures.cleanupFailures,
      errorExamples: Object.fromEntries(measures.examples),
      wrongAnswers: [...measures.wrongAnswers],
      generatorLagMs: measures.lag.summary(),
      rates: {
        sessionsPerSPlanned: ratePerS,
        sessionsPerSOffered: perS(sessions.offered),
        turnsPerSSent: perS(window.turnsSent),
        turnsPerSCompleted: perS(window.turnsCompleted),
        completionTokensPerS: perS(window.completionTokens),
      },
    },
  };
}

/** Whether nothing failed that should not have, and something was measured at all. */
export function isFine({ totals }: LoadResult, allowRefusals: boolean): boolean {
  const unexpected = totals.turns.failed - (allowRefusals ? totals.refusals : 0);
  const answered = totals.turns.completed + totals.refusals > 0;
  return unexpected === 0 && (answered || totals.interrupted || totals.sessions.offered === 0);
}

/** The report's lines. */
export function reportLines(result: LoadResult): string[] {
  const { totals } = result;
  const groups = [...result.classes, ...result.turns, totals];
  return [
    `measured: ${result.measured}`,
    ...(totals.interrupted ? ["stopped early: what follows was measured until then"] : []),
    "",
    ...renderTable(latencyColumns, groups),
    "",
    ...renderTable(reuseColumns, groups),
    "",
    ...summaryLines(totals),
    ...errorLines(totals),
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
    `reply tokens: ${rates.completionTokensPerS.toFixed(1)}/s; the last turn ended after ${elapsedS.toFixed(1)} s`,
    `generator lag, ms: p50 ${ms(lag.p50)}, p99 ${ms(lag.p99)}, max ${ms(lag.max)} (part of the latencies)`,
    ...(totals.cleanupFailures > 0 ? [`sessions that could not be deleted: ${totals.cleanupFailures}`] : []),
  ];
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
