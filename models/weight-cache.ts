/**
 * Packed weights on disk beside the model, so that a quantized model is read, converted and quantized once.
 *
 *   packed matrices, one after the other   footer: JSON {key, fingerprint, entries: [{name, offset, bytes, crc32}]}
 *   u32 footer bytes   u32 CRC-32 of the footer   "QUIREWTS"
 *
 * The key stands for everything that the bytes depend on (see {@link weightCacheKey}). A cache that does not fit, is cut short or has a
 * flipped bit is as good as absent: what it should have held comes from the checkpoint.
 */
import { createHash } from "node:crypto";
import { type FileHandle, open, rename, rm, stat } from "node:fs/promises";
import { basename } from "node:path";
import { crc32 } from "node:zlib";
import type { Device, Matrix, MatrixEncoding } from "../kernels/contract.ts";
import type { ModelConfig } from "./contract.ts";
import { FORWARD_VERSION } from "./fingerprint.ts";
import { readFully } from "./weights-file.ts";

const VERSION = 1;
const MAGIC = "QUIREWTS";
const TRAILER_BYTES = 16;
/** Far above what the largest models need for their entries. */
const FOOTER_BYTES_MAX = 64 * 1024 * 1024;
const PIECE_BYTES = 8 * 1024 * 1024;
/** A file being written that is older was left behind by a process that ended. */
const STALE_MS = 600_000;

interface Entry {
  name: string;
  offset: number;
  bytes: number;
  crc32: number;
}

interface Footer {
  key: string;
  fingerprint: string;
  entries: Entry[];
}

/** An open cache whose key fits. */
export interface WeightCache {
  /** The model's, as it was when the cache was written. */
  readonly fingerprint: string;
  /** Writes a tensor's packed bytes into `matrix`; false: it is not there, or broken, and the matrix holds nothing useful. */
  fill(name: string, device: Device, matrix: Matrix): Promise<boolean>;
  /** Whether {@link fill} has met broken bytes. */
  readonly isBroken: boolean;
  close(): Promise<void>;
}

/** Which file, and which writing of it. */
export type FileIdentity = readonly [name: string, bytes: number, changedMs: number];

/** To be taken before a file is opened: one that takes its place meanwhile then has another. */
export function identifyFiles(paths: readonly string[]): Promise<FileIdentity[]> {
  return Promise.all(
    paths.map(async (path): Promise<FileIdentity> => {
      const { size, mtimeMs } = await stat(path);
      return [basename(path), size, mtimeMs];
    }),
  );
}

/** What packed bytes depend on: the checkpoint's files (by name, size and time of change), configuration, encoding, packing, versions. */
export function weightCacheKey(options: {
  files: readonly FileIdentity[];
  config: ModelConfig;
  encoding: MatrixEncoding;
  packingId: string;
}): string {
  const { files, config, encoding, packingId } = options;
  const parts = [VERSION, FORWARD_VERSION, packingId, encoding, config, files];
  return createHash("sha256").update(JSON.stringify(parts)).digest("hex");
}

/** Opens a cache; undefined where there is none for this key. The caller closes it. */
export async function openWeightCache(path: string, key: string): Promise<WeightCache | undefined> {
  const file = await open(path, "r").catch(() => undefined);
  if (file === undefined) return undefined;
  const footer = await readFooter(file).catch(() => undefined);
  if (footer?.key !== key) {
    await file.close();
    return undefined;
  }
  return new CacheFile(file, footer);
}

class CacheFile implements WeightCache {
  readonly fingerprint: string;
  isBroken = false;
  readonly #file: FileHandle;
  readonly #entries: ReadonlyMap<string, Entry>;

  constructor(file: FileHandle, { fingerprint, entries }: Footer) {
    this.fingerprint = fingerprint;
    this.#file = file;
    this.#entries = new Map(entries.map((entry) => [entry.name, entry]));
  }

