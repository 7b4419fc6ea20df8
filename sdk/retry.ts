/** Waiting and trying again. */
import { QuireAbortError, QuireApiError, QuireClientError } from "./errors.ts";

/** How often and how long. */
export interface RetryOptions {
  /** Tries after the first one. */
  retriesMax: number;
  /** The first wait; each further one is twice as long, up to {@link RETRY_MS_MAX}. */
  retryBaseMs: number;
  /** In [0, 1): waits are spread over their upper half, so that clients do not return together. */
  random: () => number;
}

/** The longest wait between two tries that the client chooses by itself. */
export const RETRY_MS_MAX = 8_000;
/** A server that asks for a longer wait gets no retry: the caller should know. */
export const RETRY_AFTER_MS_MAX = 60_000;

/** Which failures may be tried again. */
export interface RetryRules {
  /** Beside what the error says of itself. Default: every one. */
  mayRetry?: (error: QuireClientError) => boolean;
  /** How far the attempts have come: after a step forward all retries are there again. Default: never forward. */
  progress?: () => number;
}

/**
 * Runs `attempt` until it succeeds, fails with an error that is not retryable, or retries are used up.
 * @throws what the last attempt threw; {@link QuireAbortError} when `signal` fires while waiting.
 */
export async function withRetries<T>(
  options: RetryOptions,
  signal: AbortSignal,
  attempt: () => Promise<T>,
  { mayRetry = () => true, progress = () => 0 }: RetryRules = {},
): Promise<T> {
  let reached = progress();
  for (let tries = 0; ; tries++) {
    try {
      return await attempt();
    } catch (error) {
      if (progress() > reached) tries = 0;
      reached = progress();
      const asked = error instanceof QuireApiError ? (error.retryAfterMs ?? 0) : 0;
      const retryable = error instanceof QuireClientError && error.retryable && mayRetry(error);
      if (!retryable || tries >= options.retriesMax || asked > RETRY_AFTER_MS_MAX) throw error;
      await sleep(Math.max(asked, backoffMs(options, tries)), signal);
    }
  }
}

/**
 * Reads `Retry-After`: seconds, or an HTTP date against `nowMs`. Undefined when absent or malformed.
 */
export function parseRetryAfter(value: string | null, nowMs: number): number | undefined {
  if (value === null || value.trim() === "") return undefined;
  const seconds = Number(value);
  if (Number.isFinite(seconds)) return Math.max(0, Math.ceil(seconds * 1000));
  const date = Date.parse(value);
  return Number.isNaN(date) ? undefined : Math.max(0, date - nowMs);
}

function backoffMs(options: RetryOptions, tries: number): number {
  const full = Math.min(RETRY_MS_MAX, options.retryBaseMs * 2 ** tries);
  return full * (0.5 + options.random() / 2);
}

function sleep(durationMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = (): void => {
      clearTimeout(timer);
      reject(new QuireAbortError(signal.reason));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", abort);
      resolve();
    }, durationMs);
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true });
  });
}
