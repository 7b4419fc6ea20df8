/** What the edge logs: what went wrong and where in the code, never a word of a request or a reply. */
import { ERROR_TABLE, QuireError, toQuireError } from "../protocol/errors.ts";

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

function causeOf(cause: unknown): { name: string; message?: string; at?: string[] } | undefined {
  if (!(cause instanceof Error)) return undefined;
  if (cause instanceof QuireError) return { name: cause.code, message: cause.message };
  const at = (cause.stack ?? "").split("\n").filter((line) => /^\s+at /.test(line));
  return { name: cause.name, at: at.slice(0, PLACES_MAX).map((line) => line.trim()) };
}

const PLACES_MAX = 4;
