/**
 * A remote store in simulated time. Objects are those of a {@link MemoryStore}; the way to it delays, errs, stalls, tears, loses, flips,
 * cuts, answers from the past, and carries a write out twice or long after its caller has given up.
 */
import {
  type GetOptions,
  type ListPage,
  type PageStore,
  type PutOptions,
  type PutResult,
  StoreError,
  type StoreObject,
} from "../../storage/contract.ts";
import type { MemoryStore } from "../../storage/memory-store.ts";
import type { VirtualProcess, VirtualTime } from "./virtual-time.ts";

/** How often each fault happens to a call it can happen to, 0 to 1. */
export interface SimFaults {
  /** Fails at once, without effect. */
  error: number;
  /** A write takes effect and its answer is an error. */
  lostAnswer: number;
  /** Takes 10 to 400 ms instead of 1 to 5. */
  delay: number;
  /** Is not answered for a minute: the caller's deadline ends it. A write may take effect at any time of that minute. */
  stall: number;
  /** A write stores only a beginning. */
  tornWrite: number;
  /** A write stores nothing and says that it did. */
  lostWrite: number;
  /** A write is carried out a second time, up to two seconds later. */
  duplicate: number;
  /** A read gives fewer bytes than asked for. */
  truncate: number;
  /** A range read gives as many bytes from another place of the object. */
  wrongRange: number;
  bitFlip: number;
  /** A read gives what was there before the last change. */
  staleRead: number;
  /** A listing lacks an entry, or still has one that is gone. */
  staleList: number;
}

/** Every fault and its name. */
export const FAULT_NAMES = [
  "error",
  "lostAnswer",
  "delay",
  "stall",
  "tornWrite",
  "lostWrite",
  "duplicate",
  "truncate",
  "wrongRange",
  "bitFlip",
  "staleRead",
  "staleList",
] as const satisfies readonly (keyof SimFaults)[];

const STALL_MS = 60_000;

/** An object was written. */
export interface SimChange {
  key: string;
  before: Uint8Array | undefined;
  after: Uint8Array;
  /** Someone has read `before` wrongly, and may have taken it for damaged. */
  misread: boolean;
}

/** The one remote store of a world; engines reach it by {@link line}. */
export class SimStore {
  /** Empty: nothing goes wrong. */
  rates: Partial<SimFaults>;
  readonly counts: Record<keyof SimFaults, number>;
  readonly #inner: MemoryStore;
  readonly #time: VirtualTime;
  readonly #random: () => number;
  readonly #onChange: (change: SimChange) => void;
  /** Keys that someone has read wrongly since they were written. */
  readonly #misread = new Set<string>();
  /** What each key held before its last change. */
  readonly #before = new Map<string, StoreObject | undefined>();

  constructor(options: {
    inner: MemoryStore;
    time: VirtualTime;
    random: () => number;
    rates: Partial<SimFaults>;
    /** Told of every object that was written whole. */
    onChange: (change: SimChange) => void;
  }) {
    this.#inner = options.inner;
    this.#time = options.time;
    this.#random = options.random;
    this.rates = options.rates;
    this.#onChange = options.onChange;
    this.counts = Object.fromEntries(FAULT_NAMES.map((name) => [name, 0])) as Record<keyof SimFaults, number>;
  }

