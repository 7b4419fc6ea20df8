/** What an isolate remembers of what it was told: bounded in number and age. */

/** How much a map keeps, and for how long. */
export interface RecentMapOptions {
  countMax: number;
  ageMsMax: number;
  now: () => number;
}

/** Of one whose values are right however old they are. */
interface AgelessOptions {
  countMax: number;
  ageMsMax?: undefined;
  now?: undefined;
}

/** Values by key; the least recently used go first, of those that were put in or used since it was half full. A value's age counts from when it was put in, however often it is used. */
export class RecentMap<Value> {
  readonly #countMax: number;
  readonly #ageMsMax: number;
  readonly #now: () => number;
  readonly #entries = new Map<string, { value: Value; putMs: number }>();

  constructor({ countMax, ageMsMax = Number.POSITIVE_INFINITY, now = () => 0 }: RecentMapOptions | AgelessOptions) {
    this.#countMax = countMax;
    this.#ageMsMax = ageMsMax;
    this.#now = now;
  }

  /** A value that is younger than `ageMsMax`. */
  get(key: string, ageMsMax: number = this.#ageMsMax): Value | undefined {
    const known = this.#entries.get(key);
    if (!known || this.#now() - known.putMs >= ageMsMax) return undefined;
    // Moves to the end: the first key is the least recently used. While there is much room, it does not matter which that is.
    if (2 * this.#entries.size > this.#countMax) {
      this.#entries.delete(key);
      this.#entries.set(key, known);
    }
    return known.value;
  }

  put(key: string, value: Value): void {
    this.#entries.delete(key);
    this.#entries.set(key, { value, putMs: this.#now() });
    for (const oldest of this.#entries.keys()) {
      if (this.#entries.size <= this.#countMax) break;
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
