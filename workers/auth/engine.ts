/** Admits engines: they share one key with the edge. */
import { QuireError } from "../../protocol/errors.ts";
import { equalInConstantTime } from "../../protocol/signature.ts";
import type { Env } from "../env.ts";

/**
 * Admits an engine by the shared key.
 * @throws {QuireError} `invalid_api_key` otherwise.
 */
export async function authenticateEngine(request: Request, env: Env): Promise<void> {
  const key = /^Bearer +(\S+) *$/i.exec(request.headers.get("authorization") ?? "")?.[1];
  const encoder = new TextEncoder();
  const equal = equalInConstantTime(encoder.encode(key ?? ""), encoder.encode(env.QUIRE_ENGINE_KEY));
  if (key === undefined || env.QUIRE_ENGINE_KEY === "" || !equal) {
    throw new QuireError("invalid_api_key", "Incorrect engine key provided.");
  }
}
