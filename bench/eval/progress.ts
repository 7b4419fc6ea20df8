/** How far a run is, in words. */
import type { BenchContext } from "../bench.ts";

/** Says how far a run is, at most every few seconds. */
export class Progress {
  readonly #context: BenchContext;
  readonly #what: string;
  readonly #count: number;
  readonly #startMs = performance.now();
  #done = 0;
  #saidMs = this.#startMs;

  /** `count` pieces of work, called `what`. */
  constructor(context: BenchContext, what: string, count: number) {
    this.#context = context;
    this.#what = what;
    this.#count = count;
  }

  /** One more is done. */
  step(): void {
    this.#done += 1;
    const nowMs = performance.now();
    if (nowMs - this.#saidMs < 3_000 && this.#done < this.#count) return;
    this.#saidMs = nowMs;
    const takenS = (nowMs - this.#startMs) / 1_000;
    const leftS = (takenS / this.#done) * (this.#count - this.#done);
    const bar = "#".repeat(Math.round((this.#done / this.#count) * 20)).padEnd(20, ".");
    this.#context.progress(
      `[${bar}] ${this.#done} of ${this.#count} ${this.#what}, ${takenS.toFixed(0)} s, about ${leftS.toFixed(0)} s left`,
    );
  }
}
