/** The disk of a simulated machine: what engines that live on it keep of the store. It outlives them, and some of what is written to it is torn or flips. */
import type { CacheFiles } from "../../storage/cache-files.ts";
import type { PageStore } from "../../storage/contract.ts";
import { DiskCache } from "../../storage/disk-cache.ts";
import { MemoryFiles } from "../storage/cache-world.ts";
import type { VirtualProcess } from "./virtual-time.ts";

const TORN_SHARE = 0.04;
const FLIP_SHARE = 0.04;
/** Little, so that files give way. */
const BYTES_MAX = 96 * 1024;

/** See the head of this file. */
export class SimDisk {
  readonly #files = new MemoryFiles();
  readonly #random: () => number;
  readonly #caches: DiskCache[] = [];

  constructor(random: () => number) {
    this.#random = random;
  }

  /** Reads that engines have been spared. */
  get hits(): number {
    return this.#caches.reduce((sum, { counts }) => sum + counts.hits, 0);
  }

  /** A process's way to the store, by this disk. */
  before(store: PageStore, process: VirtualProcess): PageStore {
    const cache = new DiskCache(store, { files: this.#seenBy(process), bytesMax: BYTES_MAX, clock: process.clock });
    this.#caches.push(cache);
    return cache;
  }

  /** A dead process begins nothing more. */
  #seenBy(process: VirtualProcess): CacheFiles {
    const files = this.#files;
    const whileAlive = <T>(call: () => Promise<T>): Promise<T> =>
      process.dead ? new Promise<T>(() => undefined) : process.await(call());
    return {
      list: () => whileAlive(() => files.list()),
      read: (name, offset, bytes) => whileAlive(() => files.read(name, offset, bytes)),
      touch: (name, usedMs) => whileAlive(() => files.touch(name, usedMs)),
      remove: (name) => whileAlive(() => files.remove(name)),
      append: (name, bytes) => whileAlive(() => files.append(name, this.#spoilt(bytes))),
    };
  }

  #spoilt(bytes: Uint8Array): Uint8Array {
    const at = Math.floor(this.#random() * bytes.byteLength);
    if (this.#random() < TORN_SHARE) return bytes.subarray(0, at);
    if (this.#random() >= FLIP_SHARE) return bytes;
    const flipped = bytes.slice();
    flipped[at] = (flipped[at] as number) ^ (1 << Math.floor(this.#random() * 8));
    return flipped;
  }
}
