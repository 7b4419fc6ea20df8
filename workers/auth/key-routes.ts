/** /v1/keys: an operator's keys manage the key ring. Only hashes pass here: the text of a key is made where it will be used. */
import { QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { readJsonObject } from "../body.ts";
import type { Env } from "../env.ts";
import { checkNumber, invalid } from "../fields.ts";
import { authenticate } from "./authenticate.ts";
import { isolateKeys } from "./key-cache.ts";
import { checkKeyHash, checkKeyId, type KeyRecord, keyRecordJson, readKeyRecord } from "./key-record.ts";
import { keyRingOf } from "./key-ring.ts";

/** POST /v1/keys `{hash, tenant, scopes?, expires_s?, label?, limits?}`. @throws {QuireError} `invalid_request`. */
export async function createKey(request: Request, env: Env): Promise<Response> {
  await authenticate(request, env, "keys");
  const { hash: given, ...fields } = await readJsonObject(request, { bytesMax: LIMITS.keyRequestBytesMax });
  const hash = checkKeyHash(given);
  const record = readKeyRecord(hash, { ...fields, created_s: Math.floor(Date.now() / 1000) });
  // So that a key that leaked can be ended for good: whoever makes operators holds the deployment's secrets.
  if (record.scopes.includes("keys")) {
    throw invalid("scopes", "Invalid 'scopes': 'keys' can only be given in the secret QUIRE_API_KEYS.");
  }
  const added = await keyRingOf(env).add(hash, record);
  if (added === "known") throw invalid("hash", "Invalid 'hash': this key exists already.");
  if (added === "full") throw invalid("hash", `The key ring is full: it holds ${LIMITS.keyRingCountMax} keys.`);
  return Response.json(keyBody(record), { status: 201 });
}

/** GET /v1/keys?tenant=&after=&limit=: records in the order of their ids, no hashes. */
export async function listKeys(request: Request, env: Env): Promise<Response> {
  await authenticate(request, env, "keys");
  const { searchParams: query } = new URL(request.url);
  const limit = checkNumber(Number(query.get("limit") ?? LIMITS.keyPageCountMax), "limit", {
    min: 1,
    max: LIMITS.keyPageCountMax,
    integer: true,
  });
  const after = query.get("after");
  const page = await keyRingOf(env).list({
    tenant: query.get("tenant") ?? undefined,
    after: after === null ? "" : checkKeyId(after),
    countMax: limit + 1,
  });
  return Response.json({ object: "list", data: page.slice(0, limit).map(keyBody), has_more: page.length > limit });
}

/** GET /v1/keys/:id: its record, no hash. */
export async function getKey(request: Request, env: Env, id: string): Promise<Response> {
  await authenticate(request, env, "keys");
  const record = await keyRingOf(env).get(checkKeyId(id));
  if (!record) throw notFound(id);
  return Response.json(keyBody(record));
}

/** POST /v1/keys/:id/expire `{expires_s}`: the key ends then, or at once for a time that has passed. */
export async function expireKey(request: Request, env: Env, id: string): Promise<Response> {
  await authenticate(request, env, "keys");
  const body = await readJsonObject(request, { bytesMax: LIMITS.keyRequestBytesMax });
  const expiresS = checkNumber(body.expires_s, "expires_s", { min: 0, max: 1e11, integer: true });
  const record = await keyRingOf(env).expire(checkKeyId(id), expiresS);
  if (!record) throw notFound(id);
  isolateKeys.clear();
  return Response.json(keyBody(record));
}

/** DELETE /v1/keys/:id: refused from now on, elsewhere within `LIMITS.keyCacheMsMax`. */
export async function revokeKey(request: Request, env: Env, id: string): Promise<Response> {
  await authenticate(request, env, "keys");
  if (!(await keyRingOf(env).revoke(checkKeyId(id)))) throw notFound(id);
  isolateKeys.clear();
  return Response.json({ id, object: "key.deleted", deleted: true });
}

function keyBody(record: KeyRecord): object {
  return { object: "key", ...keyRecordJson(record) };
}

function notFound(id: string): QuireError {
  return new QuireError("not_found", `The key '${id}' does not exist.`, { param: "id" });
}
