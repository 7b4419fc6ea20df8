/**
 * A session as a list of files, to be carried from one store to another: its manifest first, then every object that it
 * names, each under its key below the layout (`seg/...`, `sum-.../...`, `tail/...`). What comes in is verified against the
 * manifest before it is stored, and the manifest is committed last, as always.
 */
import type { PageStore } from "./contract.ts";
import { FormatError, isDamage, refuseUnless } from "./format-error.ts";
import { canBeInKey, LAYOUT_VERSION, type ObjectKeys, objectKeys, summaryFormOf, tailWritingOf } from "./keys.ts";
import { commitManifest, decodeManifest, encodeManifest, etagAt, loadCommit, type Manifest } from "./manifest.ts";
import { decodeSegment } from "./segment.ts";
import { decodeSummaryObject } from "./summary-object.ts";
import { decodeTail } from "./tail.ts";

/** Name of the first file. */
export const MANIFEST_FILE = "manifest";

/** One file of an archive. */
export interface ArchiveFile {
  name: string;
  bytes: Uint8Array;
}

/**
 * The files of a session, by the key of its manifest; every one has been verified.
 * @throws {FormatError} when something of it is missing or damaged, or it is of a version that is not read here.
 * @throws {StoreError}
 */
export async function* exportSession(store: PageStore, key: string, signal?: AbortSignal): AsyncGenerator<ArchiveFile> {
  const object = await store.get(key, { signal });
  refuseUnless(object !== undefined, "archive: the session has no manifest");
  const manifest = decodeManifest(object.bytes);
  const prefix = key.slice(0, key.indexOf("/session/") + 1);
  yield { name: MANIFEST_FILE, bytes: encodeManifest(manifest) };
  for (const [objectKey, check] of checksOf(manifest)) {
    refuseUnless(objectKey.startsWith(prefix), "archive: the session names objects of another layout");
    const found = await store.get(objectKey, { signal });
    refuseUnless(found !== undefined, `archive: ${objectKey} is not in the store`);
    check(found.bytes);
    yield { name: objectKey.slice(prefix.length), bytes: found.bytes };
  }
}

/** Where an archive goes. */
export interface ImportOptions {
  /** The tenant's, hex. */
  namespace: string;
  /** Another id for the session; without it its own. */
  sessionId?: string | undefined;
  /** Puts it in the place of a session of that id; without it that is refused. */
  replace?: boolean | undefined;
  /** When it is imported, milliseconds since 1970: as if it were committed then, whatever its age where it comes from. */
  nowMs: number;
  signal?: AbortSignal | undefined;
}

/**
 * Stores a session from its files, which may come in any order after the manifest.
 * @returns its manifest as it was committed, or undefined where there is a session of that id already.
 * @throws {FormatError} for files that are damaged, missing, or not the manifest's; nothing is visible then.
 * @throws {StoreError}
 */
export async function importSession(
  store: PageStore,
  files: AsyncIterable<ArchiveFile> | Iterable<ArchiveFile>,
  options: ImportOptions,
): Promise<Manifest | undefined> {
  let session: Incoming | undefined;
  for await (const { name, bytes } of files) {
    if (session === undefined) {
      refuseUnless(name === MANIFEST_FILE, "archive: does not begin with a manifest");
      session = incoming(decodeManifest(bytes), options);
      const found = await commitAt(store, session.key, options.signal);
      session.etag = found.etag;
      session.manifest.bornMs = found.bornMs;
      if (found.etag !== undefined && !found.isDeleted && options.replace !== true) return undefined;
      continue;
    }
    const wanted = session.files.get(name);
    refuseUnless(wanted !== undefined, `archive: ${name} is not the manifest's, or comes twice`);
    wanted.check(bytes);
    const isOwn = wanted.objectKey === session.manifest.tail?.objectKey;
    if (isOwn) await store.put(wanted.objectKey, bytes, { signal: options.signal });
    else await putWhereNoneIs(store, { ...wanted, bytes }, options.signal);
    session.files.delete(name);
  }
  refuseUnless(session !== undefined, "archive: is empty");
  const [missing] = session.files.keys();
  refuseUnless(missing === undefined, `archive: ${missing} is missing`);
  const { outcome } = await commitManifest(store, session.key, session.manifest, session.etag, options.signal);
  return outcome === "stored" ? session.manifest : undefined;
}

/** The version of what is there, and what it says of sessions that are over: a session that is imported keeps their commits away as well. */
async function commitAt(
  store: PageStore,
  key: string,
  signal: AbortSignal | undefined,
): Promise<{ etag: string | undefined; isDeleted: boolean; bornMs?: number | undefined }> {
  try {
    const found = await loadCommit(store, key, signal);
    const { bornMs } = found?.tombstone ?? found?.manifest ?? {};
    return { etag: found?.etag, isDeleted: found?.tombstone !== undefined, bornMs };
  } catch (error) {
    if (!isDamage(error)) throw error;
    return { etag: await etagAt(store, key, signal), isDeleted: false };
  }
}

