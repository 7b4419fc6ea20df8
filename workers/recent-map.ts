/** What an isolate remembers of what it was told: bounded in number and age. */

/** How much a map keeps, and for how long. */
export interface RecentMapOptions {
  countMax: number;
  ageMsMax: number;
  now: () => number;
}

/** Values by key; the least recently used go first. A value's age counts from when it was put in, however often it is used. */
export class RecentMap<Value> {
  readonly #options: RecentMapOptions;
  readonly #entries = new Map<string, { value: Value; putMs: number }>();

  constructor(options: RecentMapOptions) {
    this.#options = options;
  }

  /** A value that is younger than `ageMsMax`. */
  get(key: string, ageMsMax: number = this.#options.ageMsMax): Value | undefined {
    const known = this.#entries.get(key);
    if (!known || this.#options.now() - known.putMs >= ageMsMax) return undefined;
    // Moves to the end: the first key is the least recently used.
    this.#entries.delete(key);
    this.#entries.set(key, known);
    return known.value;
  }

  put(key: string, value: Value): void {
    this.#entries.delete(key);
    this.#entries.set(key, { value, putMs: this.#options.now() });
    for (const oldest of this.#entries.keys()) {
      if (this.#entries.size <= this.#options.countMax) break;
      this.#entries.delete(oldest);
    }
  }

  /** Forgets one, which is gone. */
  delete(key: string): void {
    this.#entries.delete(key);
  }

  /** Forgets all, for what was changed through this isolate. */
  clear(): void {
    this.#entries.clear();
  }
}
