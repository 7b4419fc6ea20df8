/** Trying again: how often, and how long between. */
import { setTimeout as sleep } from "node:timers/promises";
import { PullError, TransientError } from "./pull-error.ts";

/** How patient a pull is. */
export interface Patience {
  /** Attempts in a row that bring nothing new before a pull gives up. */
  attemptsMax: number;
  /** Before the second attempt; doubles with each further one. */
  delayMs: number;
  delayMsMax: number;
  /** From a request to its response's head, and as long for each redirect. */
  headMsMax: number;
  /** A body that brings less than {@link stallBytes} in this time has stalled. */
  stallMsMax: number;
}

/** See {@link Patience.stallMsMax}. */
export const stallBytes = 1024;

/** What a user at a terminal waits for: about a minute for a hub that is down. */
export const patience: Patience = {
  attemptsMax: 6,
  delayMs: 1_000,
  delayMsMax: 20_000,
  headMsMax: 30_000,
  stallMsMax: 30_000,
};

/** What is retried, and who hears of it. */
export interface RetryOptions {
  patience: Patience;
  /** Aborted: the wait ends with its reason. */
  signal: AbortSignal;
  /** 0 to 1, so that many clients do not come back at once. */
  random(): number;
  /** Told before each wait. */
  onRetry(message: string, delayMs: number): void;
  /** Counts up as work gets done; an attempt that raised it does not count as failed. */
  progress?(): number;
}

/**
 * Runs `attempt` until it does not throw a {@link TransientError}, or too many in a row brought nothing.
 * @throws {PullError} with the last attempt's message; whatever else an attempt throws, at once.
 */
export async function withRetries<T>(attempt: () => Promise<T>, options: RetryOptions): Promise<T> {
  const { attemptsMax, delayMs, delayMsMax } = options.patience;
  const progress = options.progress ?? (() => 0);
  let failures = 0;
  for (;;) {
    const before = progress();
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof TransientError)) throw error;
      failures = progress() > before ? 1 : failures + 1;
      if (failures >= attemptsMax) throw new PullError(`${error.message} (gave up after ${failures} attempts)`);
      const backoffMs = delayMs * 2 ** (failures - 1) * (0.5 + options.random() / 2);
      const waitMs = Math.min(delayMsMax, Math.max(backoffMs, error.retryAfterMs ?? 0));
      options.onRetry(error.message, waitMs);
      await sleep(waitMs, undefined, { signal: options.signal }).catch(() => undefined);
      options.signal.throwIfAborted();
    }
  }
}
