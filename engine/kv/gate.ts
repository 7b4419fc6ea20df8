/** Bounded concurrency with two classes: demand goes before fill. */
export type GateClass = "demand" | "fill";

/** A task that waits for its turn. */
interface Waiting {
  name: string | undefined;
  /** Told as which class it runs. */
  start(kind: GateClass): void;
}

/** At most `limit` tasks at once, of which fill may take at most `fillLimit`; waiting tasks start in order of class, then arrival. */
export class Gate {
  readonly #limit: number;
  readonly #fillLimit: number;
  readonly #waiting: Record<GateClass, Set<Waiting>> = { demand: new Set(), fill: new Set() };
  /** Of fill that waits. */
  readonly #named = new Map<string, Waiting>();
  readonly #running: Record<GateClass, number> = { demand: 0, fill: 0 };

  constructor(limit: number, fillLimit: number = limit) {
    this.#limit = limit;
    this.#fillLimit = fillLimit;
  }

  get waitingCount(): number {
    return this.#waiting.demand.size + this.#waiting.fill.size;
  }

  get runningCount(): number {
    return this.#running.demand + this.#running.fill;
  }

  /** Runs a task when its turn comes; its result or failure is passed on. `name`: what {@link raise} knows it by. */
  async run<T>(kind: GateClass, task: () => Promise<T>, name?: string): Promise<T> {
    let startedAs = kind;
    if (this.#hasRoom(kind)) this.#running[kind] += 1;
    else startedAs = await this.#turn(kind, name);
    try {
      return await task();
    } finally {
      this.#running[startedAs] -= 1;
      this.#startNext();
    }
  }

  /** Fill of this name that waits is demand from now on, the last of it. */
  raise(name: string): void {
    const waiting = this.#named.get(name);
    if (waiting === undefined) return;
    this.#named.delete(name);
    this.#waiting.fill.delete(waiting);
    this.#waiting.demand.add(waiting);
    this.#startNext();
  }

  #turn(kind: GateClass, name: string | undefined): Promise<GateClass> {
    return new Promise((start) => {
      const waiting = { name, start };
      this.#waiting[kind].add(waiting);
      if (kind === "fill" && name !== undefined) this.#named.set(name, waiting);
    });
  }

  #hasRoom(kind: GateClass): boolean {
    return this.runningCount < this.#limit && (kind === "demand" || this.#running.fill < this.#fillLimit);
  }

  #startNext(): void {
    for (const kind of ["demand", "fill"] as const) {
      for (const waiting of this.#waiting[kind]) {
        if (!this.#hasRoom(kind)) break;
        this.#waiting[kind].delete(waiting);
        const { name, start } = waiting;
        if (name !== undefined && this.#named.get(name) === waiting) this.#named.delete(name);
        this.#running[kind] += 1;
        start(kind);
      }
    }
  }
}
