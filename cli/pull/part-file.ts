/** A download that is not finished: bytes so far, and a record of what they belong to, so that a later process can go on. */
import { createHash, type Hash } from "node:crypto";
import { type FileHandle, open, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { FileHash, HubFile } from "./hub-files.ts";
import { PullError } from "./pull-error.ts";

const readBytes = 1 << 20;

/** Where a file of one hash is gathered (`.part`, with its record `.json`) and where it lies once it is checked. */
export function stagedPath(stage: string, { path, hash }: HubFile): string {
  return join(stage, `${encodeURIComponent(path)}.${hash.hex.slice(0, 16)}`);
}

/** What belongs to a part. */
interface PartRecord {
  path: string;
  commit: string;
  sizeBytes: number;
  hash: FileHash;
  /** Strong, as the server sent it with the first bytes; absent where it sent none. */
  etag?: string;
}

/** One part, open for appending. Close it in any case. */
export class PartFile {
  readonly #path: string;
  readonly #record: PartRecord;
  readonly #handle: FileHandle;
  #hash: Hash;
  #offsetBytes = 0;

  private constructor(path: string, record: PartRecord, handle: FileHandle) {
    this.#path = path;
    this.#record = record;
    this.#handle = handle;
    this.#hash = startHash(record);
  }

  /** Opens what an earlier process left of the same content, else an empty part. @throws {PullError} when the disk refuses. */
  static async open(stage: string, file: HubFile, context: { commit: string; signal: AbortSignal }): Promise<PartFile> {
    const path = stagedPath(stage, file);
    const record = { path: file.path, commit: context.commit, sizeBytes: file.sizeBytes, hash: file.hash };
    return onDisk(file.path, async () => {
      const left = await readRecord(`${path}.json`);
      const isSame = left?.sizeBytes === file.sizeBytes && left.hash?.hex === file.hash.hex;
      // Once to make or empty it, since a file opened for appending cannot be written to at a place.
      await (await open(`${path}.part`, isSame ? "a" : "w")).close();
      const part = new PartFile(path, isSame ? { ...left, ...record } : record, await open(`${path}.part`, "r+"));
      try {
        await part.#readBack(context.signal);
        await part.#writeRecord();
        return part;
      } catch (error) {
        await part.close();
        throw error;
      }
    });
  }

  /** How many bytes are there; the next ones belong behind them. */
  get offsetBytes(): number {
    return this.#offsetBytes;
  }

  get etag(): string | undefined {
    return this.#record.etag;
  }

  /** Remembers the server's name for the content; a weak one says too little. */
  async setEtag(etag: string | null): Promise<void> {
    const isStrong = etag !== null && /^"[\x21\x23-\x7e]{1,200}"$/.test(etag);
    delete this.#record.etag;
    if (isStrong) this.#record.etag = etag;
    await this.#writeRecord();
  }

  /** Keeps the bytes behind those that are there. */
  async append(bytes: Uint8Array): Promise<void> {
    await onDisk(this.#record.path, async () => {
      let writtenBytes = 0;
      while (writtenBytes < bytes.length) {
        const rest = bytes.length - writtenBytes;
        const result = await this.#handle.write(bytes, writtenBytes, rest, this.#offsetBytes + writtenBytes);
        writtenBytes += result.bytesWritten;
      }
    });
    this.#hash.update(bytes);
    this.#offsetBytes += bytes.length;
  }

  /** Throws all bytes away. */
  async restart(): Promise<void> {
    await onDisk(this.#record.path, () => this.#handle.truncate(0));
    this.#hash = startHash(this.#record);
    this.#offsetBytes = 0;
  }

  /** True when all bytes are there and are the right ones; they then lie at {@link stagedPath} for good. */
  async finish(): Promise<boolean> {
    if (this.#hash.copy().digest("hex") !== this.#record.hash.hex) return false;
    await onDisk(this.#record.path, async () => {
      await this.#handle.sync();
      await rename(`${this.#path}.part`, this.#path);
      await rm(`${this.#path}.json`, { force: true });
    });
    return true;
  }

  async close(): Promise<void> {
    await this.#handle.close().catch(() => undefined);
  }

  /** A hash cannot be put by: what is there is read again. */
  async #readBack(signal: AbortSignal): Promise<void> {
    const { size } = await this.#handle.stat();
    if (size > this.#record.sizeBytes) return this.restart();
    const piece = new Uint8Array(Math.min(readBytes, size));
    while (this.#offsetBytes < size) {
      signal.throwIfAborted();
      const { bytesRead } = await this.#handle.read(piece, 0, piece.length, this.#offsetBytes);
      if (bytesRead === 0) break;
      this.#hash.update(piece.subarray(0, bytesRead));
      this.#offsetBytes += bytesRead;
    }
  }

  async #writeRecord(): Promise<void> {
    const temporary = `${this.#path}.json.new`;
    await onDisk(this.#record.path, async () => {
      await writeFile(temporary, `${JSON.stringify(this.#record)}\n`);
      await rename(temporary, `${this.#path}.json`);
    });
  }
}

async function readRecord(path: string): Promise<PartRecord | undefined> {
  try {
    return Object(JSON.parse(await readFile(path, "utf8"))) as PartRecord;
  } catch {
    return undefined;
  }
}

/** Starts the hash of a file's content; git puts a head before it. */
export function startHash({ hash, sizeBytes }: Pick<HubFile, "hash" | "sizeBytes">): Hash {
  return hash.kind === "sha256" ? createHash("sha256") : createHash("sha1").update(`blob ${sizeBytes}\0`);
}

/** Runs work on the disk. @throws {PullError} one line for what the system refuses; other errors as they are. */
export async function onDisk<T>(what: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const { code } = Object(error) as { code?: unknown };
    if (error instanceof PullError || typeof code !== "string") throw error;
    throw new PullError(`${what} cannot be written (${code === "ENOSPC" ? "no space left on the disk" : code})`);
  }
}
