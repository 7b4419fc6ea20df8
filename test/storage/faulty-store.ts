/** A page store that goes wrong the way remote stores do, from a seed: what is built on stores is tested with it. */
import {
  type GetOptions,
  type ListPage,
  type PageStore,
  type PutOptions,
  type PutResult,
  StoreError,
  type StoreObject,
} from "../../storage/contract.ts";
import { seededRandom } from "./random.ts";

/** How often each fault happens, 0 to 1. */
export interface FaultRates {
  /** Any call fails with `unavailable` and has no effect. */
  error: number;
  /** A put or delete takes effect and then fails with `unavailable`. */
  lostAnswer: number;
  /** Any call waits up to `delayMsMax` before it begins. */
  delay: number;
  /** A put stores only a beginning of its bytes, and says it was stored. */
  tornWrite: number;
  /** A get returns fewer bytes than were asked for. */
  truncate: number;
  /** A get returns bytes with one bit flipped. */
  bitFlip: number;
  /** A get returns what was there before the last put or delete through this store. */
  staleRead: number;
}

/** Which faults happen, and where. */
export interface FaultOptions {
  seed: number;
  rates: Partial<FaultRates>;
  /** Default 20. */
  delayMsMax?: number;
  /** Keys that faults may happen to; by default all. */
  only?: (key: string) => boolean;
}

/** How many faults of each kind have happened. */
export type FaultCounts = Record<keyof FaultRates, number>;

/** The wrapped store; `faults` goes on counting, and `rates` may be changed while it is in use. */
export interface FaultyStore extends PageStore {
  readonly faults: FaultCounts;
  rates: Partial<FaultRates>;
}

/** Wraps a store. With the same seed and the same calls in the same order, the same faults happen. */
export function faultyStore(inner: PageStore, options: FaultOptions): FaultyStore {
  return new FaultInjector(inner, options);
}

class FaultInjector implements FaultyStore {
  readonly name: string;
  readonly faults: FaultCounts = {
    error: 0,
    lostAnswer: 0,
    delay: 0,
    tornWrite: 0,
    truncate: 0,
    bitFlip: 0,
    staleRead: 0,
  };
  rates: Partial<FaultRates>;
  readonly #inner: PageStore;
  readonly #random: () => number;
  readonly #delayMsMax: number;
  readonly #only: (key: string) => boolean;
  /** What each key held before its last change; undefined is absence. */
  readonly #before = new Map<string, StoreObject | undefined>();

  constructor(inner: PageStore, options: FaultOptions) {
    this.name = `faulty ${inner.name}`;
    this.rates = options.rates;
    this.#inner = inner;
    this.#random = seededRandom(options.seed);
    this.#delayMsMax = options.delayMsMax ?? 20;
    this.#only = options.only ?? (() => true);
  }

  async get(key: string, options: GetOptions = {}): Promise<StoreObject | undefined> {
    await this.#begin(key);
    if (this.#before.has(key) && this.#happens("staleRead", key)) return this.#stale(key, options);
    const object = await this.#inner.get(key, options);
    if (object === undefined || object.bytes.byteLength === 0) return object;
    const { bytes } = object;
    if (this.#happens("truncate", key)) {
      return { ...object, bytes: bytes.slice(0, Math.floor(this.#random() * bytes.byteLength)) };
    }
    if (this.#happens("bitFlip", key)) {
      const flipped = bytes.slice();
      const bit = Math.floor(this.#random() * bytes.byteLength * 8);
      flipped[bit >> 3] = (flipped[bit >> 3] as number) ^ (1 << (bit & 7));
      return { ...object, bytes: flipped };
    }
    return object;
  }

  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<PutResult> {
    await this.#begin(key);
    const before = await this.#inner.get(key);
    const torn = this.#happens("tornWrite", key);
    const kept = torn ? bytes.subarray(0, Math.floor(this.#random() * bytes.byteLength)) : bytes;
    const result = await this.#inner.put(key, kept, options);
    if (result.outcome === "stored") this.#before.set(key, before);
    this.#end(key);
    return result;
  }

  async delete(keys: readonly string[]): Promise<void> {
    await this.#begin(keys[0] ?? "");
    for (const key of keys) this.#before.set(key, await this.#inner.get(key));
    await this.#inner.delete(keys);
    this.#end(keys[0] ?? "");
  }

  async list(prefix: string, options: { cursor?: string; signal?: AbortSignal | undefined } = {}): Promise<ListPage> {
    await this.#begin(prefix);
    return this.#inner.list(prefix, options);
  }

  async close(): Promise<void> {
    await this.#inner.close();
  }

  async #begin(key: string): Promise<void> {
    if (this.#happens("delay", key)) {
      await new Promise((resolve) => setTimeout(resolve, this.#random() * this.#delayMsMax));
    }
    if (this.#happens("error", key)) throw new StoreError("unavailable", "injected: no effect");
  }

  #end(key: string): void {
    if (this.#happens("lostAnswer", key)) throw new StoreError("unavailable", "injected: took effect");
  }

  #stale(key: string, options: GetOptions): StoreObject | undefined {
    const object = this.#before.get(key);
    if (object === undefined || options.range === undefined) return object;
    const { offset, bytes } = options.range;
    if (offset + bytes > object.objectBytes) throw new StoreError("corrupt", `range goes beyond the object: ${key}`);
    return { ...object, bytes: object.bytes.slice(offset, offset + bytes) };
  }

  #happens(fault: keyof FaultRates, key: string): boolean {
    const rate = this.rates[fault] ?? 0;
    // Noise is drawn for every possible fault, so that changing one rate does not move the others.
    const happens = this.#random() < rate && this.#only(key);
    if (happens) this.faults[fault]++;
    return happens;
  }
}
