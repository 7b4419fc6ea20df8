/** Keys that this isolate has seen a moment ago, so that not every request asks the key ring. */
import { LIMITS } from "../../protocol/limits.ts";
import { RecentMap, type RecentMapOptions } from "../recent-map.ts";
import { KeyIndex, type KeyRecord, readKeyTable } from "./key-record.ts";

/** How much a cache keeps, and for how long. */
export interface KeyCacheOptions extends RecentMapOptions {
  /** How old a record may be when nobody can be asked. */
  staleMsMax: number;
}

/**
 * Records of keys that exist, by hash. A key that is revoked is refused everywhere once `ageMsMax` has passed; while the key ring cannot be
 * asked, once `staleMsMax` has. Keys that do not exist are not remembered: each wrong one is another, and they would push out the good ones.
 */
export class KeyCache extends RecentMap<KeyRecord> {
  readonly #staleMsMax: number;

  constructor(options: KeyCacheOptions) {
    super(options);
    this.#staleMsMax = options.staleMsMax;
  }

  /** A record for when there is nobody to ask. */
  stale(hash: string): KeyRecord | undefined {
    return this.get(hash, this.#staleMsMax);
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