  async fill(name: string, device: Device, matrix: Matrix): Promise<boolean> {
    const entry = this.#entries.get(name);
    if (entry?.bytes !== matrix.packedBytes) {
      this.isBroken = true;
      return false;
    }
    const isWhole = await this.#copy(entry, device, matrix).catch(() => false);
    if (!isWhole) this.isBroken = true;
    return isWhole;
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  async #copy({ name, offset, bytes, crc32: expected }: Entry, device: Device, matrix: Matrix): Promise<boolean> {
    const piece = new Uint8Array(Math.min(PIECE_BYTES, bytes));
    let checksum = 0;
    for (let at = 0; at < bytes; at += piece.length) {
      const part = piece.subarray(0, Math.min(piece.length, bytes - at));
      await readFully(name, this.#file, part, offset + at);
      checksum = crc32(part, checksum);
      device.writePacked(matrix, at, part);
    }
    return checksum === expected;
  }
}

async function readFooter(file: FileHandle): Promise<Footer | undefined> {
  const { size } = await file.stat();
  if (size < TRAILER_BYTES) return undefined;
  const trailer = new Uint8Array(TRAILER_BYTES);
  await readFully("cache", file, trailer, size - TRAILER_BYTES);
  const view = new DataView(trailer.buffer);
  const footerBytes = view.getUint32(0, true);
  const isCache = new TextDecoder().decode(trailer.subarray(8)) === MAGIC;
  if (!isCache || footerBytes > Math.min(FOOTER_BYTES_MAX, size - TRAILER_BYTES)) return undefined;
  const bytes = new Uint8Array(footerBytes);
  await readFully("cache", file, bytes, size - TRAILER_BYTES - footerBytes);
  // The checksum vouches for the shape: only this module writes such a footer.
  return crc32(bytes) === view.getUint32(4, true) ? JSON.parse(new TextDecoder().decode(bytes)) : undefined;
}

/** What a new cache is to hold. */
export interface WeightCacheContents {
  key: string;
  fingerprint: string;
  device: Device;
  matrices: ReadonlyMap<string, Matrix>;
}

/**
 * Writes a cache and puts it in place at once, replacing another. False where it cannot be written (a read-only folder, a full disk,
 * another process at the same work): a cache is a convenience.
 */
export async function writeWeightCache(path: string, contents: WeightCacheContents): Promise<boolean> {
  const temporary = `${path}.tmp`;
  const left = await stat(temporary).catch(() => undefined);
  if (left !== undefined && Date.now() - left.mtimeMs > STALE_MS) await rm(temporary, { force: true });
  const file = await open(temporary, "wx").catch(() => undefined);
  if (file === undefined) return false;
  try {
    await writeContents(file, contents);
    await file.sync();
    await file.close();
    await rename(temporary, path);
    return true;
  } catch {
    await file.close().catch(() => undefined);
    await rm(temporary, { force: true });
    return false;
  }
}

async function writeContents(file: FileHandle, contents: WeightCacheContents): Promise<void> {
  const { key, fingerprint, device, matrices } = contents;
  const entries: Entry[] = [];
  let offset = 0;
  for (const [name, matrix] of matrices) {
    const bytes = matrix.packedBytes;
    let checksum = 0;
    for (let at = 0; at < bytes; at += PIECE_BYTES) {
      const piece = await device.readPacked(matrix, at, Math.min(PIECE_BYTES, bytes - at));
      checksum = crc32(piece, checksum);
      await file.writeFile(piece);
    }
    entries.push({ name, offset, bytes, crc32: checksum });
    offset += bytes;
  }
  const footer = new TextEncoder().encode(JSON.stringify({ key, fingerprint, entries } satisfies Footer));
  const trailer = new Uint8Array(TRAILER_BYTES);
  const view = new DataView(trailer.buffer);
  view.setUint32(0, footer.length, true);
  view.setUint32(4, crc32(footer), true);
  trailer.set(new TextEncoder().encode(MAGIC), 8);
  await file.writeFile(footer);
  await file.writeFile(trailer);
}
