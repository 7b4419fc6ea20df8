/**
 * How the edge and its engines prove themselves to each other: HMAC-SHA256 over audience, method, path, time, nonce and body digest, by a
 * secret that both hold and neither sends. A signature is good for one request, to one peer, once, for a short time:
 *
 *   authorization: Quire-HMAC ts=<Unix ms>,nonce=<32 hex>,digest=<SHA-256 of the body, hex>,sig=<HMAC, hex>
 *
 * The signature covers the digest and not the body, so that a receiver refuses a stranger before it reads a byte of his body.
 */
import { assert } from "./assert.ts";
import { detached } from "./detached.ts";
import { contentDigestHex, type HmacKey, hex, hmacHex, hmacKey } from "./digest.ts";
import { LIMITS } from "./limits.ts";

/** The audience of engines' requests to the edge. */
export const EDGE_AUDIENCE = "edge";

/** What is signed beside the body, the time and the nonce. */
export interface SignedTarget {
  /** {@link EDGE_AUDIENCE}, or {@link engineAudience}: what is meant for one peer is refused by every other one. */
  audience: string;
  method: string;
  /** As the receiver sees it, without a query. */
  path: string;
}

/** What a valid signature promises. */
export interface SignedClaims {
  nonce: string;
  /** SHA-256 that the body must have, lower-case hex. */
  digest: string;
  /** From then on the signature is refused for its age, so that its nonce can be forgotten. */
  expiresMs: number;
}

const HEADER = /^Quire-HMAC ts=(\d{13}),nonce=([0-9a-f]{32}),digest=([0-9a-f]{64}),sig=([0-9a-f]{64})$/;

/** The audience of requests to one engine; an engine that starts again is another one. */
export function engineAudience(engineId: string): string {
  return `engine ${engineId}`;
}

/**
 * The keys that a secret holds: one, or several with commas between. The first one signs, all are accepted: so a key is replaced while
 * nobody is refused (`docs/operations.md`).
 */
export function signingKeys(secret: string): string[] {
  return secret
    .split(",")
    .map((key) => key.trim())
    .filter((key) => key !== "");
}

/** What signs, of a secret: for who signs often. @throws {AssertionError} for a secret without a key. */
export function signingKeyOf(secret: string): Promise<HmacKey> {
  return hmacKey(firstKeyOf(secret));
}

function firstKeyOf(secret: string): string {
  const [key] = signingKeys(secret);
  assert(key !== undefined, "there is a key to sign with");
  return key;
}

/** The value of the `authorization` header of one request. @throws {AssertionError} for a secret without a key. */
export async function signRequest(
  secret: string | HmacKey,
  target: SignedTarget,
  body: Uint8Array,
  nowMs: number,
): Promise<string> {
  const timestamp = String(Math.floor(nowMs));
  const nonce = hex(crypto.getRandomValues(new Uint8Array(16)).buffer);
  const named = contentDigestHex(body);
  const digest = typeof named === "string" ? named : await named;
  const key = typeof secret === "string" ? firstKeyOf(secret) : secret;
  const signature = await hmacHex(key, signedText(target, { timestamp, nonce, digest }));
  return `Quire-HMAC ts=${timestamp},nonce=${nonce},digest=${digest},sig=${signature}`;
}

/**
 * Checks a request's `authorization` header. The caller still has to refuse a nonce that it has seen ({@link ReplayGuard}) and a body with
 * another digest.
 * @returns undefined for whatever is not a valid signature of this request, now; nobody is told why.
 */
export async function verifySignature(
  secret: string,
  target: SignedTarget,
  header: string,
  nowMs: number,
): Promise<SignedClaims | undefined> {
  const [, timestamp = "", nonce = "", digest = "", signature = ""] = HEADER.exec(header) ?? [];
  if (signature === "") return undefined;
  const encoder = new TextEncoder();
  const text = signedText(target, { timestamp, nonce, digest });
  let isGenuine = false;
  for (const key of signingKeys(secret)) {
    const wanted = encoder.encode(await hmacHex(key, text));
    if (equalInConstantTime(encoder.encode(signature), wanted)) isGenuine = true;
  }
  const isTimely = Math.abs(nowMs - Number(timestamp)) <= LIMITS.signatureSkewMsMax;
  if (!isGenuine || !isTimely) return undefined;
  return { nonce, digest, expiresMs: Number(timestamp) + LIMITS.signatureSkewMsMax };
}

function signedText(
  { audience, method, path }: SignedTarget,
  { timestamp, nonce, digest }: { timestamp: string; nonce: string; digest: string },
): string {
  return ["quire-signature-1", audience, method, path, timestamp, nonce, digest].join("\n");
}

/** Remembers the nonces of valid signatures until they are too old to be used again: bounded, and full it lets nothing in. */
export class ReplayGuard {
  readonly #countMax: number;
  readonly #nonces = new Map<string, number>();

  constructor(countMax: number = LIMITS.nonceCountMax) {
    this.#countMax = countMax;
  }

  /** True the first time for each nonce. */
  admit({ nonce, expiresMs }: Pick<SignedClaims, "nonce" | "expiresMs">, nowMs: number): boolean {
    this.#forgetOldest(nowMs);
    if (this.#nonces.has(nonce)) return false;
    if (this.#nonces.size >= this.#countMax) this.#forgetAll(nowMs);
    if (this.#nonces.size >= this.#countMax) return false;
    this.#nonces.set(detached(nonce), expiresMs);
    return true;
  }

  get size(): number {
    return this.#nonces.size;
  }

  /** Cheap, at every request: those that came first, as far as they have expired. */
  #forgetOldest(nowMs: number): void {
    for (const [nonce, expiresMs] of this.#nonces) {
      if (expiresMs >= nowMs) return;
      this.#nonces.delete(nonce);
    }
  }

  #forgetAll(nowMs: number): void {
    for (const [nonce, expiresMs] of this.#nonces) if (expiresMs < nowMs) this.#nonces.delete(nonce);
  }
}

/** True for equal bytes; how long it takes tells the lengths and nothing else. */
export function equalInConstantTime(a: Uint8Array, b: Uint8Array): boolean {
  let difference = a.byteLength ^ b.byteLength;
  for (let index = 0; index < a.byteLength; index++) difference |= (a[index] ?? 0) ^ (b[index % b.byteLength] ?? 0);
  return difference === 0;
}
