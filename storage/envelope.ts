/**
 * The envelope of objects that are read whole: magic, version, body length, body, SHA-256. Its frame is the same in
 * every version, so that damage is told apart from a version that is not known here.
 *
 *   0  magic, 8 ASCII bytes      8  u32 version      12  u32 body bytes      16  body      16+body  SHA-256 of all before it
 */
import { assert } from "../protocol/assert.ts";
import { bytesEqual, toHex, viewOf } from "./bytes.ts";
import { sha256 } from "./checksum.ts";
import { FormatError, refuseUnless } from "./format-error.ts";

/** Where the body begins. */
export const BODY_OFFSET = 16;
const DIGEST_BYTES = 32;

/** First bytes of a segment, which is no envelope: its blocks have checksums of their own. */
const SEGMENT_MAGIC = "QUIRESEG";

/** First bytes of whatever an encrypted store wrote; a reader without its keys leaves it alone. */
export const ENCRYPTED_MAGIC = "QENC";

/** Names one format. */
export interface EnvelopeKind {
  /** 8 ASCII characters. */
  readonly magic: string;
  /** The version written, and the newest that is read. */
  readonly version: number;
  /** The oldest that is read; without it, only the one written. */
  readonly oldestVersion?: number;
}

/** An envelope under construction: fill `body`, then call {@link sealEnvelope}. */
export interface OpenEnvelope {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Zeroed view of `bodyBytes` bytes. */
  readonly body: Uint8Array<ArrayBuffer>;
}

/** Allocates the object once, so that large bodies are written in place. */
export function beginEnvelope(kind: EnvelopeKind, bodyBytes: number): OpenEnvelope {
  assert(kind.magic.length === 8, "envelope: magic must have 8 characters");
  const bytes = new Uint8Array(BODY_OFFSET + bodyBytes + DIGEST_BYTES);
  bytes.set(Buffer.from(kind.magic, "latin1"), 0);
  const view = viewOf(bytes);
  view.setUint32(8, kind.version, true);
  view.setUint32(12, bodyBytes, true);
  return { bytes, body: bytes.subarray(BODY_OFFSET, BODY_OFFSET + bodyBytes) };
}

/** Writes the digest and returns the finished object. */
export function sealEnvelope({ bytes }: Pick<OpenEnvelope, "bytes">): Uint8Array<ArrayBuffer> {
  const digestOffset = bytes.byteLength - DIGEST_BYTES;
  bytes.set(sha256(bytes.subarray(0, digestOffset)), digestOffset);
  return bytes;
}

/**
 * The digest by which a manifest names a finished object: SHA-256 of everything but its last 32 bytes, which hold that
 * same value. Hex.
 */
export function envelopeDigest(bytes: Uint8Array): string {
  return toHex(bytes.subarray(bytes.byteLength - DIGEST_BYTES));
}

/**
 * Verifies an object and returns its body, a view into `bytes`.
 * @throws {FormatError} `corrupt`; `unsupported_version` for an intact object of a version that is not read, or an encrypted one; `mismatch` for an
 *   intact object whose digest is not `expectedDigest`.
 */
export function openEnvelope(kind: EnvelopeKind, bytes: Uint8Array, expectedDigest?: string): Uint8Array {
  const view = checkMagic(kind, bytes);
  const bodyBytes = view.getUint32(12, true);
  refuseUnless(bytes.byteLength === BODY_OFFSET + bodyBytes + DIGEST_BYTES, `${kind.magic}: length does not match`);
  const digestOffset = BODY_OFFSET + bodyBytes;
  const intact = bytesEqual(sha256(bytes.subarray(0, digestOffset)), bytes.subarray(digestOffset));
  refuseUnless(intact, `${kind.magic}: digest does not match`);
  checkVersion(kind, view);
  if (expectedDigest !== undefined && envelopeDigest(bytes) !== expectedDigest) {
    throw new FormatError("mismatch", `${kind.magic}: not the object that was named`);
  }
  return bytes.subarray(BODY_OFFSET, digestOffset);
}

/**
 * Magic and version of an object of which only the beginning was read; whoever reads so verifies what it uses.
 * @throws {FormatError} `corrupt`, or `unsupported_version`, which here may be said of damage, too.
 */
export function openHead(kind: EnvelopeKind, bytes: Uint8Array): void {
  checkVersion(kind, checkMagic(kind, bytes));
}

function checkMagic(kind: EnvelopeKind, bytes: Uint8Array): DataView {
  refuseUnless(bytes.byteLength >= BODY_OFFSET + DIGEST_BYTES, `${kind.magic}: too short`);
  if (toLatin1(bytes.subarray(0, 4)) === ENCRYPTED_MAGIC)
    throw new FormatError(
      "unsupported_version",
      `${kind.magic}: encrypted, and there is no key here (QUIRE_STORE_KEYS)`,
    );
  refuseUnless(toLatin1(bytes.subarray(0, 8)) === kind.magic, `${kind.magic}: no such magic`);
  return viewOf(bytes);
}

function checkVersion(kind: EnvelopeKind, view: DataView): void {
  const version = view.getUint32(8, true);
  refuseUnless(version >= 1, `${kind.magic}: version 0`);
  const oldest = kind.oldestVersion ?? kind.version;
  if (version > kind.version || version < oldest) {
    throw new FormatError("unsupported_version", `${kind.magic}: version ${version}, not ${oldest} to ${kind.version}`);
  }
}

/** False for an envelope of whatever kind that is damaged; true for what is none. */
export function mayBeIntact(bytes: Uint8Array): boolean {
  if (toLatin1(bytes.subarray(0, 5)) !== "QUIRE") return true;
  if (bytes.byteLength < BODY_OFFSET + DIGEST_BYTES) return false;
  if (toLatin1(bytes.subarray(0, 8)) === SEGMENT_MAGIC) return true;
  const digestOffset = bytes.byteLength - DIGEST_BYTES;
  return bytesEqual(sha256(bytes.subarray(0, digestOffset)), bytes.subarray(digestOffset));
}

function toLatin1(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("latin1");
}
