/**
 * Keeps a store from growing without bound. An object lives as long as a manifest of its tenant names it, or it is
 * young: objects are stored before the manifest that names them.
 *
 * What remains: a session that begins to name an old, unnamed object between the reading of manifests and the delete
 * loses that object, and one that comes back after all its time loses its pages if it has not committed when they are deleted.
 * That is a miss, which is recomputed from the log, and never a wrong byte. One that is deleted for good between the second look at its manifest and the
 * delete loses its tombstone.
 */
import { assert } from "../protocol/assert.ts";
import { LIMITS } from "../protocol/limits.ts";
import { type ListPage, type PageStore, StoreError } from "./contract.ts";
import { FormatError, isDamage } from "./format-error.ts";
import { type ObjectKeys, parseObjectKey } from "./keys.ts";
import { loadSessionRecord, type SessionRecord } from "./session-record.ts";

const DELETE_KEYS_MAX = 1000;
const PREFIX_PATTERN = /^kv\/([0-9a-f]{1,64}\/)?$/;

type Listed = ListPage["keys"][number];

/** How long and how much of one tenant is kept. */
export interface TenantKeeping {
  sessionAgeMsMax?: number;
  tenantBytesMax?: number;
}

/** What to collect. */
export interface GarbageOptions {
  /** Younger objects are kept whether named or not; longer than any turn takes to commit. */
  graceMs: number;
  nowMs: number;
  /** Sessions that were not committed for longer are deleted. Undefined: never. */
  sessionAgeMsMax?: number;
  /** Where a tenant's sessions name more bytes, the least recently committed are deleted until they do not. Undefined: no limit. */
  tenantBytesMax?: number;
  /** Settings of single tenants by namespace; what one leaves out is as above. */
  tenants?: ReadonlyMap<string, TenantKeeping>;
  /** Reports what would be deleted, and deletes nothing. */
  dryRun?: boolean;
  signal?: AbortSignal | undefined;
}

/** What was found and done. */
export interface GarbageReport {
  /** Segments, summaries and tails found. */
  objectCount: number;
  /** Manifests that were read and are kept. */
  manifestCount: number;
  /** Sessions deleted because they were too old, and because their tenant's bytes were too many. */
  expiredCount: number;
  overQuotaCount: number;
  /** Keys deleted (or, in a dry run, to be deleted), manifests first. */
  deletedKeys: string[];
  deletedBytes: number;
  /** Manifests that could not be read: nothing of their tenant was deleted in this run but the damaged manifests themselves. */
  unreadableKeys: string[];
}

/**
 * Deletes what no manifest under `prefix` names (`namespacePrefix(...)`, or `kv/` for all tenants). Manifests of newer
 * versions, and damaged ones, protect everything of their tenant; damaged ones are deleted once they are older than the
 * grace, so that the next run can go on. Keys that are not of this system are left alone.
 * @throws {StoreError} when the store fails; nothing is deleted unless all manifests of a tenant were read.
 * @throws {AssertionError} for a prefix that is less than a whole tenant, whose objects others might name.
 */
export async function collectGarbage(
  store: PageStore,
  prefix: string,
  options: GarbageOptions,
): Promise<GarbageReport> {
  assert(PREFIX_PATTERN.test(prefix), "garbage collection: the prefix must be kv/ or that of a whole namespace");
  const report: GarbageReport = {
    objectCount: 0,
    manifestCount: 0,
    expiredCount: 0,
    overQuotaCount: 0,
    deletedKeys: [],
    deletedBytes: 0,
    unreadableKeys: [],
  };
  const candidates: Listed[] = [];
  const sizes = new Map<string, number>();
  for await (const item of listAll(store, prefix, options.signal)) {
    const kind = parseObjectKey(item.key)?.kind;
    if (kind === undefined) continue;
    sizes.set(item.key, item.bytes);
    if (kind === "session") continue;
    report.objectCount++;
    if (isOld(item, options)) candidates.push(item);
  }
  // Manifests are read after the candidates are known: one that is committed meanwhile still protects what it names.
  const sessions: Listed[] = [];
  for await (const item of listAll(store, prefix, options.signal)) {
    if (parseObjectKey(item.key)?.kind === "session") sessions.push(item);
  }
  const { records, blockedTenants, doomed } = await readManifests(store, sessions, options, report);
  const kept = withinQuota(records, sizes, options);
  const keptSet = new Set(kept);
  for (const found of records) if (!keptSet.has(found)) doomed.push({ ...found, count: "overQuotaCount" });
  const { gone, back } = await lookAgain(store, doomed, options.signal);
  for (const { count } of gone) if (count !== undefined) report[count]++;
  for (const { item, namespacePrefix, now } of back) {
    if (typeof now === "object") continue;
    report.unreadableKeys.push(item.key);
    blockedTenants.add(namespacePrefix);
  }
  const live = [
    ...kept.map(({ record }) => record),
    ...back.flatMap(({ now }) => (typeof now === "object" && !now.isDeleted ? now : [])),
  ];
  report.manifestCount = live.length;
  const named = new Set(live.flatMap(({ objectKeys }) => [...objectKeys]));
  const garbage = candidates.filter(
    ({ key }) => !named.has(key) && !blockedTenants.has(parseObjectKey(key)?.namespacePrefix ?? ""),
  );
  for (const { key, bytes } of [...gone.map(({ item }) => item), ...garbage]) {
    report.deletedKeys.push(key);
    report.deletedBytes += bytes;
  }
  if (options.dryRun !== true) await deleteInOrder(store, report.deletedKeys, options.signal);
  return report;
}

