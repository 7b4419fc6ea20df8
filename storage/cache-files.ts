/** The folder of a disk cache: files that only grow, may vanish at any time, and belong to nobody. Several processes may share it. */
import { open, readdir, stat, unlink, utimes } from "node:fs/promises";
import { join, resolve } from "node:path";
import { ignoreAbsent, toStoreError } from "./fs-store.ts";
import { makeFolder } from "./make-folder.ts";

const FILE_PATTERN = /^[0-9a-f]{64}\.qc$/;

/** One file of the cache. */
export interface CacheFile {
  name: string;
  bytes: number;
  usedMs: number;
}

/** What a disk cache needs of a disk. Every call may fail. */
export interface CacheFiles {
  list(): Promise<CacheFile[]>;
  /** As many of these bytes as there are; undefined where there is no such file. */
  read(name: string, offset: number, bytes: number): Promise<Uint8Array<ArrayBuffer> | undefined>;
  /** Behind what is there, in one piece; makes the file where there is none. */
  append(name: string, bytes: Uint8Array): Promise<void>;
  /** Sets when the file was last used. */
  touch(name: string, usedMs: number): Promise<void>;
  /** A file that is not there is no error. */
  remove(name: string): Promise<void>;
}

/**
 * The files of a folder, which is made where there is none and should hold nothing else.
 * @throws {StoreError} `denied` or `unavailable` when it cannot be used.
 */
export async function openCacheFolder(path: string): Promise<CacheFiles> {
  const folder = resolve(path);
  try {
    await makeFolder(folder, { mode: 0o700 });
    await readdir(folder);
  } catch (error) {
    throw toStoreError(error, `cannot use the folder ${folder} as a disk cache (--disk-cache)`);
  }
  return new FolderFiles(folder);
}

class FolderFiles implements CacheFiles {
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
  }

  async list(): Promise<CacheFile[]> {
    const files: CacheFile[] = [];
    for (const name of await readdir(this.#folder)) {
      if (!FILE_PATTERN.test(name)) continue;
      const stats = await stat(join(this.#folder, name)).catch(ignoreAbsent);
      if (stats !== undefined) files.push({ name, bytes: stats.size, usedMs: stats.mtimeMs });
    }
    return files;
  }

  async read(name: string, offset: number, bytes: number): Promise<Uint8Array<ArrayBuffer> | undefined> {
    const file = await open(join(this.#folder, name), "r").catch(ignoreAbsent);
    if (file === undefined) return undefined;
    try {
      const into = new Uint8Array(bytes);
      let done = 0;
      while (done < bytes) {
        const { bytesRead } = await file.read(into, done, bytes - done, offset + done);
        if (bytesRead === 0) break;
        done += bytesRead;
      }
      return into.subarray(0, done);
    } finally {
      await file.close();
    }
  }

  async append(name: string, bytes: Uint8Array): Promise<void> {
    const file = await open(join(this.#folder, name), "a", 0o600);
    try {
      // In one call, so that appends of two processes do not mix; what a full disk cut off is found by its checksum.
      await file.write(bytes);
    } finally {
      await file.close();
    }
  }

  async touch(name: string, usedMs: number): Promise<void> {
    await utimes(join(this.#folder, name), usedMs / 1000, usedMs / 1000).catch(ignoreAbsent);
  }

  async remove(name: string): Promise<void> {
    await unlink(join(this.#folder, name)).catch(ignoreAbsent);
  }
}
