/** Finds sessions by their manifests, of any tenant, model and version. */
import { LIMITS } from "../protocol/limits.ts";
import type { PageStore } from "./contract.ts";
import { isDamage } from "./format-error.ts";
import { listAll } from "./gc.ts";
import { parseObjectKey, ROOT_PREFIX, sessionKeyOf } from "./keys.ts";
import { loadSessionRecord, type SessionRecord } from "./session-record.ts";

/** A manifest in the store. */
export interface ListedSession {
  /** Key of the manifest. */
  key: string;
  /** Hex; the tenant's. */
  namespace: string;
  /** Model, numerics and layout, as they stand in the key. */
  space: string;
  /** Of the manifest itself. */
  manifestBytes: number;
  /** Undefined where the manifest cannot be read; then `problem` says why. */
  record: SessionRecord | undefined;
  problem: string | undefined;
}

/**
 * Every session under `prefix` (`kv/`, or one tenant's), in order of keys; with `sessionId` only those of that id.
 * Lists all of the prefix's objects: a store has no list of sessions.
 * @throws {StoreError}
 */
export async function* listSessions(
  store: PageStore,
  prefix: string,
  options: { sessionId?: string | undefined; signal?: AbortSignal | undefined } = {},
): AsyncGenerator<ListedSession> {
  const suffix = options.sessionId === undefined ? "" : `/session/${sessionKeyOf(options.sessionId)}`;
  let batch: { key: string; bytes: number }[] = [];
  for await (const item of listAll(store, prefix, options.signal)) {
    if (parseObjectKey(item.key)?.kind !== "session" || !item.key.endsWith(suffix)) continue;
    batch.push(item);
    if (batch.length < LIMITS.storeConcurrency) continue;
    yield* await readAll(store, batch, options.signal);
    batch = [];
  }
  yield* await readAll(store, batch, options.signal);
}

/** Without those that were deleted. */
async function readAll(
  store: PageStore,
  items: readonly { key: string; bytes: number }[],
  signal: AbortSignal | undefined,
): Promise<ListedSession[]> {
  const sessions = await Promise.all(items.map((item) => readOne(store, item, signal)));
  return sessions.filter(({ record }) => record?.isDeleted !== true);
}

async function readOne(
  store: PageStore,
  item: { key: string; bytes: number },
  signal: AbortSignal | undefined,
): Promise<ListedSession> {
  const [namespace = "", space = ""] = item.key.slice(ROOT_PREFIX.length).split("/");
  const place = { key: item.key, namespace, space, manifestBytes: item.bytes };
  try {
    const record = await loadSessionRecord(store, item.key, signal);
    return { ...place, record, problem: record === undefined ? "gone meanwhile" : undefined };
  } catch (error) {
    if (!isDamage(error)) throw error;
    return { ...place, record: undefined, problem: error.message };
  }
}
