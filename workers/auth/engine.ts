/** Admits engines: their requests are signed with the secret that they share with the edge (`protocol/signature.ts`). */
import { hex, sha256 } from "../../protocol/digest.ts";
import { QuireError } from "../../protocol/errors.ts";
import { EDGE_AUDIENCE, equalInConstantTime, type SignedClaims, verifySignature } from "../../protocol/signature.ts";
import type { Env } from "../env.ts";

/**
 * Admits an engine by its signature, before its body is read; {@link assertSigned} admits the body.
 * @throws {QuireError} `invalid_api_key` otherwise, whatever the reason.
 */
export async function authenticateEngine(request: Request, env: Env): Promise<SignedClaims> {
  const target = { audience: EDGE_AUDIENCE, method: request.method, path: new URL(request.url).pathname };
  const header = request.headers.get("authorization") ?? "";
  const claims = await verifySignature(env.QUIRE_ENGINE_KEY ?? "", target, header, Date.now());
  if (!claims) throw refused();
  return claims;
}

/** Refuses a body that is not the signed one. @throws {QuireError} `invalid_api_key`. */
export async function assertSigned(claims: SignedClaims, body: Uint8Array): Promise<void> {
  const encoder = new TextEncoder();
  const digest = encoder.encode(hex(await sha256(body)));
  if (!equalInConstantTime(digest, encoder.encode(claims.digest))) throw refused();
}

/** What an engine is told that is not admitted. */
export function refused(): QuireError {
  return new QuireError("invalid_api_key", "Not authorized.");
}
