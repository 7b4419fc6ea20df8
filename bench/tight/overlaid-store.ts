import type { GetOptions, PageStore, PutOptions, PutResult } from "../../storage/contract.ts";
import { MemoryStore } from "../../storage/memory-store.ts";

/** A store over another one: what is put stays in this process, and every process that lays one over the same base finds the same. Deletes nothing. */
export class OverlaidStore implements PageStore {
  readonly name = "overlaid";
  readonly #base: PageStore;
  readonly #own = new MemoryStore();

  constructor(base: PageStore) {
    this.#base = base;
  }

  async get(key: string, options?: GetOptions) {
    return (await this.#own.get(key, options)) ?? (await this.#base.get(key, options));
  }

  /** A condition is about the object that {@link get} gives, wherever it lies: else no turn of a session of the base could be committed. */
  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<PutResult> {
    const { condition } = options;
    if (condition === undefined || (await this.#own.get(key)) !== undefined) return this.#own.put(key, bytes, options);
    const etag = (await this.#base.get(key))?.etag;
    const holds = etag === (condition === "absent" ? undefined : condition.etag);
    return holds ? this.#own.put(key, bytes, { ...options, condition: "absent" }) : { outcome: "conflict" };
  }

  async delete(): Promise<void> {}

  list: PageStore["list"] = (prefix, options) => this.#base.list(prefix, options);

  close(): Promise<void> {
    return this.#base.close();
  }
}
