/** The name under which a tenant's bytes and objects lie: derived, so that nobody can ask for another's. */
import { QuireError } from "../../protocol/errors.ts";
import { hex } from "./digest.ts";

/** HMAC-SHA256(salt, tenant) as lower-case hex; the salt never leaves the edge. @throws {QuireError} `internal` without a salt. */
export async function namespaceOf(tenant: string, salt: string | undefined): Promise<string> {
  if (!salt) throw new QuireError("internal", "The server is not configured: it has no tenant salt.");
  const encoder = new TextEncoder();
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", encoder.encode(salt), algorithm, false, ["sign"]);
  return hex(await crypto.subtle.sign("HMAC", key, encoder.encode(tenant)));
}
