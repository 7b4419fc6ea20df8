/** Why sequences end before their time. */
import { QuireError, toQuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { Sequence } from "./sequence.ts";

/** The deadline that a request has missed, if any. */
export function lateness(sequence: Sequence, nowMs: number, turnMsMax: number): QuireError | undefined {
  if (nowMs - sequence.queuedAtMs > turnMsMax)
    return new QuireError("deadline_exceeded", `The turn took longer than ${turnMsMax / 1000} s.`);
  if (sequence.started || nowMs <= sequence.firstTokenDueMs) return undefined;
  const waitedMs = Math.round(sequence.firstTokenDueMs - sequence.queuedAtMs);
  return new QuireError("deadline_exceeded", `No token came within the ${waitedMs} ms that the request allows.`);
}

/**
 * A context larger than the pool, of earlier turns that the store has lost: where it cannot be written either, and host memory holds less, what is computed
 * again pushes out what was computed before, and that would go on until the turn's deadline.
 */
export function wentInCircles({ request, usage, workingSet }: Sequence): QuireError | undefined {
  if (workingSet === undefined || usage.recomputedTokens <= LIMITS.recomputesMax * request.turnStart) return undefined;
  return new QuireError(
    "deadline_exceeded",
    `The conversation was computed again ${LIMITS.recomputesMax} times over: the engine has too little memory for it, and its page store keeps nothing.`,
  );
}

/** Whether a turn that is over has KV on the device that the next one can use. A suspended one's is left to be computed from the log. */
export function leavesKv({ error, generatedCount, isParked }: Sequence): boolean {
  return error === undefined && generatedCount > 0 && !isParked;
}

/** Its finish reason, or the code of the error that ended it. */
export function outcomeOf(sequence: Sequence): string {
  return hasFailed(sequence) ? toQuireError(sequence.error).code : (sequence.finishReason ?? "cancelled");
}

/** Sends the terminal event. @throws whatever the sink does */
export function tellEnd(sequence: Sequence): void {
  const { sink, finishReason, usage } = sequence;
  if (hasFailed(sequence)) sink.failed(sequence.error);
  else sink.done(finishReason ?? "cancelled", usage, sequence.turnSpans());
}

function hasFailed({ finishReason, error }: Sequence): boolean {
  return finishReason === undefined && error !== undefined;
}

/** An error with its place, for the log. */
export function describeError(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