/**
 * Deletes what is stored of a session, which may be stored again (`end-session.ts` is for good): its manifest, then the tail that it names: another one may be that of a turn under the same name, which will be committed. Its segments
 * and summaries may be shared; they go, as all that nobody names, with the next garbage collection. What is left of a crash is garbage, and not a
 * session with holes.
 * @throws {StoreError}
 */
export function deleteSession(
  store: PageStore,
  keys: ObjectKeys,
  sessionId: string,
  signal?: AbortSignal,
): Promise<void> {
  return deleteManifestAndTail(store, keys.session(sessionId), signal);
}

/** {@link deleteSession} by the key of its manifest, of any layout version; of one that cannot be read only the manifest. @throws {StoreError} */
export async function deleteManifestAndTail(
  store: PageStore,
  manifestKey: string,
  signal?: AbortSignal,
): Promise<void> {
  const record = await readManifest(store, manifestKey, signal);
  await store.delete([manifestKey]);
  if (record === undefined || typeof record === "string") return;
  const tailPrefix = `${manifestKey.replace("/session/", "/tail/")}/`;
  const tails = [...record.objectKeys].filter((key) => key.startsWith(tailPrefix));
  await deleteInOrder(store, tails, signal);
}

/** A session that is not too old. */
interface FoundSession {
  item: Listed;
  namespace: string;
  record: SessionRecord;
  /** When it was committed, as far as is known. */
  usedMs: number;
}

/** A manifest to be deleted, unless it has changed by then. */
interface DoomedSession {
  item: Listed;
  /** As it was read; undefined for a damaged one. */
  record?: SessionRecord;
  /** Where it counts in the report; undefined for a damaged one and for a tombstone, which do not. */
  count?: "expiredCount" | "overQuotaCount";
}

interface Reachable {
  records: FoundSession[];
  /** Tenants of which a manifest could not be read. */
  blockedTenants: Set<string>;
  /** Expired, damaged, or tombstones that have stood for long enough. */
  doomed: DoomedSession[];
}

async function readManifests(
  store: PageStore,
  sessions: readonly Listed[],
  options: GarbageOptions,
  report: GarbageReport,
): Promise<Reachable> {
  const reachable: Reachable = { records: [], blockedTenants: new Set(), doomed: [] };
  const readOne = async (item: Listed): Promise<void> => {
    const outcome = await readManifest(store, item.key, options.signal);
    if (outcome === undefined) return;
    if (typeof outcome === "string") {
      report.unreadableKeys.push(item.key);
      reachable.blockedTenants.add(parseObjectKey(item.key)?.namespacePrefix ?? "");
      if (outcome === "damaged" && isOld(item, options)) reachable.doomed.push({ item });
      return;
    }
    if (outcome.isDeleted) {
      // No commit that it keeps away takes longer than the grace.
      if (isOld(item, options)) reachable.doomed.push({ item, record: outcome });
      return;
    }
    const namespace = parseObjectKey(item.key)?.namespace ?? "";
    const { sessionAgeMsMax } = keepingOf(options, namespace);
    // A time to come is that of a clock that was wrong: the session would never be too old.
    const usedMs = outcome.updatedMs > options.nowMs ? item.modifiedMs : outcome.updatedMs;
    if (sessionAgeMsMax !== undefined && options.nowMs - usedMs > sessionAgeMsMax) {
      reachable.doomed.push({ item, record: outcome, count: "expiredCount" });
      return;
    }
    reachable.records.push({ item, namespace, record: outcome, usedMs });
  };
  await forEachAtOnce(sessions, readOne);
  return reachable;
}

