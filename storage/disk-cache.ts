/**
 * A tier on the local disk in front of a page store: what was read or written once is found there again, also by the next process. Only objects whose key
 * names their content are kept; a manifest always comes from the store. Nothing depends on it: whatever is absent, torn, damaged, late or fails is
 * read from the store, and a disk that failed is left alone for a while. Every byte that it gives was verified against the checksum of its record, which
 * binds it to its object and place; that the object itself is intact is for readers to find, who then {@link DiskCache.forget} it.
 */
import { assert } from "../protocol/assert.ts";
import { LIMITS } from "../protocol/limits.ts";
import { CacheBudget } from "./cache-budget.ts";
import type { CacheFiles } from "./cache-files.ts";
import { CacheIndex } from "./cache-index.ts";
import { encodeRecords } from "./cache-record.ts";
import { sha256Hex } from "./checksum.ts";
import type { GetOptions, ListPage, PageStore, PutOptions, PutResult, StoreObject } from "./contract.ts";
import { refuseAborted } from "./deadline.ts";
import { mayBeIntact } from "./envelope.ts";
import { assertRange } from "./key-rules.ts";
import { parseObjectKey } from "./keys.ts";

/** Files that wait to be removed, at most; beyond it the first of them is trusted again, and its readers find out. */
const UNTRUSTED_MAX = 4096;

/** How a disk cache works. */
export interface DiskCacheOptions {
  files: CacheFiles;
  /** Of all files together, at most (a few processes may share a folder, see `docs/operations.md`). */
  bytesMax: number;
  clock: { nowMs(): number; wallMs(): number; deadline(ms: number): AbortSignal };
}

/** What a disk cache has done. */
export interface DiskCacheCounts {
  /** Reads that it answered, and their bytes. */
  hits: number;
  hitBytes: number;
  /** Reads of what it may keep that went to the store. */
  misses: number;
  /** Bytes of objects that it wrote down. */
  writtenBytes: number;
  /** Files that gave way, and files that were thrown away because a record was damaged. */
  evictions: number;
  damaged: number;
  /** Calls of the disk that failed or were late. */
  failures: number;
}

/** See the head of this file. */
export class DiskCache implements PageStore {
  readonly name: string;
  readonly counts: DiskCacheCounts = {
    ...{ hits: 0, hitBytes: 0, misses: 0, writtenBytes: 0, evictions: 0, damaged: 0, failures: 0 },
  };
  readonly #inner: PageStore;
  readonly #options: DiskCacheOptions;
  readonly #index: CacheIndex;
  readonly #budget: CacheBudget;
  /** What is written down, one after the other, behind those who read. */
  #writes: Promise<void> = Promise.resolve();
  #writeBytes = 0;
  #readCount = 0;
  #restUntilMs = Number.NEGATIVE_INFINITY;
  /** Files that are to be removed and may still be there: they are not read. */
  readonly #untrusted = new Set<string>();

  constructor(inner: PageStore, options: DiskCacheOptions) {
    assert(options.bytesMax > 0, "disk cache: needs room");
    this.name = `${inner.name} behind a disk cache`;
    this.#inner = inner;
    this.#options = options;
    this.#index = new CacheIndex(options.files);
    this.#budget = new CacheBudget(options.files, options.bytesMax);
  }

  /** Bytes on the disk, as far as is known. */
  get bytes(): number {
    return this.#budget.bytes;
  }

  get bytesMax(): number {
    return this.#options.bytesMax;
  }

  async get(key: string, options: GetOptions = {}): Promise<StoreObject | undefined> {
    refuseAborted(options.signal);
    assertRange(options.range);
    if (!isKept(key) || options.fresh === true) return await this.#inner.get(key, options);
    const found = await this.#find(key, options.range);
    refuseAborted(options.signal);
    if (found !== undefined) {
      this.counts.hits += 1;
      this.counts.hitBytes += found.bytes.byteLength;
      return found;
    }
    this.counts.misses += 1;
    const object = await this.#inner.get(key, options);
    const wanted = options.range?.bytes ?? object?.objectBytes;
    const { offset } = options.range ?? { offset: 0 };
    if (object !== undefined && object.bytes.byteLength === wanted) this.#keep(key, { ...object, offset });
    return object;
  }

  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<PutResult> {
    if (!isKept(key)) return await this.#inner.put(key, bytes, options);
    // What was there may be what is being repaired.
    this.forget(key);
    const result = await this.#inner.put(key, bytes, options);
    if (result.outcome === "stored") {
      this.forget(key);
      this.#keep(key, { bytes, etag: result.etag, objectBytes: bytes.byteLength, offset: 0 });
    }
    return result;
  }

