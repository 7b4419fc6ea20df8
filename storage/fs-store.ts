/**
 * Page store in a folder. An object is written beside the others, synced, then renamed into place and its folder synced:
 * readers and crashes see all of it or nothing. Writes and deletes decide under the folder's lock, so that conditions
 * hold between processes too. The file system must tell upper from lower case and must lock files.
 */
import { randomUUID } from "node:crypto";
import type { Stats } from "node:fs";
import { type FileHandle, mkdir, open, readdir, rename, rmdir, stat, unlink } from "node:fs/promises";
import { dirname, join, relative, resolve } from "node:path";
import { LIMITS } from "../protocol/limits.ts";
import {
  type GetOptions,
  type ListPage,
  type PageStore,
  type PutOptions,
  type PutResult,
  StoreError,
  type StoreObject,
} from "./contract.ts";
import { Gate, withDeadline } from "./deadline.ts";
import { damagedEtag } from "./format-error.ts";
import { FolderLock } from "./fs-lock.ts";
import {
  encodeFileHeader,
  FILE_HEADER_BYTES,
  objectNameOf,
  objectPath,
  readExactly,
  readFileHeader,
} from "./fs-object.ts";
import { assertKey, assertPrefix, assertRange } from "./key-rules.ts";
import { makeFolder } from "./make-folder.ts";
import { syncFolder } from "./replace-file.ts";

const LIST_KEYS_MAX = 1000;
const TEMPORARY_FOLDER = "~tmp";
const LOCK_FILE = "~lock.db";
/** Older temporary files belong to writers that are gone. */
const TEMPORARY_AGE_MS_MAX = 3_600_000;

/** Limits, by default those of `LIMITS`, and the clock by which old temporary files are judged. */
export interface FsStoreOptions {
  getMsMax?: number;
  putMsMax?: number;
  concurrency?: number;
  /** Keys of one page of a list, at most (and by default) 1,000. */
  listKeysMax?: number;
  now?: () => number;
}

/** A store over a folder; several, in any number of processes, may share it. */
export class FsStore implements PageStore {
  readonly name = "fs";
  readonly #root: string;
  readonly #lock: FolderLock;
  readonly #gate: Gate;
  readonly #getMsMax: number;
  readonly #putMsMax: number;
  readonly #listKeysMax: number;

  private constructor(root: string, lock: FolderLock, options: FsStoreOptions) {
    this.#root = root;
    this.#lock = lock;
    this.#gate = new Gate(options.concurrency ?? LIMITS.storeConcurrency);
    this.#getMsMax = options.getMsMax ?? LIMITS.storeGetMsMax;
    this.#putMsMax = options.putMsMax ?? LIMITS.storePutMsMax;
    this.#listKeysMax = Math.min(options.listKeysMax ?? LIST_KEYS_MAX, LIST_KEYS_MAX);
  }

  /**
   * Opens the store, making the folder where there is none, and removes what dead writers left.
   * @throws {StoreError} `denied`, `unavailable` or `timeout` when the folder cannot be used.
   */
  static async open(path: string, options: FsStoreOptions = {}): Promise<FsStore> {
    const root = resolve(path);
    const temporary = join(root, TEMPORARY_FOLDER);
    const deadlineMs = options.putMsMax ?? LIMITS.storePutMsMax;
    try {
      await withDeadline({ deadlineMs, what: `opening the folder ${root} (--store)` }, async () => {
        await makeFolder(temporary);
        await removeOldFiles(temporary, (options.now ?? Date.now)() - TEMPORARY_AGE_MS_MAX);
      });
    } catch (error) {
      throw toStoreError(error, `cannot use the folder ${root} as a page store (--store)`);
    }
    return new FsStore(root, new FolderLock(join(root, LOCK_FILE)), options);
  }

