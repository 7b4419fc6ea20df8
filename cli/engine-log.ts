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
