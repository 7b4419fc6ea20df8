/** The name under which a tenant's bytes and objects lie: derived, so that nobody can ask for another's. */
import { hmacHex } from "../../protocol/digest.ts";
import { QuireError } from "../../protocol/errors.ts";

/** HMAC-SHA256(salt, tenant) as lower-case hex; the salt never leaves the edge. @throws {QuireError} `internal` without a salt. */
export async function namespaceOf(tenant: string, salt: string | undefined): Promise<string> {
  if (!salt) throw new QuireError("internal", "The server is not configured: it has no tenant salt.");
  return hmacHex(salt, tenant);
}
