/** Page store in memory: for tests, and for an engine that need not outlive its process. */
import { ownBytes } from "./bytes.ts";
import { sha256Hex } from "./checksum.ts";
import {
  type GetOptions,
  type ListPage,
  type PageStore,
  type PutOptions,
  type PutResult,
  StoreError,
  type StoreObject,
} from "./contract.ts";
import { refuseAborted } from "./deadline.ts";
import { assertKey, assertPrefix, assertRange } from "./key-rules.ts";

const LIST_KEYS_MAX = 1000;

interface Entry {
  bytes: Uint8Array<ArrayBuffer>;
  etag: string;
  modifiedMs: number;
}

/** A store that lives as long as the object. Bytes are copied in and out. */
export class MemoryStore implements PageStore {
  readonly name = "memory";
  readonly #entries = new Map<string, Entry>();
  readonly #now: () => number;

  constructor(options: { now?: () => number } = {}) {
    this.#now = options.now ?? Date.now;
  }

  async get(key: string, options: GetOptions = {}): Promise<StoreObject | undefined> {
    assertKey(key);
    assertRange(options.range);
    refuseAborted(options.signal);
    const entry = this.#entries.get(key);
    if (entry === undefined) return undefined;
    const objectBytes = entry.bytes.byteLength;
    const { offset, bytes } = options.range ?? { offset: 0, bytes: objectBytes };
    if (offset + bytes > objectBytes) throw new StoreError("corrupt", `range goes beyond the object: ${key}`);
    return { bytes: entry.bytes.slice(offset, offset + bytes), etag: entry.etag, objectBytes };
  }

  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<PutResult> {
    assertKey(key);
    refuseAborted(options.signal);
    const current = this.#entries.get(key);
    const { condition } = options;
    if (condition === "absent" && current !== undefined) return { outcome: "conflict" };
    if (typeof condition === "object" && current?.etag !== condition.etag) return { outcome: "conflict" };
    const entry = { bytes: ownBytes(bytes), etag: sha256Hex(bytes), modifiedMs: this.#now() };
    this.#entries.set(key, entry);
    return { outcome: "stored", etag: entry.etag };
  }

  async delete(keys: readonly string[]): Promise<void> {
    for (const key of keys) assertKey(key);
    for (const key of keys) this.#entries.delete(key);
  }

  async list(prefix: string, options: { cursor?: string; signal?: AbortSignal | undefined } = {}): Promise<ListPage> {
    assertPrefix(prefix);
    refuseAborted(options.signal);
    const after = options.cursor ?? "";
    const found = [...this.#entries].filter(([key]) => key.startsWith(prefix) && key > after);
    found.sort(([a], [b]) => (a < b ? -1 : 1));
    const keys = found
      .slice(0, LIST_KEYS_MAX)
      .map(([key, entry]) => ({ key, bytes: entry.bytes.byteLength, modifiedMs: entry.modifiedMs }));
    const last = keys.at(-1);
    return found.length > keys.length && last !== undefined ? { keys, cursor: last.key } : { keys };
  }

  async close(): Promise<void> {}
}
