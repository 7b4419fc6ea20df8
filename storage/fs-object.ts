/**
 * How one object lies in one file of the folder store: a header of 64 bytes, then the bytes as they are. The header
 * makes the etag of a range read cheap, and a file that was cut is noticed.
 *
 *   0 magic "QUIREOBJ"   8 u64 bytes of the object   16 SHA-256 of the object (its etag)   48 zeros   64 the object
 *
 * A key `a/b` is the file `a/b~`: `~` is in no key, so `a` and `a/b` can both exist, and no key names the store's own
 * files, which begin with `~`.
 */
import type { FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { toHex, viewOf } from "./bytes.ts";
import { sha256 } from "./checksum.ts";
import { StoreError } from "./contract.ts";

const MAGIC = "QUIREOBJ";
/** Bytes of a file before the object's. */
export const FILE_HEADER_BYTES = 64;
const OBJECT_SUFFIX = "~";

/** What a file says of its object. */
export interface FileHeader {
  objectBytes: number;
  etag: string;
}

/** Path of an object's file; `key` must have been checked. */
export function objectPath(root: string, key: string): string {
  return join(root, ...key.split("/")) + OBJECT_SUFFIX;
}

/** Name of the object within its folder, or undefined for a folder or a file of the store's own. */
export function objectNameOf(fileName: string): string | undefined {
  if (fileName.startsWith(OBJECT_SUFFIX) || !fileName.endsWith(OBJECT_SUFFIX)) return undefined;
  return fileName.slice(0, -OBJECT_SUFFIX.length);
}

/** The header for these bytes, and the etag in it. */
export function encodeFileHeader(bytes: Uint8Array): { header: Uint8Array; etag: string } {
  const header = new Uint8Array(FILE_HEADER_BYTES);
  header.set(Buffer.from(MAGIC, "latin1"));
  viewOf(header).setBigUint64(8, BigInt(bytes.byteLength), true);
  const digest = sha256(bytes);
  header.set(digest, 16);
  return { header, etag: toHex(digest) };
}

/** Reads and checks the header. @throws {StoreError} `corrupt` for a file that is not ours or was cut, with what tells it from others as its etag. */
export async function readFileHeader(file: FileHandle): Promise<FileHeader> {
  const { size: fileBytes, ino, mtimeNs } = await file.stat({ bigint: true });
  const size = Number(fileBytes);
  const etag = `damaged-${ino}-${mtimeNs}-${size}`;
  if (size < FILE_HEADER_BYTES) throw new StoreError("corrupt", "object file is shorter than its header", { etag });
  const header = await readExactly(file, 0, FILE_HEADER_BYTES);
  const objectBytes = Number(viewOf(header).getBigUint64(8, true));
  if (Buffer.from(header.subarray(0, 8)).toString("latin1") !== MAGIC || size !== FILE_HEADER_BYTES + objectBytes) {
    throw new StoreError("corrupt", "object file is damaged", { etag });
  }
  return { objectBytes, etag: toHex(header.subarray(16, 48)) };
}

/** Reads exactly `bytes` at `offset` of the file. @throws {StoreError} `corrupt` when the file ends before. */
export async function readExactly(file: FileHandle, offset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
  const result = new Uint8Array(bytes);
  let done = 0;
  while (done < bytes) {
    const { bytesRead } = await file.read(result, done, bytes - done, offset + done);
    if (bytesRead === 0) throw new StoreError("corrupt", "object file ends too early");
    done += bytesRead;
  }
  return result;
}
