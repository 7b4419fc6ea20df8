/** The keys of an encrypted page store: masters from the deployment, from which every tenant's and every object's key is derived. */
import { createHash, createSecretKey, hkdfSync, type KeyObject } from "node:crypto";
import { QuireError } from "../protocol/errors.ts";

const MASTER_BYTES = 32;
/** Bytes by which a stored chunk names its master. */
export const KEY_ID_BYTES = 4;

/** One master key. */
export interface MasterKey {
  /** 8 hex digits: the first bytes of a hash of the key. */
  readonly id: string;
  readonly secret: Uint8Array;
}

/** The first encrypts; all of them decrypt. At least one. */
export type KeyRing = readonly [MasterKey, ...MasterKey[]];

/**
 * Parses `QUIRE_STORE_KEYS`: keys of 32 bytes in base64 or hex, with commas between them, the one that encrypts first.
 * @throws {QuireError} `invalid_request`, one line that does not show what was given.
 */
export function parseKeyRing(text: string): KeyRing {
  const ring = text.split(",").map((part, index) => masterKey(part.trim(), index));
  const [first, ...older] = ring;
  if (first === undefined) throw refusal("holds no key");
  if (new Set(ring.map(({ id }) => id)).size < ring.length) throw refusal("holds a key twice");
  return [first, ...older];
}

function masterKey(text: string, index: number): MasterKey {
  const isHex = /^[0-9a-fA-F]{64}$/.test(text);
  const isBase64 = /^[A-Za-z0-9+/_-]{43}=?$/.test(text);
  if (!isHex && !isBase64) throw refusal(`key ${index + 1} is not 32 bytes in base64 or hex`);
  const secret = new Uint8Array(Buffer.from(text, isHex ? "hex" : "base64"));
  const hash = createHash("sha256").update("quire page key id 1").update(secret).digest();
  return { id: hash.subarray(0, KEY_ID_BYTES).toString("hex"), secret };
}

/**
 * The AES-256 key of one object: HKDF-SHA256 of the master for the tenant, then of that for the object's key. A tenant's key gives no
 * other tenant's, and no object's key another's.
 */
export function objectSecret(master: MasterKey, namespace: string, objectKey: string): KeyObject {
  const derive = (secret: Uint8Array, info: string): Uint8Array =>
    new Uint8Array(hkdfSync("sha256", secret, "quire page store 1", info, MASTER_BYTES));
  return createSecretKey(derive(derive(master.secret, `tenant ${namespace}`), `object ${objectKey}`));
}

function refusal(problem: string): QuireError {
  return new QuireError("invalid_request", `QUIRE_STORE_KEYS ${problem}`, { param: "store_keys" });
}
