/**
 * How the edge and its engines prove themselves to each other: HMAC-SHA256 over a request's line, audience, time, nonce and body digest,
 * by a secret that both hold and neither sends. A signature is good for one request, to one peer, for a short time.
 */

/** True for equal bytes; how long it takes tells the lengths and nothing else. */
export function equalInConstantTime(a: Uint8Array, b: Uint8Array): boolean {
  let difference = a.byteLength ^ b.byteLength;
  for (let index = 0; index < a.byteLength; index++) difference |= (a[index] ?? 0) ^ (b[index % b.byteLength] ?? 0);
  return difference === 0;
}
