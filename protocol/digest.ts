/** SHA-256 and hex, as names of keys, namespaces, transcripts and signatures use them; the same in Node and in a Worker. */

/** SHA-256 of bytes, which are not in shared memory. */
export function sha256(bytes: Uint8Array): Promise<ArrayBuffer> {
  return crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>);
}

const HEX_OF_BYTE: readonly string[] = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

/** Lower-case hex. */
export function hex(bytes: ArrayBuffer): string {
  let text = "";
  for (const byte of new Uint8Array(bytes)) text += HEX_OF_BYTE[byte];
  return text;
}

/** SHA-256 of a text's UTF-8, lower-case hex. */
export async function sha256Hex(text: string): Promise<string> {
  return hex(await sha256(new TextEncoder().encode(text)));
}

/** A key that is imported once. */
export type HmacKey = Awaited<ReturnType<typeof crypto.subtle.importKey>>;

/** A key for {@link hmacHex}. `key` is not empty. */
export function hmacKey(key: string): Promise<HmacKey> {
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  return crypto.subtle.importKey("raw", new TextEncoder().encode(key), algorithm, false, ["sign"]);
}

/** HMAC-SHA256 of a text's UTF-8, lower-case hex. `key` is not empty; {@link hmacKey} is for one that is used often. */
export async function hmacHex(key: string | HmacKey, text: string): Promise<string> {
  const imported = typeof key === "string" ? await hmacKey(key) : key;
  return hex(await crypto.subtle.sign("HMAC", imported, new TextEncoder().encode(text)));
}
