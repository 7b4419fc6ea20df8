/** What is said of a turn besides its words: usage, what it counts for, and errors on their way to the client. */
import { toQuireError } from "../../protocol/errors.ts";
import type { EngineUsage } from "../../protocol/generate.ts";
import type { TurnJob, TurnUsage, WireError } from "../turn-job.ts";
import type { PreparedTurn } from "./prepare.ts";
import type { ChoiceResult, TurnRunner } from "./turn-runner.ts";

/** Usage of all choices; of the engine's accounts those of each prompt's first one. */
export function usageOf(
  job: TurnJob,
  { prepared, runner }: { prepared: PreparedTurn; runner: TurnRunner },
  results: readonly ChoiceResult[],
): TurnUsage {
  return {
    engineIds: [...runner.engineIds],
    promptTokens: promptTokens(prepared),
    completionTokens: results.reduce((sum, { reply }) => sum + reply.generatedCount, 0),
    sessionId: job.session?.id,
    engine: sumOf(firstOfEach(results, 1 + prepared.otherPrompts.length)),
  };
}

/** What a turn is counted for: tokens that its log did not hold, and tokens that were generated. Luck with caches changes nothing. */
export function spentTokens(prepared: PreparedTurn, results: readonly ChoiceResult[]): number {
  const generated = results.reduce((sum, { reply }) => sum + reply.generatedCount, 0);
  return promptTokens(prepared) - prepared.keepTokens + generated;
}

function promptTokens({ tokens, otherPrompts }: PreparedTurn): number {
  return otherPrompts.reduce((sum, { length }) => sum + length, tokens.length);
}

function firstOfEach(results: readonly ChoiceResult[], promptCount: number): EngineUsage[] {
  const each = results.length / promptCount;
  return results.flatMap(({ usage }, index) => (index % each === 0 && usage ? [usage] : []));
}

/** Of several generations: what they read and reused together, how and when the first one ran, and when the last one ended. */
function sumOf([first, ...others]: readonly EngineUsage[]): EngineUsage | undefined {
  if (first === undefined) return undefined;
  const sum = { ...first, source: { ...first.source } };
  for (const other of others) {
    for (const key of SUMMED) sum[key] += other[key];
    for (const key of SUMMED_WHERE_THERE) if (other[key] !== undefined) sum[key] = (sum[key] ?? 0) + other[key];
    for (const tier of ["device", "host", "store"] as const) sum.source[tier] += other.source[tier];
    sum.totalMs = Math.max(sum.totalMs, other.totalMs);
  }
  return sum;
}

const SUMMED = [
  ...(["promptTokens", "completionTokens", "cachedTokens", "recomputedTokens"] as const),
  ...(["bytesBeforeFirstToken", "bytesFetched", "pagesBeforeFirstToken", "pagesFetched"] as const),
  ...(["pagesSelected", "pagesInContext", "pagesMissed", "kvBytesRead", "metadataBytesRead"] as const),
];
const SUMMED_WHERE_THERE = ["pagesPassedOver", "draftedTokens", "draftedTokensRight"] as const;

/** Whatever was thrown, in safe text. */
export function wireError(thrown: unknown): WireError {
  const { code, message, param, retryAfterMs } = toQuireError(thrown);
  return { code, message, param, retryAfterMs };
}
