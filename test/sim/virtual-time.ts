/**
 * Time that passes only when nothing else can happen: between two events every promise that can settle has settled, so that a run is a
 * function of its seed. Work that is under way belongs to a {@link VirtualProcess}; a killed process never comes to its next line.
 */
import type { Clock } from "../../engine/settings.ts";

interface Timer {
  atMs: number;
  /** Timers of one moment fire in order of their making. */
  order: number;
  fire(): void;
}

/** A clock for a whole simulated world. */
export class VirtualTime {
  #nowMs = 0;
  #order = 0;
  /** A binary heap. */
  readonly #timers: Timer[] = [];

  get nowMs(): number {
    return this.#nowMs;
  }

  /** Calls `fire` once, `ms` from now. */
  after(ms: number, fire: () => void): void {
    const timer = { atMs: this.#nowMs + Math.max(0, ms), order: this.#order++, fire };
    let at = this.#timers.push(timer) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(timer, this.#timers[parent] as Timer)) break;
      this.#timers[at] = this.#timers[parent] as Timer;
      at = parent;
    }
    this.#timers[at] = timer;
  }

  /** Resolves `ms` from now. */
  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.after(ms, resolve));
  }

  /**
   * Lets the world go on until `work` has settled, and returns what it gave.
   * @throws {Error} when nothing is left to happen, or `eventsMax` things have happened: the work would never end.
   */
  async run<T>(work: Promise<T>, eventsMax: number): Promise<T> {
    let settled = false;
    const over = () => {
      settled = true;
    };
    work.then(over, over);
    for (let events = 0; ; events++) {
      await new Promise<void>((resolve) => setImmediate(resolve));
      if (settled) return work;
      if (events === eventsMax) throw new Error(`the work has not ended after ${eventsMax} events`);
      const next = this.#take();
      if (!next) throw new Error("nothing is left to happen, and the work has not ended");
      this.#nowMs = Math.max(this.#nowMs, next.atMs);
      next.fire();
    }
  }

  #take(): Timer | undefined {
    const first = this.#timers[0];
    const last = this.#timers.pop();
    if (first === undefined || last === undefined || this.#timers.length === 0) return first;
    const count = this.#timers.length;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= count) break;
      if (child + 1 < count && isBefore(this.#timers[child + 1] as Timer, this.#timers[child] as Timer)) child += 1;
      if (!isBefore(this.#timers[child] as Timer, last)) break;
      this.#timers[at] = this.#timers[child] as Timer;
      at = child;
    }
    this.#timers[at] = last;
    return first;
  }
}

function isBefore(a: Timer, b: Timer): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
}

/** What one process sees of the world; after {@link kill} nothing that it waits for ever comes. */
export class VirtualProcess {
  readonly #time: VirtualTime;
  #dead = false;

  constructor(time: VirtualTime) {
    this.#time = time;
  }

  get dead(): boolean {
    return this.#dead;
  }

  /** As `kill -9`: every await of the process becomes its last. */
  kill(): void {
    this.#dead = true;
  }

  /** Passes on the outcome of outside work while the process lives. */
  await<T>(work: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      work.then(
        (value) => {
          if (!this.#dead) resolve(value);
        },
        (error: unknown) => {
          if (!this.#dead) reject(error);
        },
      );
    });
  }

  readonly clock: Clock = {
    nowMs: () => this.#time.nowMs,
    wallMs: () => Math.floor(this.#time.nowMs),
    sleep: (ms) => this.await(this.#time.sleep(ms)),
    breathe: (ms) => this.await(this.#time.sleep(ms)),
    deadline: (ms) => {
      const controller = new AbortController();
      this.#time.after(ms, () => {
        if (!this.#dead) controller.abort(new DOMException("deadline", "TimeoutError"));
      });
      return controller.signal;
    },
  };
}
