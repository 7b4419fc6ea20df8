/** Events in the order of their times. */

/** A binary heap of numbered things by time; things of one time come in the order in which they went in. */
export class EventQueue {
  readonly #times: number[] = [];
  readonly #orders: number[] = [];
  readonly #ids: number[] = [];
  #pushed = 0;

  get size(): number {
    return this.#times.length;
  }

  /** Time of the next event; Infinity when there is none. */
  get nextMs(): number {
    return this.#times[0] ?? Number.POSITIVE_INFINITY;
  }

  push(timeMs: number, id: number): void {
    let at = this.#times.length;
    const order = this.#pushed++;
    this.#times.push(timeMs);
    this.#orders.push(order);
    this.#ids.push(id);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#isBefore(at, parent)) break;
      this.#swap(at, parent);
      at = parent;
    }
  }

  /** Removes the next event and returns what it is of. Only when there is one. */
  pop(): number {
    const id = this.#ids[0] as number;
    this.#swap(0, this.#times.length - 1);
    this.#times.pop();
    this.#orders.pop();
    this.#ids.pop();
    for (let at = 0; ; ) {
      const left = 2 * at + 1;
      const right = left + 1;
      let first = at;
      if (left < this.#times.length && this.#isBefore(left, first)) first = left;
      if (right < this.#times.length && this.#isBefore(right, first)) first = right;
      if (first === at) return id;
      this.#swap(at, first);
      at = first;
    }
  }

  #isBefore(a: number, b: number): boolean {
    const difference = (this.#times[a] as number) - (this.#times[b] as number);
    return difference < 0 || (difference === 0 && (this.#orders[a] as number) < (this.#orders[b] as number));
  }

  #swap(a: number, b: number): void {
    for (const list of [this.#times, this.#orders, this.#ids]) {
      const value = list[a] as number;
      list[a] = list[b] as number;
      list[b] = value;
    }
  }
}
