/** Keys that this isolate has seen a moment ago, so that not every request asks the key ring. */
import { LIMITS } from "../../protocol/limits.ts";
import { KeyIndex, type KeyRecord, readKeyTable } from "./key-record.ts";

/** How much a cache keeps, and for how long. */
export interface KeyCacheOptions {
  countMax: number;
  ageMsMax: number;
  /** How old a record may be when nobody can be asked. */
  staleMsMax: number;
  now: () => number;
}

/**
 * Records of keys that exist, by hash; the least recently used go first. A key that is revoked is refused everywhere once `ageMsMax` has
 * passed; while the key ring cannot be asked, once `staleMsMax` has. Keys that do not exist are not remembered: each wrong one is another, and
 * they would push out the good ones.
 */
export class KeyCache {
  readonly #options: KeyCacheOptions;
  readonly #records = new Map<string, { record: KeyRecord; readMs: number }>();

  constructor(options: KeyCacheOptions) {
    this.#options = options;
  }

  /** A record that is as good as asked for. */
  get(hash: string): KeyRecord | undefined {
    return this.#youngerThan(this.#options.ageMsMax, hash);
  }

  /** A record for when there is nobody to ask. */
  stale(hash: string): KeyRecord | undefined {
    return this.#youngerThan(this.#options.staleMsMax, hash);
  }

  put(hash: string, record: KeyRecord): void {
    this.#records.delete(hash);
    this.#records.set(hash, { record, readMs: this.#options.now() });
    for (const oldest of this.#records.keys()) {
      if (this.#records.size <= this.#options.countMax) break;
      this.#records.delete(oldest);
    }
  }

  /** Forgets one, which is gone. */
  delete(hash: string): void {
    this.#records.delete(hash);
  }

  /** Forgets all, for what was changed through this isolate. */
  clear(): void {
    this.#records.clear();
  }

  #youngerThan(msMax: number, hash: string): KeyRecord | undefined {
    const known = this.#records.get(hash);
    if (!known || this.#options.now() - known.readMs >= msMax) return undefined;
    // Moves to the end: the first key is the least recently used.
    this.#records.delete(hash);
    this.#records.set(hash, known);
    return known.record;
  }
}

/** The index of a table that rarely changes: it is read again when its text is another one. */
export class KeyTableCache {
  #text = "";
  #index = new KeyIndex(new Map());

  /** @throws {QuireError | SyntaxError} for a text that is not a table of keys. */
  of(text: string): KeyIndex {
    if (text !== this.#text) {
      this.#index = new KeyIndex(text === "" ? new Map() : readKeyTable(text));
      this.#text = text;
    }
    return this.#index;
  }
}

/** One per isolate: derived from the secret, so that sharing cannot be observed; reading 256 keys takes a millisecond. */
export const isolateKeyTable = new KeyTableCache();

/** One cache per isolate: what it holds may be `LIMITS.keyCacheMsMax` old, which is how long a revoked key may still work. */
export const isolateKeys = new KeyCache({
  countMax: LIMITS.keyCacheCountMax,
  ageMsMax: LIMITS.keyCacheMsMax,
  staleMsMax: LIMITS.keyStaleMsMax,
  now: () => Date.now(),
});
