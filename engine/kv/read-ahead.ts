import type { GetOptions, PageStore, StoreObject } from "../../storage/contract.ts";
import type { Clock } from "../settings.ts";
import type { Gate } from "./gate.ts";

/** A range of an object. */
export interface RangeRef {
  objectKey: string;
  offset: number;
  bytes: number;
}

/** What a read-ahead works with. */
export interface ReadAheadOptions {
  store: PageStore;
  gate: Gate;
  clock: Clock;
  getMsMax: number;
}

/**
 * Reads that are begun before what verifies them is known: where the blocks of a first burst lie follows from the manifest, and they
 * need not wait a round trip for the summaries; and summaries, whose names follow from the log, need not wait for the manifest. Whoever asks for exactly such a range
 * gets the read that is under way; nothing is verified or kept here.
 */
export class ReadAhead implements Pick<PageStore, "get"> {
  readonly #options: ReadAheadOptions;
  readonly #begun = new Map<string, Promise<StoreObject | undefined>>();

  constructor(options: ReadAheadOptions) {
    this.#options = options;
  }

  /** Ranges that nobody has asked for yet. */
  get pendingCount(): number {
    return this.#begun.size;
  }

  /**
   * Begins to read the heads of objects whose names are guessed, before anything says that they exist; to be asked for with {@link takeHead}. The returned function
   * forgets what nobody has asked for by then and tells how many bytes of it have come.
   */
  beginHeads(heads: readonly RangeRef[]): () => number {
    const { store, gate, clock, getMsMax } = this.#options;
    const own = new Map<string, { bytes: number; read: Promise<StoreObject | undefined> }>();
    for (const { objectKey, offset, bytes } of heads) {
      const name = rangeName(objectKey, { offset, bytes });
      if (this.#begun.has(name)) continue;
      const range = { offset, bytes };
      const read = gate.run("demand", () => store.get(objectKey, { range, signal: clock.deadline(getMsMax) }));
      const begun = { bytes: 0, read };
      read.then((object) => (begun.bytes = object?.bytes.byteLength ?? 0)).catch(() => {});
      this.#begun.set(name, read);
      own.set(name, begun);
    }
    return () => this.#forget(own);
  }

  /** A head that was begun, once. Undefined, at once or later: it was not, or it is not there, or could not be had; then whoever needs it reads it. */
  takeHead({ objectKey, offset, bytes }: RangeRef): Promise<StoreObject | undefined> | undefined {
    const name = rangeName(objectKey, { offset, bytes });
    const begun = this.#begun.get(name);
    this.#begun.delete(name);
    return begun?.catch(() => undefined);
  }

  /** Begins to read; the returned function forgets what nobody has asked for by then and tells how many bytes that was. */
  begin(ranges: readonly RangeRef[]): () => number {
    const { store, gate, clock, getMsMax } = this.#options;
    const own = new Map<string, { bytes: number; read: Promise<StoreObject | undefined> }>();
    for (const { objectKey, offset, bytes } of ranges) {
      const name = rangeName(objectKey, { offset, bytes });
      if (this.#begun.has(name)) continue;
      // A guess: it takes no place from what is known to be needed, until it is (`Gate.raise`).
      const get = () => store.get(objectKey, { range: { offset, bytes }, signal: clock.deadline(getMsMax) });
      const read = gate.run("fill", get, name);
      // Who asks for it hears of its failure.
      read.catch(() => {});
      this.#begun.set(name, read);
      own.set(name, { bytes, read });
    }
    return () => this.#forget(own);
  }

  #forget(own: ReadonlyMap<string, { bytes: number; read: Promise<StoreObject | undefined> }>): number {
    let unused = 0;
    for (const [name, { bytes, read }] of own) {
      if (this.#begun.get(name) !== read) continue;
      this.#begun.delete(name);
      unused += bytes;
    }
    return unused;
  }

  /** Whether a read of exactly this range is under way or waits for its place: whoever asks for it needs no place of its own. */
  isBegun(objectKey: string, range: { offset: number; bytes: number }): boolean {
    return this.#begun.has(rangeName(objectKey, range));
  }

  /** A range that was begun, once; anything else is read from the store. @throws {StoreError} */
  get(objectKey: string, options: GetOptions = {}): Promise<StoreObject | undefined> {
    const name = options.range && rangeName(objectKey, options.range);
    const begun = name === undefined ? undefined : this.#begun.get(name);
    if (begun === undefined || name === undefined) return this.#options.store.get(objectKey, options);
    this.#begun.delete(name);
    return begun;
  }
}

/** What a read of a range is called, here and at the gate. */
export function rangeName(objectKey: string, range: { offset: number; bytes: number }): string {
  return `${objectKey}@${range.offset}+${range.bytes}`;
}
