/**
 * How an object is encrypted: AES-256-GCM over chunks of 4,096 bytes, each with a nonce and tag of its own, so that a range can be read and
 * verified without the rest. Every chunk is bound to the object's key, the object's length and its place (`docs/page-format.md`, section 11).
 *
 *   chunk:  0 "QENC"   4 key id (4)   8 u32 bytes of the plain object   12 salt of the object (8)   20 ciphertext (4,096)   4116 tag (16)
 *   nonce:  salt (8), u32 place of the chunk
 */
import { createCipheriv, createDecipheriv, type KeyObject, randomBytes } from "node:crypto";
import { assert } from "../protocol/assert.ts";
import { toHex, viewOf } from "./bytes.ts";
import { StoreError } from "./contract.ts";
import { ENCRYPTED_MAGIC } from "./envelope.ts";
import { KEY_ID_BYTES } from "./key-ring.ts";

/** Plain bytes of a chunk; the last one of an object is filled up with zeros. */
export const CHUNK_BYTES = 4096;
const LENGTH_OFFSET = 4 + KEY_ID_BYTES;
const SALT_OFFSET = LENGTH_OFFSET + 4;
/** Random for every write of an object, under a secret that is the object's own: no nonce comes twice. */
const SALT_BYTES = 8;
const TEXT_OFFSET = SALT_OFFSET + SALT_BYTES;
const TAG_BYTES = 16;
/** Bytes of a chunk in the store. */
export const STORED_CHUNK_BYTES: number = TEXT_OFFSET + CHUNK_BYTES + TAG_BYTES;

/** Whose bytes these are; all of it is authenticated. */
export interface ObjectCipher {
  objectKey: string;
  /** AES-256; as a key object, which costs a third of raw bytes for each chunk. */
  secret: KeyObject;
}

/** Chunks of an object of so many plain bytes; an empty one has one, too. */
export function chunkCount(plainBytes: number): number {
  return Math.max(1, Math.ceil(plainBytes / CHUNK_BYTES));
}

/** Encrypts a whole object under a fresh salt. */
export function encryptObject(cipher: ObjectCipher, keyId: string, plain: Uint8Array): Uint8Array<ArrayBuffer> {
  assert(plain.byteLength < 2 ** 32, "encryption: object is too long");
  const count = chunkCount(plain.byteLength);
  const stored = new Uint8Array(count * STORED_CHUNK_BYTES);
  const salt = randomBytes(SALT_BYTES);
  const padded = new Uint8Array(CHUNK_BYTES);
  for (let index = 0; index < count; index++) {
    const part = plain.subarray(index * CHUNK_BYTES, (index + 1) * CHUNK_BYTES);
    padded.fill(0).set(part);
    const chunk = stored.subarray(index * STORED_CHUNK_BYTES, (index + 1) * STORED_CHUNK_BYTES);
    chunk.set(Buffer.from(ENCRYPTED_MAGIC, "latin1"), 0);
    chunk.set(Buffer.from(keyId, "hex"), 4);
    viewOf(chunk).setUint32(LENGTH_OFFSET, plain.byteLength, true);
    chunk.set(salt, SALT_OFFSET);
    const gcm = createCipheriv("aes-256-gcm", cipher.secret, nonceOf(salt, index));
    gcm.setAAD(bound(cipher.objectKey, plain.byteLength, index));
    chunk.set(gcm.update(padded), TEXT_OFFSET);
    gcm.final();
    chunk.set(gcm.getAuthTag(), TEXT_OFFSET + CHUNK_BYTES);
  }
  return stored;
}

/** What the first bytes of a chunk say, not yet authenticated; undefined for what is not encrypted. */
export function chunkHeader(stored: Uint8Array): { keyId: string; plainBytes: number } | undefined {
  if (stored.byteLength < STORED_CHUNK_BYTES) return undefined;
  if (Buffer.from(stored.subarray(0, 4)).toString("latin1") !== ENCRYPTED_MAGIC) return undefined;
  return {
    keyId: toHex(stored.subarray(4, 4 + KEY_ID_BYTES)),
    plainBytes: viewOf(stored).getUint32(LENGTH_OFFSET, true),
  };
}

/**
 * Decrypts consecutive chunks from `firstChunk` on. All of them must belong to an object of `plainBytes` bytes.
 * @returns their plain bytes, zeros of the last one included.
 * @throws {StoreError} `corrupt` for any bit that is not as it was written, under this key, in this place.
 */
export function decryptChunks(
  cipher: ObjectCipher,
  stored: Uint8Array,
  place: { firstChunk: number; plainBytes: number },
): Uint8Array<ArrayBuffer> {
  if (stored.byteLength === 0 || stored.byteLength % STORED_CHUNK_BYTES !== 0) throw damaged("is cut");
  const count = stored.byteLength / STORED_CHUNK_BYTES;
  const plain = new Uint8Array(count * CHUNK_BYTES);
  const first = stored.subarray(0, TEXT_OFFSET);
  for (let i = 0; i < count; i++) {
    const chunk = stored.subarray(i * STORED_CHUNK_BYTES, (i + 1) * STORED_CHUNK_BYTES);
    // Of one write: chunks of an older one of the same length would each authenticate.
    if (Buffer.compare(chunk.subarray(0, TEXT_OFFSET), first) !== 0) throw damaged("has chunks of different headers");
    const nonce = nonceOf(chunk.subarray(SALT_OFFSET, TEXT_OFFSET), place.firstChunk + i);
    const gcm = createDecipheriv("aes-256-gcm", cipher.secret, nonce);
    gcm.setAAD(bound(cipher.objectKey, place.plainBytes, place.firstChunk + i));
    gcm.setAuthTag(chunk.subarray(TEXT_OFFSET + CHUNK_BYTES));
    const text = gcm.update(chunk.subarray(TEXT_OFFSET, TEXT_OFFSET + CHUNK_BYTES));
    try {
      gcm.final();
    } catch {
      throw damaged("does not authenticate");
    }
    plain.set(text, i * CHUNK_BYTES);
  }
  return plain;
}

function nonceOf(salt: Uint8Array, index: number): Uint8Array {
  const nonce = new Uint8Array(SALT_BYTES + 4);
  nonce.set(salt);
  viewOf(nonce).setUint32(SALT_BYTES, index, true);
  return nonce;
}

function bound(objectKey: string, plainBytes: number, index: number): Uint8Array {
  return Buffer.from(`quire page 1\n${objectKey}\n${plainBytes}\n${index}`, "utf8");
}

function damaged(what: string): StoreError {
  return new StoreError("corrupt", `encrypted object ${what}`);
}
