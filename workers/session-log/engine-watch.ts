/** Notices an engine that is gone without a word: a machine that lost its power closes no connection. */

/** Who is watched, and how. */
export interface EngineWatchOptions {
  /** Silence behind which the fleet is asked, and how often. */
  silentMsMax: number;
  intervalMs: number;
  /** Whether the fleet still hears of the engine. Rejects when nobody knows. */
  isAlive: () => Promise<boolean>;
  /** Called once. */
  onDead: () => void;
}

/** So many times in a row the fleet must not know an engine: one that has just started again knows none for a second. */
const STRIKE_COUNT = 3;

/** Runs until it is stopped. */
export class EngineWatch {
  readonly #options: EngineWatchOptions;
  readonly #timer: ReturnType<typeof setInterval>;
  #heardMs = Date.now();
  #strikes = 0;
  #asking = false;

  constructor(options: EngineWatchOptions) {
    this.#options = options;
    this.#timer = setInterval(() => void this.#look(), options.intervalMs);
  }

  /** The engine said something. */
  heard(): void {
    this.#heardMs = Date.now();
    this.#strikes = 0;
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  async #look(): Promise<void> {
    const { silentMsMax, isAlive, onDead } = this.#options;
    if (this.#asking || Date.now() - this.#heardMs < silentMsMax) return;
    this.#asking = true;
    try {
      this.#strikes = (await isAlive()) ? 0 : this.#strikes + 1;
    } catch {
      // The fleet does not answer: that says nothing of the engine.
      this.#strikes = 0;
    } finally {
      this.#asking = false;
    }
    if (this.#strikes < STRIKE_COUNT) return;
    this.stop();
    onDead();
  }
}