  /** The store as one process sees it: a dead one begins nothing more and hears of nothing, but what it sent may still arrive. */
  line(process: VirtualProcess): PageStore {
    const whileAlive = <T>(call: () => Promise<T>): Promise<T> =>
      process.dead ? new Promise<T>(() => undefined) : process.await(call());
    return {
      name: "simulated",
      get: (key, options) => whileAlive(() => this.#get(key, options ?? {})),
      put: (key, bytes, options) => {
        const copy = bytes.slice();
        return whileAlive(() => this.#put(key, copy, options ?? {}));
      },
      delete: (keys) => whileAlive(() => this.#delete(keys)),
      list: (prefix, options) => whileAlive(() => this.#list(prefix, options ?? {})),
      close: async () => undefined,
    };
  }

  async #get(key: string, options: GetOptions): Promise<StoreObject | undefined> {
    await this.#travel(options.signal);
    const { range } = options;
    if (this.#before.has(key) && this.#happens("staleRead")) return part(this.#before.get(key), range);
    const whole = await this.#inner.get(key);
    const object = part(whole, range);
    if (!object || !whole || object.bytes.byteLength === 0) return object;
    const { bytes } = object;
    if (this.#happens("truncate")) {
      this.#misread.add(key);
      return { ...object, bytes: bytes.slice(0, Math.floor(this.#random() * bytes.byteLength)) };
    }
    if (range && whole.bytes.byteLength > range.bytes && this.#happens("wrongRange")) {
      const offset = Math.floor(this.#random() * (whole.bytes.byteLength - range.bytes));
      return { ...object, bytes: whole.bytes.slice(offset, offset + range.bytes) };
    }
    if (this.#happens("bitFlip")) {
      this.#misread.add(key);
      const flipped = bytes.slice();
      const bit = Math.floor(this.#random() * bytes.byteLength * 8);
      flipped[bit >> 3] = (flipped[bit >> 3] as number) ^ (1 << (bit & 7));
      return { ...object, bytes: flipped };
    }
    return object;
  }

  async #put(key: string, bytes: Uint8Array, options: PutOptions): Promise<PutResult> {
    const { signal, condition } = options;
    const change = async (content: Uint8Array): Promise<PutResult> => {
      const before = await this.#inner.get(key);
      const result = await this.#inner.put(key, content, condition === undefined ? {} : { condition });
      if (result.outcome !== "stored") return result;
      this.#before.set(key, before);
      const misread = this.#misread.has(key);
      // Written again as it was, it has the same etag: whoever misread it may still replace it.
      if (before?.etag !== result.etag) this.#misread.delete(key);
      if (content.byteLength === bytes.byteLength) {
        this.#onChange({ key, before: before?.bytes, after: content, misread });
      }
      return result;
    };
    await this.#travel(signal, () => void change(bytes));
    if (this.#happens("lostWrite")) return { outcome: "stored", etag: "0".repeat(64) };
    const torn = this.#happens("tornWrite");
    const result = await change(torn ? bytes.subarray(0, Math.floor(this.#random() * bytes.byteLength)) : bytes);
    if (this.#happens("duplicate")) this.#time.after(this.#random() * 2000, () => void change(bytes));
    if (this.#happens("lostAnswer")) throw new StoreError("unavailable", "injected: took effect");
    return result;
  }

  async #delete(keys: readonly string[]): Promise<void> {
    const change = async () => {
      for (const key of keys) this.#before.set(key, await this.#inner.get(key));
      await this.#inner.delete(keys);
    };
    await this.#travel(undefined, () => void change());
    await change();
    if (this.#happens("lostAnswer")) throw new StoreError("unavailable", "injected: took effect");
  }

  async #list(prefix: string, options: { cursor?: string; signal?: AbortSignal | undefined }): Promise<ListPage> {
    await this.#travel(options.signal);
    const page = await this.#inner.list(prefix, options);
    if (page.keys.length === 0 || !this.#happens("staleList")) return page;
    const gone = [...this.#before].find(
      ([key, object]) =>
        object !== undefined && key.startsWith(prefix) && !page.keys.some((entry) => entry.key === key),
    );
    const at = Math.floor(this.#random() * page.keys.length);
    const keys = page.keys.filter((_, index) => index !== at);
    if (gone?.[1]) keys.push({ key: gone[0], bytes: gone[1].objectBytes, modifiedMs: 0 });
    return { ...page, keys: keys.sort((a, b) => (a.key < b.key ? -1 : 1)) };
  }

  /** The way there. @param late what a stalled call may still do */
  async #travel(signal: AbortSignal | undefined, late?: () => void): Promise<void> {
    if (this.#happens("error")) throw new StoreError("unavailable", "injected: no effect");
    if (this.#happens("stall")) {
      if (late && this.#random() < 0.5) this.#time.after(this.#random() * STALL_MS, late);
      await this.#untilAborted(STALL_MS, signal);
      throw new StoreError("unavailable", "injected: stalled");
    }
    await this.#untilAborted(this.#happens("delay") ? 10 + 390 * this.#random() : 1 + 4 * this.#random(), signal);
  }

  async #untilAborted(ms: number, signal: AbortSignal | undefined): Promise<void> {
    const refuse = () => new StoreError("aborted", "the caller's deadline is over");
    if (signal?.aborted) throw refuse();
    await new Promise<void>((resolve, reject) => {
      const onAbort = () => reject(refuse());
      signal?.addEventListener("abort", onAbort, { once: true });
      this.#time.after(ms, () => {
        signal?.removeEventListener("abort", onAbort);
        resolve();
      });
    });
  }

  #happens(fault: keyof SimFaults): boolean {
    // Noise is drawn for every possible fault, so that one rate can be changed without moving the others.
    const happens = this.#random() < (this.rates[fault] ?? 0);
    if (happens) this.counts[fault] += 1;
    return happens;
  }
}

function part(object: StoreObject | undefined, range: GetOptions["range"]): StoreObject | undefined {
  if (!object || !range) return object && { ...object, bytes: object.bytes.slice() };
  if (range.offset + range.bytes > object.bytes.byteLength) {
    throw new StoreError("corrupt", "range goes beyond the object");
  }
  return { ...object, bytes: object.bytes.slice(range.offset, range.offset + range.bytes) };
}
