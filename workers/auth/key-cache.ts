/** Keys that this isolate has seen a moment ago, so that not every request asks the key ring. */
import { LIMITS } from "../../protocol/limits.ts";
import type { KeyRecord } from "./key-record.ts";

/** How much a cache keeps, and for how long. */
export interface KeyCacheOptions {
  countMax: number;
  ageMsMax: number;
  now: () => number;
}

/**
 * Records of keys that exist, by hash; the least recently used go first. A key that is revoked is refused everywhere once `ageMsMax` has
 * passed. Keys that do not exist are not remembered: each wrong one is another, and they would push out the good ones.
 */
export class KeyCache {
  readonly #options: KeyCacheOptions;
  readonly #records = new Map<string, { record: KeyRecord; readMs: number }>();

  constructor(options: KeyCacheOptions) {
    this.#options = options;
  }

  get(hash: string): KeyRecord | undefined {
    const known = this.#records.get(hash);
    if (!known) return undefined;
    this.#records.delete(hash);
    if (this.#options.now() - known.readMs >= this.#options.ageMsMax) return undefined;
    this.#records.set(hash, known);
    return known.record;
  }

  put(hash: string, record: KeyRecord): void {
    this.#records.delete(hash);
    this.#records.set(hash, { record, readMs: this.#options.now() });
    for (const oldest of this.#records.keys()) {
      if (this.#records.size <= this.#options.countMax) break;
      this.#records.delete(oldest);
    }
  }

  /** Forgets all, for what was changed through this isolate. */
  clear(): void {
    this.#records.clear();
  }
}

/** One cache per isolate: what it holds may be `LIMITS.keyCacheMsMax` old, which is how long a revoked key may still work. */
export const isolateKeys = new KeyCache({
  countMax: LIMITS.keyCacheCountMax,
  ageMsMax: LIMITS.keyCacheMsMax,
  now: () => Date.now(),
});
