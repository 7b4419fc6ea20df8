/** Who is calling: the tenant of a bearer key, found by the key's hash. */
import { sha256Hex } from "../../protocol/digest.ts";
import { QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { within } from "../deadline.ts";
import type { Env } from "../env.ts";
import { logError } from "../log.ts";
import { isolateKeys, isolateKeyTable } from "./key-cache.ts";
import { assertKeyAllows, type KeyIndex, type KeyRecord, type Scope } from "./key-record.ts";
import { keyRingOf } from "./key-ring.ts";
import { knownNamespaceOf } from "./namespace.ts";

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
  const record = await findKey(await sha256Hex(key), env);
  if (!record) throw new QuireError("invalid_api_key", "Incorrect API key provided.");
  assertKeyAllows(record, scope, Date.now() / 1000);
  return { name: record.tenant, namespace: await knownNamespaceOf(record.tenant, env.QUIRE_TENANT_SALT), key: record };
}

async function findKey(hash: string, env: Env): Promise<KeyRecord | undefined> {
  const inTable = secretKeys(env).find(hash);
  if (inTable) return inTable;
  const known = isolateKeys.get(hash);
  if (known) return known;
  return askRing(hash, env);
}

/** A key ring that does not answer stops nobody who was here a moment ago. */
async function askRing(hash: string, env: Env): Promise<KeyRecord | undefined> {
  let found: KeyRecord | undefined;
  try {
    found = await within(LIMITS.keyRingMsMax, keyRingOf(env).find(hash));
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
