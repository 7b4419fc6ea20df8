/** Who is calling: tenants by hashed bearer keys, engines by one shared key. */
import { QuireError } from "../protocol/errors.ts";
import type { Env } from "./env.ts";

/** A tenant as the edge knows it. */
export interface Tenant {
  name: string;
  /** HMAC-SHA256(salt, tenant name), lower-case hex: names every byte and every object of the tenant. */
  namespace: string;
}

/**
 * Finds the tenant of a request by the hash of its bearer key.
 * @throws {QuireError} `invalid_api_key` when the key is missing or unknown.
 */
export async function authenticate(request: Request, env: Env): Promise<Tenant> {
  const key = bearerOf(request);
  if (key === undefined) {
    throw new QuireError("invalid_api_key", "You did not provide an API key: send it as 'Authorization: Bearer KEY'.");
  }
  const keys: unknown = JSON.parse(env.QUIRE_API_KEYS);
  const hash = hex(await sha256(new TextEncoder().encode(key)));
  const entry = isRecord(keys) && Object.hasOwn(keys, hash) ? keys[hash] : undefined;
  if (!isRecord(entry) || typeof entry.tenant !== "string" || entry.tenant === "") {
    throw new QuireError("invalid_api_key", "Incorrect API key provided.");
  }
  return { name: entry.tenant, namespace: await namespaceOf(entry.tenant, env.QUIRE_TENANT_SALT) };
}

/**
 * Admits an engine by the shared key.
 * @throws {QuireError} `invalid_api_key` otherwise.
 */
export async function authenticateEngine(request: Request, env: Env): Promise<void> {
  const key = bearerOf(request);
  const encoder = new TextEncoder();
  // Both sides are hashed first, so that the comparison sees equal lengths and its time tells nothing.
  const [given, wanted] = await Promise.all([
    sha256(encoder.encode(key ?? "")),
    sha256(encoder.encode(env.QUIRE_ENGINE_KEY)),
  ]);
  const equal = crypto.subtle.timingSafeEqual(given, wanted);
  if (key === undefined || env.QUIRE_ENGINE_KEY === "" || !equal) {
    throw new QuireError("invalid_api_key", "Incorrect engine key provided.");
  }
}

/** HMAC-SHA256(salt, tenant) as lower-case hex; the salt never leaves the edge. */
export async function namespaceOf(tenant: string, salt: string): Promise<string> {
  if (salt === "") throw new QuireError("internal", "The server is not configured: it has no tenant salt.");
  const encoder = new TextEncoder();
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", encoder.encode(salt), algorithm, false, ["sign"]);
  return hex(await crypto.subtle.sign("HMAC", key, encoder.encode(tenant)));
}

/** SHA-256 of bytes. */
export function sha256(bytes: Uint8Array): Promise<ArrayBuffer> {
  return crypto.subtle.digest("SHA-256", bytes);
}

/** Lower-case hex. */
export function hex(bytes: ArrayBuffer): string {
  return Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function bearerOf(request: Request): string | undefined {
  const match = /^Bearer +(\S+) *$/i.exec(request.headers.get("authorization") ?? "");
  return match?.[1];
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
