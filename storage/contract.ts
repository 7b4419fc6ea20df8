/**
 * The page store: a flat, strongly consistent object store with ranges and conditional writes. R2, S3, MinIO, a folder or memory.
 * Keys are `/`-separated parts of 1-200 characters `[A-Za-z0-9._-]`, none of them `.` or `..`, at most 512 bytes in all.
 * `a` and `a/b` may both be objects. Any other key is a programmer's error (an assertion).
 */
export interface StoreObject {
  /** The caller's alone, who may change them and give their memory back (`giveBack`): the store neither keeps nor reads them. */
  bytes: Uint8Array<ArrayBuffer>;
  /** Opaque version of the whole object, for conditional writes. */
  etag: string;
  /** Bytes of the whole object, also for a range read. */
  objectBytes: number;
}

/** A read of a whole object or of a range. */
export interface GetOptions {
  /** A range read of at least one byte; it must lie inside the object, otherwise the read fails with `corrupt`. */
  range?: { offset: number; bytes: number };
  /** Asks the store itself, whatever a cache on the way holds. */
  fresh?: boolean;
  signal?: AbortSignal | undefined;
}

/** A write, conditional or not. */
export interface PutOptions {
  /** `{etag}`: only if the object is still at this version. `"absent"`: only if there is none. */
  condition?: { etag: string } | "absent";
  signal?: AbortSignal | undefined;
}

/** Whether a write took place; `conflict` means that its condition did not hold and nothing was written. */
export type PutResult = { outcome: "stored"; etag: string } | { outcome: "conflict" };

/** One page of a listing; `cursor` asks for the next and is absent on the last. */
export interface ListPage {
  keys: { key: string; bytes: number; modifiedMs: number }[];
  cursor?: string;
}

/** Implementations verify nothing about the content: callers check what they read. All calls honour `signal`. */
export interface PageStore {
  readonly name: string;
  /** Undefined where there is no such object. @throws {StoreError} */
  get(key: string, options?: GetOptions): Promise<StoreObject | undefined>;
  /** Atomic: readers see all of it or nothing. @throws {StoreError} */
  put(key: string, bytes: Uint8Array, options?: PutOptions): Promise<PutResult>;
  /** Absent keys are not an error. @throws {StoreError} */
  delete(keys: readonly string[]): Promise<void>;
  /** Ascending by key; at most 1,000 a page. @throws {StoreError} */
  list(prefix: string, options?: { cursor?: string; signal?: AbortSignal | undefined }): Promise<ListPage>;
  /** Of a store that keeps copies: the bytes of this object turned out to be damaged, ask for them anew next time. */
  forget?(key: string): void;
  close(): Promise<void>;
}

/** What can go wrong with a store. */
export type StoreErrorCode = "unavailable" | "timeout" | "denied" | "corrupt" | "aborted";

/** An operating error of a store; `unavailable` and `timeout` may be tried again. */
export class StoreError extends Error {
  override readonly name = "StoreError";
  readonly code: StoreErrorCode;
  /** Of `corrupt`, where it is known: the version of the object that is damaged, for a put in its place. */
  readonly etag: string | undefined;
  constructor(code: StoreErrorCode, message: string, options: ErrorOptions & { etag?: string } = {}) {
    super(message, options);
    this.code = code;
    this.etag = options.etag;
  }
}
