/** Waiting for a child process to be of use. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Child } from "./child-process.ts";
import { UsageError } from "./usage-error.ts";

/** What is waited for, and until when. */
export interface WaitOptions {
  /** For the message: "the edge to answer". */
  what: string;
  children: readonly Child[];
  timeoutMs: number;
  /** Aborted: the wait ends with the signal's reason. */
  signal: AbortSignal;
}

const pollMs = 100;

/**
 * Asks until the answer is true; a check that throws counts as "not yet".
 * @throws {UsageError} one line when a child ends first or the time is over.
 */
export async function waitUntil(isTrue: () => Promise<boolean>, options: WaitOptions): Promise<void> {
  const { what, children, timeoutMs, signal } = options;
  const endMs = performance.now() + timeoutMs;
  for (;;) {
    signal.throwIfAborted();
    for (const child of children) if (child.endedWith !== undefined) throw endedUnexpectedly(child);
    if (await isTrue().catch(() => false)) return;
    if (performance.now() > endMs) {
      const logs = children.map((child) => child.logPath).join(", ");
      throw new UsageError(`waited ${Math.round(timeoutMs / 1000)} s for ${what}; see ${logs}`);
    }
    await sleep(pollMs, undefined, { signal });
  }
}

/**
 * The one line for a child that is gone although nobody asked it to end: how, its last words where it ended by its own
 * decision, and its log.
 */
export function endedUnexpectedly(child: Child): UsageError {
  const decided = child.endedWith?.endsWith("exit code 1") === true;
  const lastLine = decided ? child.lastLines().findLast((line) => line.trim() !== "") : undefined;
  const words = lastLine === undefined ? "" : `: ${lastLine.trim().replace(/^quire: /, "")}`;
  return new UsageError(`the ${child.name} ${child.endedWith ?? "ended"}${words} (log: ${child.logPath})`);
}
