/** Time of a benchmark: monotonic, and passed in. */

/** Where a run gets its time from. */
export interface Clock {
  /** Monotonic milliseconds. */
  nowMs(): number;
  /** Resolves at `atMs` (at once where that has passed), or when `signal` fires; never rejects. */
  sleepUntil(atMs: number, signal: AbortSignal): Promise<void>;
}

/** The process's monotonic clock. */
export const systemClock: Clock = {
  nowMs: () => performance.now(),
  sleepUntil(atMs, signal) {
    const waitMs = atMs - performance.now();
    if (waitMs <= 0 || signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const end = (): void => {
        clearTimeout(timer);
        signal.removeEventListener("abort", end);
        resolve();
      };
      const timer = setTimeout(end, waitMs);
      signal.addEventListener("abort", end, { once: true });
    });
  },
};
