/** Which models this isolate was told of a moment ago, so that not every turn asks the fleet twice. */
import { LIMITS } from "../../protocol/limits.ts";

/** How much a cache keeps, and for how long. */
export interface ModelNameOptions {
  countMax: number;
  ageMsMax: number;
  now: () => number;
}

/**
 * Ids by the names that were asked for; the oldest go first. Only what is there is remembered: a turn for a model that has just gone is told
 * so when it gets no engine.
 */
export class ModelNames {
  readonly #options: ModelNameOptions;
  readonly #ids = new Map<string, { id: string; readMs: number }>();

  constructor(options: ModelNameOptions) {
    this.#options = options;
  }

  get(name: string): string | undefined {
    const known = this.#ids.get(name);
    return known && this.#options.now() - known.readMs < this.#options.ageMsMax ? known.id : undefined;
  }

  put(name: string, id: string): void {
    this.#ids.delete(name);
    this.#ids.set(name, { id, readMs: this.#options.now() });
    for (const oldest of this.#ids.keys()) {
      if (this.#ids.size <= this.#options.countMax) break;
      this.#ids.delete(oldest);
    }
  }
}

/** One per isolate: which models are served is the same for everybody, so sharing tells nothing. */
export const isolateModelNames = new ModelNames({
  countMax: LIMITS.modelNameCountMax,
  ageMsMax: LIMITS.modelNameMsMax,
  now: () => Date.now(),
});