  async get(key: string, options: GetOptions = {}): Promise<StoreObject | undefined> {
    assertKey(key);
    assertRange(options.range);
    return this.#call(`get ${key}`, this.#getMsMax, options.signal, async () => {
      const file = await openOrAbsent(objectPath(this.#root, key));
      if (file === undefined) return undefined;
      try {
        const { etag, objectBytes } = await readFileHeader(file);
        const { offset, bytes } = options.range ?? { offset: 0, bytes: objectBytes };
        if (offset + bytes > objectBytes) throw new StoreError("corrupt", `range goes beyond the object: ${key}`);
        return { bytes: await readExactly(file, FILE_HEADER_BYTES + offset, bytes), etag, objectBytes };
      } finally {
        await file.close();
      }
    });
  }

  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<PutResult> {
    assertKey(key);
    const { condition } = options;
    return this.#call(`put ${key}`, this.#putMsMax, options.signal, async (signal) => {
      const target = objectPath(this.#root, key);
      if (!(await holds(condition, target))) return { outcome: "conflict" };
      const temporary = join(this.#root, TEMPORARY_FOLDER, `${process.pid}-${randomUUID()}`);
      try {
        const { header, etag } = encodeFileHeader(bytes);
        await writeSynced(temporary, [header, bytes]);
        const stored = await this.#lock.run(signal, async () => {
          if (!(await holds(condition, target))) return false;
          signal.throwIfAborted();
          const firstNew = await mkdir(dirname(target), { recursive: true });
          await rename(temporary, target);
          await syncFolders(dirname(target), firstNew);
          return true;
        });
        return stored ? { outcome: "stored", etag } : { outcome: "conflict" };
      } finally {
        await unlink(temporary).catch(ignoreAbsent);
      }
    });
  }

  async delete(keys: readonly string[]): Promise<void> {
    for (const key of keys) assertKey(key);
    for (const key of keys) {
      await this.#call(`delete ${key}`, this.#putMsMax, undefined, (signal) =>
        this.#lock.run(signal, async () => {
          const target = objectPath(this.#root, key);
          // Not synced: a delete that a power failure undoes is garbage to be collected again.
          await unlink(target).catch(ignoreAbsent);
          await this.#removeEmptyFolders(dirname(target));
        }),
      );
    }
  }

  async list(prefix: string, options: { cursor?: string; signal?: AbortSignal | undefined } = {}): Promise<ListPage> {
    assertPrefix(prefix);
    return this.#call(`list ${prefix}`, this.#getMsMax, options.signal, async (signal) => {
      const found: string[] = [];
      for await (const key of walk(this.#root, "", { prefix, after: options.cursor ?? "" })) {
        signal.throwIfAborted();
        found.push(key);
        if (found.length > this.#listKeysMax) break;
      }
      const more = found.length > this.#listKeysMax;
      if (more) found.pop();
      const keys: ListPage["keys"] = [];
      for (const key of found) {
        const stats = await statOrAbsent(objectPath(this.#root, key));
        if (stats !== undefined) keys.push({ key, bytes: stats.size - FILE_HEADER_BYTES, modifiedMs: stats.mtimeMs });
      }
      return more ? { keys, cursor: found.at(-1) as string } : { keys };
    });
  }

  /** Waits for the write in progress, then frees the lock file; writes after that fail. */
  async close(): Promise<void> {
    await this.#lock.close();
  }

  async #call<T>(
    what: string,
    deadlineMs: number,
    signal: AbortSignal | undefined,
    task: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    return withDeadline({ what: `fs store: ${what}`, deadlineMs, signal }, (ownSignal) =>
      this.#gate.run(ownSignal, async () => {
        try {
          return await task(ownSignal);
        } catch (error) {
          throw toStoreError(error, `fs store: ${what} failed`);
        }
      }),
    );
  }

  /** Under the lock, so that no writer is about to rename into a folder that goes away. */
  async #removeEmptyFolders(from: string): Promise<void> {
    for (let folder = from; relative(this.#root, folder) !== ""; folder = dirname(folder)) {
      try {
        await rmdir(folder);
      } catch {
        return;
      }
    }
  }
}

