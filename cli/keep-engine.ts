/** Keeps one engine running: starts it again when it dies, within reason. */
import type { Child } from "./child-process.ts";
import { UsageError } from "./usage-error.ts";
import { endedUnexpectedly } from "./wait-until.ts";

/** Restarts within this time are counted together. */
const windowMs = 60_000;
const restartsMax = 5;
/** Lets the system take the port back, and a fault that ends every start at once not spin. */
const restartDelayMs = 500;

/** What is kept running, and how. */
export interface KeepEngineOptions {
  /** The engine that runs now. */
  engine: Child;
  port: number;
  /** True when somebody else listens on the port. */
  isPortTaken(): Promise<boolean>;
  /** Starts the next one. */
  start(): Child;
  /** Resolves when an engine that was started serves; rejects when it ends before. */
  untilServed(engine: Child): Promise<void>;
  /** Gets one line for everything that a user should know. */
  say(line: string): void;
  nowMs(): number;
  sleep(ms: number): Promise<void>;
  /** Aborted: the user wants an end, so nothing is started any more. */
  signal: AbortSignal;
}

/**
 * Runs until the signal is aborted, or somebody else has taken the engine's port: an engine started by hand serves as well.
 * @throws {UsageError} one line, when the engine has died more than five times within a minute.
 */
export async function keepEngine(options: KeepEngineOptions): Promise<void> {
  const { port, say, nowMs, signal } = options;
  let engine = options.engine;
  let restartedMs: number[] = [];
  for (;;) {
    await engine.ended;
    if (signal.aborted) return;
    restartedMs = restartedMs.filter((time) => nowMs() - time < windowMs);
    if (restartedMs.length >= restartsMax) {
      const { message } = endedUnexpectedly(engine);
      throw new UsageError(`${message}; it was started again ${restartsMax} times within a minute`);
    }
    const how = endedUnexpectedly(engine).message;
    await options.sleep(restartDelayMs);
    if (signal.aborted) return;
    if (await options.isPortTaken()) {
      say(`${how}; another process has taken port ${port} since: going on without an engine of our own`);
      return;
    }
    restartedMs.push(nowMs());
    say(`${how}; starting it again on port ${port} (${restartedMs.length} of ${restartsMax} within a minute)`);
    engine = options.start();
    const started = engine;
    void options.untilServed(started).then(
      () => say(`the engine is back (pid ${started.pid})`),
      // It has ended: the loop says so.
      () => undefined,
    );
  }
}
