/** Why sequences end before their time. */
import { QuireError } from "../../protocol/errors.ts";
import type { Sequence } from "./sequence.ts";

/** The deadline that a request has missed, if any. */
export function lateness(sequence: Sequence, nowMs: number, turnMsMax: number): QuireError | undefined {
  if (nowMs - sequence.queuedAtMs > turnMsMax)
    return new QuireError("deadline_exceeded", `The turn took longer than ${turnMsMax / 1000} s.`);
  if (sequence.started || nowMs <= sequence.firstTokenDueMs) return undefined;
  const waitedMs = Math.round(sequence.firstTokenDueMs - sequence.queuedAtMs);
  return new QuireError("deadline_exceeded", `No token came within the ${waitedMs} ms that the request allows.`);
}

/** An error with its place, for the log. */
export function describeError(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
