/** Bounded concurrency with two classes: demand goes before fill. */
export type GateClass = "demand" | "fill";

/** At most `limit` tasks at once, of which fill may take at most `fillLimit`; waiting tasks start in order of class, then arrival. */
export class Gate {
  readonly #limit: number;
  readonly #fillLimit: number;
  readonly #waiting: Record<GateClass, (() => void)[]> = { demand: [], fill: [] };
  readonly #running: Record<GateClass, number> = { demand: 0, fill: 0 };

  constructor(limit: number, fillLimit: number = limit) {
    this.#limit = limit;
    this.#fillLimit = fillLimit;
  }

  get waitingCount(): number {
    return this.#waiting.demand.length + this.#waiting.fill.length;
  }

  get runningCount(): number {
    return this.#running.demand + this.#running.fill;
  }

  /** Runs a task when its turn comes; its result or failure is passed on. */
  async run<T>(kind: GateClass, task: () => Promise<T>): Promise<T> {
    if (!this.#hasRoom(kind)) await new Promise<void>((resolve) => this.#waiting[kind].push(resolve));
    else this.#running[kind] += 1;
    try {
      return await task();
    } finally {
      this.#running[kind] -= 1;
      this.#startNext();
    }
  }

  #hasRoom(kind: GateClass): boolean {
    return this.runningCount < this.#limit && (kind === "demand" || this.#running.fill < this.#fillLimit);
  }

  #startNext(): void {
    for (const kind of ["demand", "fill"] as const) {
      while (this.#waiting[kind].length > 0 && this.#hasRoom(kind)) {
        this.#running[kind] += 1;
        this.#waiting[kind].shift()?.();
      }
    }
  }
}
