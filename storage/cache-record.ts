/**
 * How ranges of one object lie in one file of the disk cache: records, one behind the other, in the order in which they were read. A record is right or
 * it is not there: its first checksum binds what it says of itself, and the object's key, its second one the bytes.
 *
 *   0 magic "QREC"   4 u32 CRC-32 of key and bytes 8 to 40 + etag   8 u64 bytes of the object   16 u64 offset   24 u32 bytes n   28 u32 CRC-32 of the bytes
 *   32 u32 bytes of the etag e   36 u32 0   40 etag   40 + e the n bytes
 */
import { viewOf } from "./bytes.ts";
import { crc32 } from "./checksum.ts";

const MAGIC = 0x43455251;
const ETAG_OFFSET = 40;
/** Longer ones are not kept. */
const ETAG_BYTES_MAX = 128;

/** Bytes that say what a record is, whatever its etag. */
export const RECORD_HEAD_BYTES = ETAG_OFFSET + ETAG_BYTES_MAX;
/** Bytes of one record, at most: what has to be read and verified for any part of it. */
export const RECORD_DATA_BYTES_MAX = 64 * 1024;

/** What a record says of itself. */
export interface CacheRecord {
  objectBytes: number;
  etag: string;
  /** Where in the object its bytes lie. */
  offset: number;
  bytes: number;
  dataCrc: number;
  /** Bytes of the record in the file before its own. */
  headBytes: number;
}

/** Records for a range of an object, as they are appended; nothing for an etag that is too long. */
export function encodeRecords(
  key: string,
  range: { offset: number; data: Uint8Array; objectBytes: number; etag: string },
): Uint8Array<ArrayBuffer> {
  const etag = Buffer.from(range.etag, "utf8");
  const { data } = range;
  if (etag.byteLength > ETAG_BYTES_MAX) return new Uint8Array(0);
  const headBytes = ETAG_OFFSET + etag.byteLength;
  const records = new Uint8Array(Math.ceil(data.byteLength / RECORD_DATA_BYTES_MAX) * headBytes + data.byteLength);
  let at = 0;
  for (let from = 0; from < data.byteLength; from += RECORD_DATA_BYTES_MAX) {
    const part = data.subarray(from, from + RECORD_DATA_BYTES_MAX);
    const head = records.subarray(at, at + headBytes);
    const view = viewOf(head);
    view.setUint32(0, MAGIC, true);
    view.setBigUint64(8, BigInt(range.objectBytes), true);
    view.setBigUint64(16, BigInt(range.offset + from), true);
    view.setUint32(24, part.byteLength, true);
    view.setUint32(28, crc32(part), true);
    view.setUint32(32, etag.byteLength, true);
    head.set(etag, ETAG_OFFSET);
    view.setUint32(4, headCrc(key, head), true);
    records.set(part, at + headBytes);
    at += headBytes + part.byteLength;
  }
  return records;
}

/** Reads the head of a record; `"short"` where it goes beyond `bytes`, undefined where it is none of this object. */
export function decodeRecordHead(key: string, bytes: Uint8Array): CacheRecord | "short" | undefined {
  if (bytes.byteLength < ETAG_OFFSET) return "short";
  const view = viewOf(bytes);
  const etagBytes = view.getUint32(32, true);
  if (view.getUint32(0, true) !== MAGIC || etagBytes > ETAG_BYTES_MAX) return undefined;
  const headBytes = ETAG_OFFSET + etagBytes;
  if (bytes.byteLength < headBytes) return "short";
  const head = bytes.subarray(0, headBytes);
  if (headCrc(key, head) !== view.getUint32(4, true)) return undefined;
  return {
    ...{ objectBytes: Number(view.getBigUint64(8, true)), offset: Number(view.getBigUint64(16, true)), headBytes },
    ...{ bytes: view.getUint32(24, true), dataCrc: view.getUint32(28, true) },
    etag: Buffer.from(head.subarray(ETAG_OFFSET)).toString("utf8"),
  };
}

function headCrc(key: string, head: Uint8Array): number {
  return crc32(Buffer.concat([Buffer.from(`${key}\n`, "utf8"), head.subarray(8)]));
}
