/** Time of a benchmark: monotonic, and passed in. */

/** Where a run gets its time from. */
export interface Clock {
  /** Monotonic milliseconds. */
  nowMs(): number;
  /** Resolves at `atMs` or soon after it, never before (at once where it has passed), or when `signal` fires; never rejects. */
  sleepUntil(atMs: number, signal: AbortSignal): Promise<void>;
}

/** The process's monotonic clock. */
export const systemClock: Clock = {
  nowMs: () => performance.now(),
  sleepUntil(atMs, signal) {
    if (atMs <= performance.now() || signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      let timer: ReturnType<typeof setTimeout>;
      const end = (): void => {
        clearTimeout(timer);
        signal.removeEventListener("abort", end);
        resolve();
      };
      // The platform counts in whole milliseconds, so its timers may fire a fraction of one early.
      const wait = (): void => {
        const restMs = atMs - performance.now();
        if (restMs <= 0) end();
        else timer = setTimeout(wait, Math.ceil(restMs));
      };
      signal.addEventListener("abort", end, { once: true });
      wait();
    });
  },
};
