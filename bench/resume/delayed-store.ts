import type { GetOptions, PageStore, PutResult, StoreObject } from "../../storage/contract.ts";

/** A link to a store: every call takes a round trip, and bytes share one bandwidth. */
export interface Link {
  rttMs: number;
  /** Megabytes (10^6) a second, all calls together. */
  mbps: number;
}

/** A store behind a link, to be read only: what is put goes nowhere, so that every run finds the same. */
export class DelayedStore implements PageStore {
  readonly name = "delayed";
  readonly #inner: PageStore;
  readonly #link: Link;
  /** When the link will have carried everything that was asked for. */
  #freeMs = 0;

  constructor(inner: PageStore, link: Link) {
    this.#inner = inner;
    this.#link = link;
  }

  async get(key: string, options?: GetOptions): Promise<StoreObject | undefined> {
    // What the store behind the link takes to find and copy bytes is this thread's time, and no part of the way.
    const askedMs = performance.now();
    const object = await this.#inner.get(key, options);
    const { rttMs, mbps } = this.#link;
    this.#freeMs = Math.max(this.#freeMs, askedMs + rttMs) + (object?.bytes.byteLength ?? 0) / (mbps * 1000);
    await until(this.#freeMs);
    return object;
  }

  async put(): Promise<PutResult> {
    await until(performance.now() + this.#link.rttMs);
    return { outcome: "stored", etag: "nowhere" };
  }

  async delete(): Promise<void> {}

  list: PageStore["list"] = (prefix, options) => this.#inner.list(prefix, options);

  async close(): Promise<void> {}
}

/** A timer drops fractions of a millisecond and may come early by as much: never back before the moment. */
async function until(timeMs: number): Promise<void> {
  for (let leftMs = timeMs - performance.now(); leftMs > 0; leftMs = timeMs - performance.now()) {
    await new Promise((resolve) => setTimeout(resolve, Math.ceil(leftMs)));
  }
}
