/** Files of a disk cache in memory, which go wrong on demand, a clock, and a store that counts what it is asked. */
import type { CacheFile, CacheFiles } from "../../storage/cache-files.ts";
import { DiskCache } from "../../storage/disk-cache.ts";
import { MemoryStore } from "../../storage/memory-store.ts";

/** A folder that several caches may share. */
export class MemoryFiles implements CacheFiles {
  readonly files = new Map<string, { bytes: Uint8Array<ArrayBuffer>; usedMs: number }>();
  /** What every call does first: fails, or never ends. */
  trouble: "none" | "fails" | "stalls" = "none";
  calls = 0;
  nowMs = 0;

  get totalBytes(): number {
    return [...this.files.values()].reduce((sum, { bytes }) => sum + bytes.byteLength, 0);
  }

  async list(): Promise<CacheFile[]> {
    await this.#begin();
    return [...this.files].map(([name, { bytes, usedMs }]) => ({ name, bytes: bytes.byteLength, usedMs }));
  }

  async read(name: string, offset: number, bytes: number): Promise<Uint8Array<ArrayBuffer> | undefined> {
    await this.#begin();
    return this.files.get(name)?.bytes.slice(offset, offset + bytes);
  }

  async append(name: string, bytes: Uint8Array): Promise<void> {
    await this.#begin();
    const before = this.files.get(name)?.bytes ?? new Uint8Array(0);
    const after = new Uint8Array(before.byteLength + bytes.byteLength);
    after.set(before);
    after.set(bytes, before.byteLength);
    this.files.set(name, { bytes: after, usedMs: this.nowMs });
  }

  async touch(name: string, usedMs: number): Promise<void> {
    await this.#begin();
    const file = this.files.get(name);
    if (file) file.usedMs = usedMs;
  }

  async remove(name: string): Promise<void> {
    await this.#begin();
    this.files.delete(name);
  }

  async #begin(): Promise<void> {
    this.calls += 1;
    await Promise.resolve();
    if (this.trouble === "fails") throw new Error("injected: the disk fails");
    if (this.trouble === "stalls") await new Promise(() => undefined);
  }
}

/** A store that counts reads. */
export class CountedStore extends MemoryStore {
  reads = 0;

  override async get(...args: Parameters<MemoryStore["get"]>): ReturnType<MemoryStore["get"]> {
    this.reads += 1;
    return await super.get(...args);
  }
}

/** Time that stands still; deadlines fire at once while `isLate`. */
export class CacheClock {
  ms = 0;
  isLate = false;
  nowMs = (): number => this.ms;
  wallMs = (): number => this.ms;
  deadline = (): AbortSignal => {
    const controller = new AbortController();
    if (this.isLate) setImmediate(() => controller.abort());
    return controller.signal;
  };
}

/** A cache over a folder and a store that it may share with others. */
export function cacheOver(parts: {
  files: CacheFiles;
  store: MemoryStore;
  clock?: CacheClock;
  bytesMax?: number;
}): DiskCache {
  const { files, store, clock = new CacheClock(), bytesMax = 2 ** 30 } = parts;
  return new DiskCache(store, { files, clock, bytesMax });
}
