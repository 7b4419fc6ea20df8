/**
 * How many prefill rows a step may take so that it stays near its target time. The cost of a row grows with the context, so the estimate
 * follows what was just measured; numerics do not depend on it.
 */
export class ChunkSizer {
  readonly #rowsMax: number;
  readonly #targetMs: number;
  #rows: number;

  constructor(options: { rowsMax: number; targetMs: number }) {
    this.#rowsMax = options.rowsMax;
    this.#targetMs = options.targetMs;
    this.#rows = Math.min(options.rowsMax, 64);
  }

  get rows(): number {
    return this.#rows;
  }

  /** Takes a measured step that had prefill rows in it. Grows at most twofold a step, shrinks at once. */
  observe(rows: number, ms: number): void {
    const fitting = (rows * this.#targetMs) / Math.max(ms, 0.01);
    const bounded = rows < this.#rows && fitting > rows ? this.#rows : Math.min(fitting, this.#rows * 2);
    this.#rows = Math.max(16, Math.min(this.#rowsMax, Math.floor(bounded)));
  }
}
