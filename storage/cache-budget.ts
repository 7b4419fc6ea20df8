/** Keeps the files of a disk cache within a bound: those used longest ago go first. Other processes that share the folder are counted when it is looked at. */
import type { CacheFile, CacheFiles } from "./cache-files.ts";

/** What is left free when files go, and how much is written before the folder is looked at again. */
const FREE_SHARE = 1 / 16;
const LOOK_SHARE = 1 / 64;

/** Of one cache. Its calls come one after the other. */
export class CacheBudget {
  readonly #files: CacheFiles;
  readonly #bytesMax: number;
  #bytes = 0;
  /** Written since the folder was looked at; at first nobody has. */
  #unseenBytes = Number.POSITIVE_INFINITY;

  constructor(files: CacheFiles, bytesMax: number) {
    this.#files = files;
    this.#bytesMax = bytesMax;
  }

  /** Of all files, as far as is known. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Makes room for an append. Returns the files that went; not the one that is appended to, unless there is no other way. */
  async makeRoom(bytes: number, name: string): Promise<string[]> {
    const isUnsure = this.#unseenBytes + bytes > this.#bytesMax * LOOK_SHARE;
    if (!isUnsure && this.#bytes + bytes <= this.#bytesMax) return [];
    const files = await this.#files.list();
    this.#unseenBytes = 0;
    this.#bytes = files.reduce((sum, file) => sum + file.bytes, 0);
    if (this.#bytes + bytes <= this.#bytesMax) return [];
    const gone: string[] = [];
    for (const file of inOrderOfGoing(files, name)) {
      if (this.#bytes + bytes <= this.#bytesMax * (1 - FREE_SHARE)) break;
      await this.#files.remove(file.name);
      this.#bytes -= file.bytes;
      gone.push(file.name);
    }
    return gone;
  }

  async append(name: string, bytes: Uint8Array): Promise<void> {
    // Counted before it is there: a failed append may have left a part.
    this.#bytes += bytes.byteLength;
    this.#unseenBytes += bytes.byteLength;
    await this.#files.append(name, bytes);
  }
}

function inOrderOfGoing(files: readonly CacheFile[], last: string): CacheFile[] {
  const isLast = (file: CacheFile): number => (file.name === last ? 1 : 0);
  return files.toSorted((a, b) => isLast(a) - isLast(b) || a.usedMs - b.usedMs);
}
