/** What the edge logs: what went wrong and where in the code, never a word of a request or a reply. */
import { ERROR_TABLE, QuireError, toQuireError } from "../protocol/errors.ts";
import type { PickedEngine } from "./fleet-table.ts";

/**
 * Logs an error of ours as one line of JSON, and a client that left before its turn began as `client_gone`; errors of the client's making (status below 500) are not logged. Messages of foreign errors are
 * left out, because they may quote what they were given (a parser shows the text around its error): their names and places are enough.
 */
export function logError(requestId: string, thrown: unknown): void {
  const error = toQuireError(thrown);
  if (error.code === "cancelled") {
    console.info(JSON.stringify({ level: "info", requestId, outcome: "client_gone" }));
    return;
  }
  if (ERROR_TABLE[error.code].status < 500) return;
  const { code, message } = error;
  console.error(JSON.stringify({ level: "error", requestId, code, message, cause: causeOf(error.cause) }));
}

/**
 * Logs which engine failed a turn: another one may go on from the log, and then nobody would hear of it. One that is shutting down, or refuses what it is asked,
 * has not failed.
 */
export function logEngineFailure(requestId: string, engine: Partial<PickedEngine> | undefined, thrown: unknown): void {
  const { code, cause } = toQuireError(thrown);
  if (engine?.engineId === undefined || code === "shutting_down" || ERROR_TABLE[code].status < 500) return;
  const { engineId, url } = engine;
  const line = { level: "warn", requestId, event: "engine.failed", engine: engineId, url, code, cause: causeOf(cause) };
  console.warn(JSON.stringify(line));
}

interface LoggedCause {
  name: string;
  message?: string;
  at?: string[];
  cause?: LoggedCause | undefined;
}

function causeOf(thrown: unknown): LoggedCause | undefined {
  if (!(thrown instanceof Error)) return undefined;
  if (thrown instanceof QuireError) {
    return { name: thrown.code, message: thrown.message, cause: causeOf(thrown.cause) };
  }
  const at = (thrown.stack ?? "").split("\n").filter((line) => /^\s+at /.test(line));
  return { name: thrown.name, at: at.slice(0, PLACES_MAX).map((line) => line.trim()) };
}

const PLACES_MAX = 4;
