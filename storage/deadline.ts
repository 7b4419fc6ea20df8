/** Deadlines, cancelling and bounded concurrency of store calls. */
import { assert } from "../protocol/assert.ts";
import { StoreError } from "./contract.ts";

/** @throws {StoreError} `aborted` when the caller has given up already. */
export function refuseAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw new StoreError("aborted", "store call was aborted", { cause: signal.reason });
}

/**
 * Runs one call under a deadline and the caller's signal; `run` gets a signal that fires for either.
 * Settles at once when one fires, also when `run` cannot be interrupted and goes on behind.
 * @throws {StoreError} `aborted` or `timeout`; otherwise what `run` throws.
 */
export async function withDeadline<T>(
  options: { deadlineMs: number; signal?: AbortSignal | undefined; what: string },
  run: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  refuseAborted(options.signal);
  const controller = new AbortController();
  return new Promise<T>((resolve, reject) => {
    const giveUp = (error: StoreError): void => {
      reject(error);
      controller.abort(error);
    };
    const onAbort = (): void =>
      giveUp(new StoreError("aborted", `${options.what} was aborted`, { cause: options.signal?.reason }));
    const timer = setTimeout(
      () => giveUp(new StoreError("timeout", `${options.what} took longer than ${options.deadlineMs} ms`)),
      options.deadlineMs,
    );
    options.signal?.addEventListener("abort", onAbort, { once: true });
    run(controller.signal)
      .then(resolve, reject)
      .finally(() => {
        clearTimeout(timer);
        options.signal?.removeEventListener("abort", onAbort);
      });
  });
}

/**
 * Deadlines of many short calls, of which bursts of a hundred begin at once: those that begin within a millisecond and may take equally long have one
 * timer and one signal, which fires up to a millisecond early for the last of them.
 */
export class SharedDeadlines {
  readonly #clock: { nowMs(): number; deadline(ms: number): AbortSignal };
  #latest: { fromMs: number; ms: number; signal: AbortSignal } | undefined;

  constructor(clock: { nowMs(): number; deadline(ms: number): AbortSignal }) {
    this.#clock = clock;
  }

  /** A signal that fires after so many whole milliseconds. */
  after(ms: number): AbortSignal {
    const nowMs = this.#clock.nowMs();
    if (this.#latest?.ms !== ms || nowMs - this.#latest.fromMs >= 1)
      this.#latest = { fromMs: nowMs, ms, signal: this.#clock.deadline(ms) };
    return this.#latest.signal;
  }
}

/** Waits, or throws what aborted the signal. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    const onAbort = (): void => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", onAbort);
      resolve();
    }, ms);
    signal.addEventListener("abort", onAbort, { once: true });
  });
}

/**
 * At most `countMax` tasks at a time, in order of arrival. A task keeps its place until it has really ended, so that
 * calls which a stalled mount never answers cannot pile up.
 */
export class Gate {
  readonly #countMax: number;
  #running = 0;
  readonly #waiting: (() => void)[] = [];

  constructor(countMax: number) {
    assert(countMax >= 1, "gate: must let something through");
    this.#countMax = countMax;
  }

  /** Runs `task` once there is room; a signal that fires while waiting takes the place back. */
  async run<T>(signal: AbortSignal, task: () => Promise<T>): Promise<T> {
    if (this.#running >= this.#countMax) await this.#turn(signal);
    else this.#running++;
    try {
      signal.throwIfAborted();
      return await task();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#running--;
      else next();
    }
  }

  /** Resolves when a place has been handed over; `#running` stays as it is then. */
  #turn(signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(enter), 1);
        reject(signal.reason);
      };
      const enter = (): void => {
        signal.removeEventListener("abort", onAbort);
        resolve();
      };
      this.#waiting.push(enter);
      signal.addEventListener("abort", onAbort, { once: true });
    });
  }
}
