/** The name under which a tenant's bytes and objects lie: derived, so that nobody can ask for another's. */
import { hmacHex } from "../../protocol/digest.ts";
import { QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { RecentMap } from "../recent-map.ts";

/** HMAC-SHA256(salt, tenant) as lower-case hex; the salt never leaves the edge. @throws {QuireError} `internal` without a salt. */
export async function namespaceOf(tenant: string, salt: string | undefined): Promise<string> {
  if (!salt) throw new QuireError("internal", "The server is not configured: it has no tenant salt.");
  return hmacHex(salt, tenant);
}

/** One per isolate: derived from the secret and a name, so that sharing cannot be observed; deriving takes two calls of the platform's cryptography. */
const isolateNamespaces = new RecentMap<string>({ countMax: LIMITS.keyCacheCountMax });

/** {@link namespaceOf}, remembered: at once where it is known. */
export function knownNamespaceOf(tenant: string, salt: string | undefined): string | Promise<string> {
  const name = `${salt} ${tenant}`;
  return isolateNamespaces.get(name) ?? learnNamespace(name, tenant, salt);
}

async function learnNamespace(name: string, tenant: string, salt: string | undefined): Promise<string> {
  const namespace = await namespaceOf(tenant, salt);
  isolateNamespaces.put(name, namespace);
  return namespace;
}