/** What is there under a name of content is that content, and may be in use by others; unless it is damaged. */
async function putWhereNoneIs(
  store: PageStore,
  { objectKey, check, bytes }: { objectKey: string; check: (bytes: Uint8Array) => void; bytes: Uint8Array },
  signal: AbortSignal | undefined,
): Promise<void> {
  const { outcome } = await store.put(objectKey, bytes, { condition: "absent", signal });
  if (outcome === "stored") return;
  try {
    check((await store.get(objectKey, { signal }))?.bytes ?? new Uint8Array(0));
  } catch (error) {
    if (!isDamage(error)) throw error;
    const etag = await etagAt(store, objectKey, signal);
    await store.put(objectKey, bytes, { condition: etag === undefined ? "absent" : { etag }, signal });
  }
}

interface Incoming {
  key: string;
  etag: string | undefined;
  manifest: Manifest;
  /** What is still to come, by name. */
  files: Map<string, { objectKey: string; check: (bytes: Uint8Array) => void }>;
}

function incoming(manifest: Manifest, options: ImportOptions): Incoming {
  const { modelFingerprint, numericsId, geometry } = manifest;
  if (manifest.layoutVersion !== LAYOUT_VERSION)
    throw new FormatError("unsupported_version", `archive: of layout version ${manifest.layoutVersion}`);
  refuseUnless(canBeInKey(manifest), "archive: impossible model fingerprint or numerics id");
  const keys = objectKeys({ namespace: options.namespace, modelFingerprint, numericsId, geometry });
  const sessionId = options.sessionId ?? manifest.sessionId;
  const files: Incoming["files"] = new Map();
  for (const [oldKey, check] of checksOf(manifest)) {
    const name = oldKey.split("/").slice(3).join("/");
    files.set(name, { objectKey: newKeyOf(keys, manifest, { oldKey, name, sessionId }), check });
  }
  const moved = <T extends { objectKey: string }>(ref: T): T => {
    const name = ref.objectKey.split("/").slice(3).join("/");
    return { ...ref, objectKey: files.get(name)?.objectKey ?? ref.objectKey };
  };
  const { tail } = manifest;
  return {
    key: keys.session(sessionId),
    etag: undefined,
    manifest: {
      ...manifest,
      sessionId,
      updatedMs: options.nowMs,
      segments: manifest.segments.map(moved),
      summaries: manifest.summaries.map(moved),
      ...(tail === undefined ? {} : { tail: moved(tail) }),
    },
    files,
  };
}

/** Keys of this system name content; a manifest that names its objects in another way is not taken over. */
function newKeyOf(
  keys: ObjectKeys,
  manifest: Manifest,
  file: { oldKey: string; name: string; sessionId: string },
): string {
  const { tail, chain, generation } = manifest;
  if (file.oldKey === tail?.objectKey) return keys.tail(file.sessionId, chain, generation, tailWritingOf(file.name));
  const segment = manifest.segments.find(({ objectKey }) => objectKey === file.oldKey);
  const run = manifest.summaries.find(({ objectKey }) => objectKey === file.oldKey);
  const last = run && manifest.segments[(run.fromToken + run.tokenCount) / manifest.geometry.segmentTokens - 1];
  const summary = () => last && keys.summary(run.kind, last.chain, run.tokenCount, summaryFormOf(file.name));
  const expected = segment ? keys.segment(segment.chain) : summary();
  if (expected?.endsWith(`/${file.name}`) !== true)
    throw new FormatError("mismatch", `archive: ${file.name} is not named by its content`);
  return expected;
}

/** Every object of a manifest once, with what verifies it. */
function checksOf(manifest: Manifest): Map<string, (bytes: Uint8Array) => void> {
  const { geometry, segments, summaries, tail } = manifest;
  const checks = new Map<string, (bytes: Uint8Array) => void>();
  for (const { objectKey, objectOffset, objectBytes, chain, fromToken } of segments) {
    refuseUnless(objectOffset === 0, "archive: segments that share an object");
    checks.set(objectKey, (bytes) => {
      refuseUnless(bytes.byteLength === objectBytes, "archive: a segment of another length");
      decodeSegment(bytes, { geometry, chain, fromToken });
    });
  }
  for (const { objectKey, kind, sha256, fromToken, tokenCount } of summaries)
    checks.set(objectKey, (bytes) => {
      decodeSummaryObject(bytes, { geometry, kind, sha256, fromToken, tokenCount });
    });
  if (tail !== undefined) {
    const { objectKey, sha256, fromToken, tokenCount } = tail;
    checks.set(objectKey, (bytes) => {
      decodeTail(bytes, { geometry, sha256, fromToken, tokenCount, chain: manifest.chain });
    });
  }
  return checks;
}