/** Whether a put's condition is true of the file now. */
async function holds(condition: PutOptions["condition"], path: string): Promise<boolean> {
  if (condition === undefined) return true;
  const file = await openOrAbsent(path);
  if (file === undefined) return condition === "absent";
  try {
    // Also of a damaged file, so that whoever has met it can put another in its place.
    return (
      condition !== "absent" && (await readFileHeader(file).then(({ etag }) => etag, damagedEtag)) === condition.etag
    );
  } finally {
    await file.close();
  }
}

/** Keys in ascending order, without looking into folders that cannot hold one that is asked for. */
async function* walk(
  folder: string,
  folderKey: string,
  wanted: { prefix: string; after: string },
): AsyncGenerator<string> {
  const entries = await readdir(folder, { withFileTypes: true }).catch(ignoreAbsent);
  const children: { key: string; path?: string }[] = [];
  for (const entry of entries ?? []) {
    if (!entry.isDirectory()) {
      const name = objectNameOf(entry.name);
      if (name !== undefined) children.push({ key: folderKey + name });
    } else if (entry.name !== TEMPORARY_FOLDER) {
      children.push({ key: `${folderKey}${entry.name}/`, path: join(folder, entry.name) });
    }
  }
  children.sort((a, b) => (a.key < b.key ? -1 : 1));
  for (const { key, path } of children) {
    if (path === undefined) {
      if (key.startsWith(wanted.prefix) && key > wanted.after) yield key;
    } else if (
      (key.startsWith(wanted.prefix) || wanted.prefix.startsWith(key)) &&
      (key > wanted.after || wanted.after.startsWith(key))
    ) {
      yield* walk(path, key, wanted);
    }
  }
}

async function writeSynced(path: string, parts: readonly Uint8Array[]): Promise<void> {
  const file = await open(path, "wx", 0o600);
  try {
    for (const part of parts) await writeFully(file, part);
    await file.sync();
  } finally {
    await file.close();
  }
}

async function writeFully(file: FileHandle, bytes: Uint8Array): Promise<void> {
  let done = 0;
  while (done < bytes.byteLength) {
    const { bytesWritten } = await file.write(bytes, done, bytes.byteLength - done);
    done += bytesWritten;
  }
}

/** Syncs the folder, and where folders are new their parents up to the one that was there before. */
async function syncFolders(folder: string, firstNew: string | undefined): Promise<void> {
  const last = firstNew === undefined ? folder : dirname(firstNew);
  for (let current = folder; ; current = dirname(current)) {
    await syncFolder(current);
    if (current === last || current === dirname(current)) return;
  }
}

async function removeOldFiles(folder: string, olderThanMs: number): Promise<void> {
  for (const name of await readdir(folder)) {
    const path = join(folder, name);
    const stats = await statOrAbsent(path);
    if (stats !== undefined && stats.mtimeMs < olderThanMs) await unlink(path).catch(ignoreAbsent);
  }
}

async function openOrAbsent(path: string): Promise<FileHandle | undefined> {
  return open(path, "r").catch(ignoreAbsent);
}

async function statOrAbsent(path: string): Promise<Stats | undefined> {
  return stat(path).catch(ignoreAbsent);
}

/** For calls to which a file that is not there is no error. @throws what else went wrong */
export function ignoreAbsent(error: unknown): undefined {
  if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
  throw error;
}

/** An error of the file system as one of a store. */
export function toStoreError(error: unknown, message: string): StoreError {
  if (error instanceof StoreError) return error;
  const code = (error as NodeJS.ErrnoException).code ?? "";
  const denied = ["EACCES", "EPERM", "EROFS"].includes(code);
  return new StoreError(denied ? "denied" : "unavailable", `${message}${code && `: ${code}`}`, { cause: error });
}
