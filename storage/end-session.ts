/** Ends a session in a store for good: its manifest gives way to a tombstone, and the tail that it names is deleted. */
import { type PageStore, StoreError } from "./contract.ts";
import { FormatError, isReplaceable } from "./format-error.ts";
import { deleteManifestAndTail } from "./gc.ts";
import { type LoadedCommit, loadCommit, objectKeysOf } from "./manifest.ts";
import { encodeTombstone, TOMBSTONE_VERSION, type Tombstone } from "./tombstone.ts";

const CONFLICT_TRIES_MAX = 8;

/** Which session ends. */
export interface EndOptions {
  sessionId: string;
  /** Sessions of the id that began earlier are over, milliseconds since 1970; one that began then or later stays. */
  bornMs: number;
  nowMs: number;
  signal?: AbortSignal | undefined;
}

/**
 * Puts a tombstone in the place of a session's manifest, also where there is none: a commit may be on its way. A manifest of a session of that id which
 * has begun since stays, and so does a tombstone that says as much. What cannot be read here is deleted.
 * @param manifestKey of the session, by whatever layout
 * @returns keys of what was named: copies of them are of no more use
 * @throws {StoreError}
 */
export async function endSession(
  store: PageStore,
  manifestKey: string,
  options: EndOptions,
): Promise<readonly string[]> {
  const { sessionId, bornMs, nowMs, signal } = options;
  // Looked at once more behind the write: a store that says it has written may be wrong, and nobody would ask again.
  for (let attempt = 0; attempt < CONFLICT_TRIES_MAX; attempt++) {
    const found = await read(store, manifestKey, signal);
    if (found === "unreadable") {
      await deleteManifestAndTail(store, manifestKey, signal);
      continue;
    }
    const { manifest, tombstone, etag } = found;
    if (tombstone && tombstone.bornMs >= bornMs) return tombstone.objectKeys;
    if (manifest?.bornMs !== undefined && manifest.bornMs >= bornMs) return [];
    const objectKeys = manifest ? [...objectKeysOf(manifest)] : (tombstone?.objectKeys ?? []);
    const generation = ((manifest ?? tombstone)?.generation ?? 0) + 1;
    const left: Tombstone = {
      ...{ formatVersion: TOMBSTONE_VERSION, sessionId, generation, bornMs, objectKeys },
      updatedMs: nowMs,
    };
    const condition = etag === undefined ? "absent" : { etag };
    const { outcome } = await store.put(manifestKey, encodeTombstone(left), { condition, signal });
    if (outcome === "stored" && manifest?.tail) await store.delete([manifest.tail.objectKey]);
  }
  throw new StoreError("unavailable", "the session is committed again and again while it is deleted");
}

/** A damaged manifest names nothing, and can be replaced. */
async function read(
  store: PageStore,
  key: string,
  signal: AbortSignal | undefined,
): Promise<LoadedCommit | { etag: string | undefined; manifest?: undefined; tombstone?: undefined } | "unreadable"> {
  try {
    return (await loadCommit(store, key, signal)) ?? { etag: undefined };
  } catch (error) {
    if (isReplaceable(error)) return { etag: error.etag };
    if (error instanceof FormatError || (error instanceof StoreError && error.code === "denied")) return "unreadable";
    throw error;
  }
}
