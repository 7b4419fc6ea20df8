/** Checksums of stored bytes: CRC-32 for each range that is read alone, SHA-256 for small whole objects. */
import { createHash } from "node:crypto";
import { crc32 as zlibCrc32 } from "node:zlib";

/** CRC-32 (IEEE 802.3, as in gzip), unsigned. */
export function crc32(bytes: Uint8Array): number {
  return zlibCrc32(bytes);
}

/** SHA-256, 32 bytes. */
export function sha256(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  return new Uint8Array(createHash("sha256").update(bytes).digest());
}

/** SHA-256 as lower-case hex. */
export function sha256Hex(bytes: Uint8Array | string): string {
  return createHash("sha256").update(bytes).digest("hex");
}