  async delete(keys: readonly string[]): Promise<void> {
    for (const key of keys) this.forget(key);
    await this.#inner.delete(keys);
    for (const key of keys) this.forget(key);
  }

  list(prefix: string, options?: { cursor?: string; signal?: AbortSignal | undefined }): Promise<ListPage> {
    return this.#inner.list(prefix, options);
  }

  /** Drops what is kept of an object: its bytes turned out not to be what its reader expected. */
  forget(key: string): void {
    if (!isKept(key)) return;
    const name = fileNameOf(key);
    const [oldest] = this.#untrusted;
    if (this.#untrusted.size >= UNTRUSTED_MAX) this.#untrusted.delete(oldest as string);
    this.#untrusted.add(name);
    this.#later(0, () => this.#remove(name));
  }

  async #remove(name: string): Promise<void> {
    if (!this.#untrusted.has(name)) return;
    this.#index.drop(name);
    await this.#options.files.remove(name);
    this.#untrusted.delete(name);
  }

  /** Resolves when what waited to be written down is, or has failed. */
  async settled(): Promise<void> {
    await this.#writes;
  }

  async close(): Promise<void> {
    await this.#withDeadline(LIMITS.diskWriteMsMax, this.#writes).catch(() => undefined);
    await this.#inner.close();
  }

  async #find(key: string, range: GetOptions["range"]): Promise<StoreObject | undefined> {
    if (this.#isResting || this.#readCount >= LIMITS.diskReadsMax) return undefined;
    const name = fileNameOf(key);
    if (this.#untrusted.has(name)) return undefined;
    this.#readCount += 1;
    const reading = this.#index.read(name, key, range).finally(() => {
      this.#readCount -= 1;
    });
    try {
      const found = await this.#withDeadline(LIMITS.diskReadMsMax, reading);
      if (found === "damaged") {
        this.counts.damaged += 1;
        this.forget(key);
        return undefined;
      }
      if (found !== undefined) this.#touch(name);
      return found;
    } catch {
      // What was asked of it may never end.
      this.#index.drop(name);
      this.#fail();
      return undefined;
    }
  }

  /** Writes down what was read or stored, behind everything; what would wait too long is left out. */
  #keep(key: string, object: { bytes: Uint8Array; etag: string; objectBytes: number; offset: number }): void {
    const { bytes: data, etag, objectBytes, offset } = object;
    if (data.byteLength === 0 || data.byteLength > this.bytesMax / 4) return;
    // What is read whole says itself whether it is intact.
    if (data.byteLength === objectBytes && !mayBeIntact(data)) return;
    if (this.#writeBytes + data.byteLength > LIMITS.diskWriteBytesMax || this.#isResting) return;
    const name = fileNameOf(key);
    const records = encodeRecords(key, { data, etag, objectBytes, offset });
    this.#later(records.byteLength, async () => {
      await this.#remove(name);
      const gone = await this.#budget.makeRoom(records.byteLength, name);
      for (const other of gone) this.#index.drop(other);
      this.counts.evictions += gone.length;
      await this.#budget.append(name, records);
      this.counts.writtenBytes += data.byteLength;
    });
  }

  #touch(name: string): void {
    const nowMs = this.#options.clock.wallMs();
    if (this.#index.isTouchDue(name, nowMs)) this.#later(0, () => this.#options.files.touch(name, nowMs));
  }

  #later(bytes: number, work: () => Promise<void>): void {
    this.#writeBytes += bytes;
    this.#writes = this.#writes
      .then(async () => {
        if (!this.#isResting) await this.#withDeadline(LIMITS.diskWriteMsMax, work());
      })
      .catch(() => this.#fail())
      .finally(() => {
        this.#writeBytes -= bytes;
      });
  }

  #fail(): void {
    this.counts.failures += 1;
    this.#restUntilMs = this.#options.clock.nowMs() + LIMITS.diskRestMs;
  }

  get #isResting(): boolean {
    return this.#options.clock.nowMs() < this.#restUntilMs;
  }

  async #withDeadline<T>(ms: number, work: Promise<T>): Promise<T> {
    const deadline = this.#options.clock.deadline(ms);
    return await new Promise<T>((resolve, reject) => {
      const giveUp = () => reject(new Error(`a call of the disk took longer than ${ms} ms`));
      deadline.addEventListener("abort", giveUp, { once: true });
      work.then(resolve, reject).finally(() => deadline.removeEventListener("abort", giveUp));
    });
  }
}

/** Everything but manifests, which are the only objects that change. */
function isKept(key: string): boolean {
  const kind = parseObjectKey(key)?.kind;
  return kind !== undefined && kind !== "session";
}

function fileNameOf(key: string): string {
  return `${sha256Hex(key)}.qc`;
}
