/** Headers of the edge's requests to its engines, signed with the secret that they share (`protocol/signature.ts`). */
import type { HmacKey } from "../../protocol/digest.ts";
import { engineAudience, signingKeyOf, signRequest } from "../../protocol/signature.ts";
import { RecentMap } from "../recent-map.ts";

/** A request to an engine. */
export interface EngineRequest {
  /** Empty: not signed, for an engine that asks for none. */
  engineKey: string;
  engineId: string;
  /** Below the engine's URL. */
  path: string;
  body: Uint8Array;
}

/** Headers of one POST to an engine; each request needs its own. */
export async function engineHeaders(request: EngineRequest): Promise<Record<string, string>> {
  const { engineKey, engineId, path, body } = request;
  const type = { "content-type": "application/x-quire-frames" };
  if (engineKey === "") return type;
  const target = { audience: engineAudience(engineId), method: "POST", path };
  const key = isolateSigningKeys.get(engineKey) ?? (await newKeyOf(engineKey));
  return { ...type, authorization: await signRequest(key, target, body, Date.now()) };
}

/** One per isolate: derived from the secret, so that sharing cannot be observed. */
const isolateSigningKeys = new RecentMap<HmacKey>({ countMax: 4 });

async function newKeyOf(secret: string): Promise<HmacKey> {
  const key = await signingKeyOf(secret);
  isolateSigningKeys.put(secret, key);
  return key;
}
