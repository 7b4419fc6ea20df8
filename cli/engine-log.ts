/** The engine's structured log: one JSON object a line, never prompt text. */
import type { EngineLog } from "../engine/settings.ts";

/** Events that cost something or point to a fault; the others are the normal course. */
const warningPattern = /(failed|lost|dropped|conflict)$/;

/** Writes `{time, level, event, ...fields}` lines; `level` is `warn` or `info`. */
export function jsonLog(write: (line: string) => void, now: () => Date): EngineLog {
  return (event, fields) => {
    const level = warningPattern.test(event) ? "warn" : "info";
    write(`${JSON.stringify({ time: now().toISOString(), level, event, ...fields })}\n`);
  };
}

/**
 * What a user is shown of a line of an engine's log: the event and its error, with the hashes that name sessions and objects cut short. The whole
 * line is in the log file. Any other line comes back as it is.
 */
export function shortWarning(line: string): string {
  const { event, error } = fieldsOf(line);
  if (event === undefined) return line;
  const text = error === undefined ? event : `${event}: ${error}`;
  return text.replace(/[0-9a-f]{16,}/g, (hash) => `${hash.slice(0, 8)}...`);
}

function fieldsOf(line: string): { event?: string; error?: string } {
  try {
    return (JSON.parse(line) as { event?: string; error?: string } | null) ?? {};
  } catch {
    return {};
  }
}