/** A manifest that was to be deleted, and is another one now. */
interface ReturnedSession {
  item: Listed;
  namespacePrefix: string;
  /** Not readable: whatever it names is not known. */
  now: SessionRecord | "newer" | "damaged";
}

/** Manifests are read for longer than a turn may take: a session that has committed since has come back, and what it names is in use. */
async function lookAgain(
  store: PageStore,
  doomed: readonly DoomedSession[],
  signal: AbortSignal | undefined,
): Promise<{ gone: DoomedSession[]; back: ReturnedSession[] }> {
  const gone: DoomedSession[] = [];
  const back: ReturnedSession[] = [];
  await forEachAtOnce(doomed, async (session) => {
    const { item, record } = session;
    const now = await readManifest(store, item.key, signal);
    if (now === undefined) return;
    const isSame =
      record === undefined
        ? now === "damaged"
        : typeof now === "object" && now.generation === record.generation && now.updatedMs === record.updatedMs;
    if (isSame) gone.push(session);
    else back.push({ item, namespacePrefix: parseObjectKey(item.key)?.namespacePrefix ?? "", now });
  });
  return { gone, back };
}

async function forEachAtOnce<T>(items: readonly T[], run: (item: T) => Promise<void>): Promise<void> {
  for (let from = 0; from < items.length; from += LIMITS.storeConcurrency)
    await Promise.all(items.slice(from, from + LIMITS.storeConcurrency).map(run));
}

/** Undefined: gone meanwhile. A read that looks damaged is tried once more: it may have been the read that failed. */
async function readManifest(store: PageStore, key: string, signal: AbortSignal | undefined) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await loadSessionRecord(store, key, signal);
    } catch (error) {
      if (error instanceof FormatError && error.code === "unsupported_version") return "newer";
      // Encrypted under a key that is not here: somebody's, only not ours to judge.
      if (error instanceof StoreError && error.code === "denied") return "newer";
      if (!isDamage(error)) throw error;
      if (attempt === 2) return "damaged";
    }
  }
}

function keepingOf(options: GarbageOptions, namespace: string): TenantKeeping {
  return { ...options, ...options.tenants?.get(namespace) };
}

/** The sessions that remain when each tenant's least recently committed go until what the others name is within its bytes. */
function withinQuota(
  sessions: readonly FoundSession[],
  sizes: ReadonlyMap<string, number>,
  options: GarbageOptions,
): FoundSession[] {
  const byTenant = Map.groupBy(sessions, ({ namespace }) => namespace);
  return [...byTenant].flatMap(([namespace, own]) => {
    const { tenantBytesMax } = keepingOf(options, namespace);
    if (tenantBytesMax === undefined) return own;
    // From the newest on, an object counts for the first session that names it: so its bytes go with the last one that does.
    const newestFirst = [...own].sort((a, b) => b.usedMs - a.usedMs);
    const counted = new Set<string>();
    let bytes = 0;
    const fits = newestFirst.map(({ item, record }) => {
      for (const key of [item.key, ...record.objectKeys]) {
        if (!counted.has(key)) bytes += sizes.get(key) ?? 0;
        counted.add(key);
      }
      return bytes <= tenantBytesMax;
    });
    return newestFirst.filter((_session, index) => fits[index]);
  });
}

function isOld(item: Listed, options: GarbageOptions): boolean {
  return options.nowMs - item.modifiedMs > options.graceMs;
}

/** Every object whose key begins with `prefix`, ascending. @throws {StoreError} */
export async function* listAll(
  store: PageStore,
  prefix: string,
  signal: AbortSignal | undefined,
): AsyncGenerator<Listed> {
  let cursor: string | undefined;
  do {
    const page: ListPage = await store.list(prefix, cursor === undefined ? { signal } : { cursor, signal });
    yield* page.keys;
    cursor = page.cursor;
  } while (cursor !== undefined);
}

async function deleteInOrder(
  store: PageStore,
  keys: readonly string[],
  signal: AbortSignal | undefined,
): Promise<void> {
  for (let from = 0; from < keys.length; from += DELETE_KEYS_MAX) {
    if (signal?.aborted === true) throw new StoreError("aborted", "garbage collection was aborted");
    await store.delete(keys.slice(from, from + DELETE_KEYS_MAX));
  }
}
