/** Time that passes when nothing else happens, so that a run of minutes takes milliseconds and every figure is exact. */
import { setImmediate as turnOfLoop } from "node:timers/promises";
import type { Clock } from "../../bench/clock.ts";

/** A clock whose sleepers wake in order, one at a time. */
export class VirtualClock implements Clock {
  #nowMs = 0;
  readonly #sleepers: { atMs: number; wake: () => void }[] = [];

  nowMs(): number {
    return this.#nowMs;
  }

  sleepUntil(atMs: number, signal: AbortSignal): Promise<void> {
    if (atMs <= this.#nowMs || signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const sleeper = { atMs, wake: resolve };
      this.#sleepers.push(sleeper);
      signal.addEventListener("abort", () => {
        const index = this.#sleepers.indexOf(sleeper);
        if (index >= 0) this.#sleepers.splice(index, 1);
        resolve();
      });
    });
  }

  /** Waits without a way to be woken early. */
  sleepMs(durationMs: number): Promise<void> {
    return this.sleepUntil(this.#nowMs + durationMs, new AbortController().signal);
  }

  /** Lets time pass until `done` settles; `atEach` sees every moment. */
  async runUntil<T>(done: Promise<T>, atEach: (nowMs: number) => void = () => {}): Promise<T> {
    let isSettled = false;
    const settle = (): void => {
      isSettled = true;
    };
    done.then(settle, settle);
    for (;;) {
      await turnOfLoop();
      if (isSettled) return done;
      this.#sleepers.sort((a, b) => a.atMs - b.atMs);
      const next = this.#sleepers.shift();
      if (next === undefined) throw new Error(`nobody sleeps and nothing ends at ${this.#nowMs} ms`);
      this.#nowMs = Math.max(this.#nowMs, next.atMs);
      atEach(this.#nowMs);
      next.wake();
    }
  }
}
