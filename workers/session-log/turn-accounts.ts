/** What is said of a turn besides its words: usage, what it counts for, and errors on their way to the client. */
import { toQuireError } from "../../protocol/errors.ts";
import type { TurnJob, TurnUsage, WireError } from "../turn-job.ts";
import type { PreparedTurn } from "./prepare.ts";
import type { ChoiceResult, TurnRunner } from "./turn-runner.ts";

/** Usage of all choices; of the engine's accounts the first one's. */
export function usageOf(
  job: TurnJob,
  { prepared, runner }: { prepared: PreparedTurn; runner: TurnRunner },
  results: readonly ChoiceResult[],
): TurnUsage {
  return {
    engineIds: [...runner.engineIds],
    promptTokens: prepared.tokens.length,
    completionTokens: results.reduce((sum, { reply }) => sum + reply.generatedCount, 0),
    sessionId: job.session?.id,
    engine: results[0]?.usage,
  };
}

/** What a turn is counted for: tokens that its log did not hold, and tokens that were generated. Luck with caches changes nothing. */
export function spentTokens(prepared: PreparedTurn, results: readonly ChoiceResult[]): number {
  const generated = results.reduce((sum, { reply }) => sum + reply.generatedCount, 0);
  return prepared.tokens.length - prepared.keepTokens + generated;
}

/** Whatever was thrown, in safe text. */
export function wireError(thrown: unknown): WireError {
  const { code, message, param, retryAfterMs } = toQuireError(thrown);
  return { code, message, param, retryAfterMs };
}
