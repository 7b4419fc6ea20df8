/** Who is calling: the tenant of a bearer key, found by the key's hash. */
import { contentDigestHex } from "../../protocol/digest.ts";
import { QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { within } from "../deadline.ts";
import type { Env } from "../env.ts";
import { logError } from "../log.ts";
import { askAgain } from "../stubs.ts";
import { isolateKeys, isolateKeyTable } from "./key-cache.ts";
import { assertKeyAllows, type KeyIndex, type KeyRecord, type Scope } from "./key-record.ts";
import { keyRingOf } from "./key-ring.ts";
import { knownNamespaceOf } from "./namespace.ts";

const utf8 = new TextEncoder();

/** A caller as the edge knows it. */
export interface Tenant {
  name: string;
  /** HMAC-SHA256(salt, tenant name), lower-case hex: names every byte and every object of the tenant. */
  namespace: string;
  /** The key that was used. */
  key: KeyRecord;
}

/**
 * Finds the tenant of a request by the hash of its bearer key: in the secret `QUIRE_API_KEYS`, then in the key ring.
 * @param scope what the key must allow; undefined where any key will do.
 * @throws {QuireError} `invalid_api_key` when the key is missing, unknown or expired; `permission_denied` without the scope.
 */
export async function authenticate(request: Request, env: Env, scope: Scope | undefined): Promise<Tenant> {
  const key = bearerOf(request);
  if (key === undefined) {
    throw new QuireError("invalid_api_key", "You did not provide an API key: send it as 'Authorization: Bearer KEY'.");
  }
  // How long it takes tells who sent the key nothing that he did not know; what it is compared with is another matter (`KeyIndex`).
  const digest = contentDigestHex(utf8.encode(key));
  const hash = typeof digest === "string" ? digest : await digest;
  const record = secretKeys(env).find(hash) ?? isolateKeys.get(hash) ?? (await askRing(hash, env));
  if (!record) throw new QuireError("invalid_api_key", "Incorrect API key provided.");
  assertKeyAllows(record, scope, Date.now() / 1000);
  const namespace = knownNamespaceOf(record.tenant, env.QUIRE_TENANT_SALT);
  return { name: record.tenant, namespace: typeof namespace === "string" ? namespace : await namespace, key: record };
}

/** A key ring that does not answer stops nobody who was here a moment ago. */
async function askRing(hash: string, env: Env): Promise<KeyRecord | undefined> {
  let found: KeyRecord | undefined;
  try {
    found = await askAgain(() => within(LIMITS.keyRingMsMax, keyRingOf(env).find(hash)));
  } catch (thrown) {
    const stale = isolateKeys.stale(hash);
    if (!stale) throw thrown;
    logError(`key ring, for ${stale.id}`, thrown);
    return stale;
  }
  if (found) isolateKeys.put(hash, found);
  else isolateKeys.delete(hash);
  return found;
}

function secretKeys(env: Env): KeyIndex {
  try {
    return isolateKeyTable.of(env.QUIRE_API_KEYS ?? "");
  } catch (cause) {
    throw new QuireError("internal", "The server is not configured: its table of API keys cannot be read.", { cause });
  }
}

/** One credential and nothing else: two headers arrive here joined by a comma, and are refused. */
function bearerOf(request: Request): string | undefined {
  const match = /^Bearer +([\x21-\x2b\x2d-\x7e]{1,256}) *$/i.exec(request.headers.get("authorization") ?? "");
  return match?.[1];
}
