/** A page store whose objects are encrypted per tenant, ranges included; wraps any other. Keys that are no tenant's pass through as they are. */

import { giveBack } from "./bytes.ts";
import {
  CHUNK_BYTES,
  chunkCount,
  chunkHeader,
  decryptChunks,
  encryptObject,
  STORED_CHUNK_BYTES,
} from "./chunk-cipher.ts";
import {
  type GetOptions,
  type ListPage,
  type PageStore,
  type PutOptions,
  type PutResult,
  StoreError,
  type StoreObject,
} from "./contract.ts";
import { type KeyRing, type MasterKey, objectSecret } from "./key-ring.ts";
import { assertRange } from "./key-rules.ts";
import { ROOT_PREFIX } from "./keys.ts";

/**
 * See the module's comment. Etags and the sizes in lists are those of the stored, encrypted objects. An object that is not encrypted, or
 * whose key is not in the ring, is `denied`: it is somebody's, only not ours to judge. One that does not authenticate is `corrupt`.
 */
export class EncryptedStore implements PageStore {
  readonly name: string;
  readonly #inner: PageStore;
  readonly #ring: KeyRing;

  constructor(inner: PageStore, ring: KeyRing) {
    this.name = `${inner.name}, encrypted`;
    this.#inner = inner;
    this.#ring = ring;
  }

  async get(key: string, options: GetOptions = {}): Promise<StoreObject | undefined> {
    if (tenantOf(key) === undefined) return await this.#inner.get(key, options);
    const { range } = options;
    assertRange(range);
    if (range === undefined) {
      const object = await this.#inner.get(key, options);
      return object && this.#opened(key, object, { offset: 0, bytes: undefined });
    }
    const firstChunk = Math.floor(range.offset / CHUNK_BYTES);
    const endChunk = Math.floor((range.offset + range.bytes - 1) / CHUNK_BYTES) + 1;
    const stored = {
      offset: firstChunk * STORED_CHUNK_BYTES,
      bytes: (endChunk - firstChunk) * STORED_CHUNK_BYTES,
    };
    const object = await this.#inner.get(key, { ...options, range: stored });
    return object && this.#opened(key, object, range);
  }

  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<PutResult> {
    const namespace = tenantOf(key);
    if (namespace === undefined) return await this.#inner.put(key, bytes, options);
    const [master] = this.#ring;
    const secret = objectSecret(master, namespace, key);
    return await this.#inner.put(key, encryptObject({ objectKey: key, secret }, master.id, bytes), options);
  }

  delete(keys: readonly string[]): Promise<void> {
    return this.#inner.delete(keys);
  }

  list(prefix: string, options?: { cursor?: string; signal?: AbortSignal | undefined }): Promise<ListPage> {
    return this.#inner.list(prefix, options);
  }

  forget(key: string): void {
    this.#inner.forget?.(key);
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  #opened(key: string, object: StoreObject, range: { offset: number; bytes: number | undefined }): StoreObject {
    try {
      return this.#open(key, object, range);
    } catch (error) {
      this.forget(key);
      if (!(error instanceof StoreError) || error.code !== "corrupt") throw error;
      throw new StoreError("corrupt", error.message, { cause: error, etag: object.etag });
    }
  }

  /** Plain bytes of what was read; `range.bytes` undefined: all of it. */
  #open(key: string, object: StoreObject, range: { offset: number; bytes: number | undefined }): StoreObject {
    const header = chunkHeader(object.bytes);
    if (header === undefined) throw new StoreError("denied", "the object is not encrypted (quire rekey encrypts it)");
    const { keyId, plainBytes } = header;
    const whole = chunkCount(plainBytes) * STORED_CHUNK_BYTES;
    if (object.objectBytes !== whole) throw new StoreError("corrupt", "encrypted object has another length");
    const secret = objectSecret(this.#master(keyId), tenantOf(key) ?? "", key);
    const firstChunk = Math.floor(range.offset / CHUNK_BYTES);
    const plain = decryptChunks({ objectKey: key, secret }, object.bytes, { firstChunk, plainBytes });
    const bytes = range.bytes ?? plainBytes;
    if (range.offset + bytes > plainBytes) throw new StoreError("corrupt", "range reaches beyond the object");
    const from = range.offset - firstChunk * CHUNK_BYTES;
    const opened = { bytes: plain.slice(from, from + bytes), etag: object.etag, objectBytes: plainBytes };
    for (const read of [object.bytes, plain]) giveBack(read);
    return opened;
  }

  #master(keyId: string): MasterKey {
    const master = this.#ring.find(({ id }) => id === keyId);
    if (master === undefined) throw new StoreError("denied", `no key ${keyId} in QUIRE_STORE_KEYS`);
    return master;
  }
}

/** The namespace in a tenant's key; undefined for other keys. */
export function tenantOf(key: string): string | undefined {
  if (!key.startsWith(ROOT_PREFIX)) return undefined;
  return key.slice(ROOT_PREFIX.length).split("/")[0];
}
