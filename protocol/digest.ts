/** SHA-256 and hex, as names of keys, namespaces, transcripts and signatures use them; the same in Node and in a Worker. */

import { Sha256 } from "./sha256.ts";

/** SHA-256 of bytes, which are not in shared memory. */
export function sha256(bytes: Uint8Array): Promise<ArrayBuffer> {
  return crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>);
}

const utf8 = new TextEncoder();
/** Newer runtimes have it. */
const { toHex } = Uint8Array.prototype as { toHex?: (this: Uint8Array) => string };
const HEX_OF_BYTE: readonly string[] = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

/** Lower-case hex. */
export function hex(bytes: ArrayBuffer | Uint8Array<ArrayBuffer>): string {
  const view = bytes instanceof Uint8Array ? bytes : new Uint8Array(bytes);
  if (toHex !== undefined) return toHex.call(view);
  let text = "";
  for (const byte of view) text += HEX_OF_BYTE[byte];
  return text;
}

/** SHA-256 of a text's UTF-8, lower-case hex. */
export async function sha256Hex(text: string): Promise<string> {
  return hex(await sha256(utf8.encode(text)));
}

/** Of so many bytes a digest in JavaScript is done sooner than the platform is asked for one. */
const SMALL_BYTES = 1_024;
const small = new Sha256();

/**
 * SHA-256, lower-case hex: at once for few bytes. How long that takes may depend on them (`sha256.ts`): for what its sender may know that of, never with a
 * secret of ours in it.
 */
export function contentDigestHex(bytes: Uint8Array): string | Promise<string> {
  return bytes.byteLength <= SMALL_BYTES ? hex(small.digest(bytes)) : sha256(bytes).then(hex);
}

/** A key that is imported once. */
export type HmacKey = Awaited<ReturnType<typeof crypto.subtle.importKey>>;

/** A key for {@link hmacHex}. `key` is not empty. */
export function hmacKey(key: string): Promise<HmacKey> {
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  return crypto.subtle.importKey("raw", utf8.encode(key), algorithm, false, ["sign"]);
}

/** HMAC-SHA256 of a text's UTF-8, lower-case hex. `key` is not empty; {@link hmacKey} is for one that is used often. */
export async function hmacHex(key: string | HmacKey, text: string): Promise<string> {
  return hex(await crypto.subtle.sign("HMAC", typeof key === "string" ? await hmacKey(key) : key, utf8.encode(text)));
}
