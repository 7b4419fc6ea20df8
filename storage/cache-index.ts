/** What lies where in the files of a disk cache: learnt from the files themselves, as far as they have been looked at. */
import type { CacheFiles } from "./cache-files.ts";
import { type CacheRecord, decodeRecordHead, RECORD_HEAD_BYTES } from "./cache-record.ts";
import { crc32 } from "./checksum.ts";
import type { StoreObject } from "./contract.ts";

/** A file's time of use is set at most so often. */
const TOUCH_MS = 60_000;
/** Files whose records are remembered; others are looked at again. */
const FILES_MAX = 4096;
/** Records of one file, at most; more is thrown away. */
const RECORDS_MAX = 16_384;
/** And of all files that are remembered, some 0.1 KB each. */
const RECORDS_OF_ALL_MAX = 131_072;

interface PlacedRecord extends CacheRecord {
  /** Where in the file it begins. */
  at: number;
}

interface KnownFile {
  records: PlacedRecord[];
  /** Up to where the file has been looked at. */
  endAt: number;
  touchedMs: number;
  /** Somebody looks right now. */
  looking: Promise<Look> | undefined;
}

type Look = "ok" | "damaged" | undefined;

/** Of all files of one cache. The least recently used is forgotten first. */
export class CacheIndex {
  readonly #files: CacheFiles;
  readonly #recordsMax: number;
  readonly #known = new Map<string, KnownFile>();
  #recordCount = 0;

  /** @param recordsMax of all files together, but for the one that is looked at */
  constructor(files: CacheFiles, recordsMax = RECORDS_OF_ALL_MAX) {
    this.#files = files;
    this.#recordsMax = recordsMax;
  }

  /** Records that are remembered. */
  get recordCount(): number {
    return this.#recordCount;
  }

  /** Forgets a file. */
  drop(name: string): void {
    this.#recordCount -= this.#known.get(name)?.records.length ?? 0;
    this.#known.delete(name);
  }

  /** Whether a file's time of use is to be set now; it counts as set then. */
  isTouchDue(name: string, nowMs: number): boolean {
    const known = this.#known.get(name);
    if (known === undefined || nowMs - known.touchedMs < TOUCH_MS) return false;
    known.touchedMs = nowMs;
    return true;
  }

  /**
   * A range of an object, or all of it, every byte verified; undefined where the file does not have it, `damaged` where the file is not to be trusted.
   * Rejects where the disk fails.
   */
  async read(
    name: string,
    key: string,
    range: { offset: number; bytes: number } | undefined,
  ): Promise<StoreObject | "damaged" | undefined> {
    const known = this.#file(name);
    let covering = cover(known.records, range);
    if (covering === undefined) {
      known.looking ??= this.#look(name, key, known).finally(() => {
        known.looking = undefined;
      });
      const looked = await known.looking;
      if (looked !== "ok") {
        this.drop(name);
        return looked;
      }
      covering = cover(known.records, range);
    }
    if (covering === undefined) return undefined;
    const found = await this.#bytesOf(name, covering, range);
    if (found === undefined) this.drop(name);
    return found;
  }

  /** Reads the heads of records that were appended since. */
  async #look(name: string, key: string, known: KnownFile): Promise<Look> {
    for (;;) {
      const bytes = await this.#files.read(name, known.endAt, RECORD_HEAD_BYTES);
      if (bytes === undefined) return undefined;
      const head = decodeRecordHead(key, bytes);
      // A record that is short may still be on its way, from another process.
      if (head === "short") return "ok";
      if (head === undefined || known.records.length >= RECORDS_MAX) return "damaged";
      const [first] = known.records;
      if (first !== undefined && (first.objectBytes !== head.objectBytes || first.etag !== head.etag)) return "damaged";
      known.records.push({ ...head, etag: first?.etag ?? head.etag, at: known.endAt });
      known.endAt += head.headBytes + head.bytes;
      if (this.#known.get(name) === known) this.#recordCount += 1;
      this.#makeRoom(name);
    }
  }

  /** Files used longest ago are forgotten, but for this one. */
  #makeRoom(name: string): void {
    for (const other of this.#known.keys()) {
      if (this.#known.size <= FILES_MAX && this.#recordCount <= this.#recordsMax) return;
      if (other !== name) this.drop(other);
    }
  }

  async #bytesOf(
    name: string,
    covering: readonly PlacedRecord[],
    range: { offset: number; bytes: number } | undefined,
  ): Promise<StoreObject | "damaged" | undefined> {
    const [{ objectBytes, etag }] = covering as [PlacedRecord];
    const { offset, bytes } = range ?? { offset: 0, bytes: objectBytes };
    const into = new Uint8Array(bytes);
    const pieces = await Promise.all(
      covering.map((record) => this.#files.read(name, record.at + record.headBytes, record.bytes)),
    );
    for (const [index, record] of covering.entries()) {
      const piece = pieces[index];
      if (piece === undefined) return undefined;
      if (piece.byteLength !== record.bytes || crc32(piece) !== record.dataCrc) return "damaged";
      const from = Math.max(offset, record.offset);
      const to = Math.min(offset + bytes, record.offset + record.bytes);
      into.set(piece.subarray(from - record.offset, to - record.offset), from - offset);
    }
    return { bytes: into, etag, objectBytes };
  }

  #file(name: string): KnownFile {
    const known = this.#known.get(name) ?? {
      ...{ records: [], endAt: 0, touchedMs: Number.NEGATIVE_INFINITY },
      looking: undefined,
    };
    this.#known.delete(name);
    this.#known.set(name, known);
    this.#makeRoom(name);
    return known;
  }
}

/** Records that hold all of a range, or of the object; undefined where there are none. */
function cover(
  records: readonly PlacedRecord[],
  range: { offset: number; bytes: number } | undefined,
): PlacedRecord[] | undefined {
  const [first] = records;
  if (first === undefined) return undefined;
  const end = range === undefined ? first.objectBytes : range.offset + range.bytes;
  const chosen: PlacedRecord[] = [];
  let next = range?.offset ?? 0;
  while (next < end) {
    let best: PlacedRecord | undefined;
    for (const record of records) {
      const reaches = record.offset + record.bytes;
      if (record.offset <= next && reaches > next && (!best || reaches > best.offset + best.bytes)) best = record;
    }
    if (best === undefined) return undefined;
    chosen.push(best);
    next = best.offset + best.bytes;
  }
  return chosen;
}
