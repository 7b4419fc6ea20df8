/**
 * The manifest of a session: what is stored of it, committed last and with compare-and-swap. One generation binds the
 * segments, summaries and tail it names. JSON in an envelope "QUIREMAN"; `docs/page-format.md` has the fields.
 */
import { assert } from "../protocol/assert.ts";
import type { Span } from "../protocol/generate.ts";
import type { PageStore, PutResult, StoreError } from "./contract.ts";
import { beginEnvelope, openEnvelope, sealEnvelope } from "./envelope.ts";
import { damagedEtag, FormatError, refuseUnless } from "./format-error.ts";
import type { KvGeometry, SummaryObjectKind } from "./geometry.ts";
import { parseObjectKey } from "./keys.ts";
import { MANIFEST_FORMAT_VERSION, MANIFEST_MAGIC, manifestProblem } from "./manifest-check.ts";
import { decodeTombstone, isTombstone, type Tombstone } from "./tombstone.ts";

const KIND = { magic: MANIFEST_MAGIC, version: MANIFEST_FORMAT_VERSION, oldestVersion: 2 } as const;

/** Where one segment lies. Several segments may share one object. */
export interface SegmentRef {
  /** Chain at the segment's end, 64 hex digits. */
  chain: string;
  fromToken: number;
  /** Always the geometry's `segmentTokens`. */
  tokenCount: number;
  objectKey: string;
  /** First byte of the segment within the object. */
  objectOffset: number;
  /** Bytes of the segment, from `objectOffset` on. */
  objectBytes: number;
}

/** An object that is read whole: a tail, or what {@link SummaryRef} names. */
export interface WholeRef {
  objectKey: string;
  objectBytes: number;
  /** `envelopeDigest` of the object, 64 hex digits. */
  sha256: string;
  fromToken: number;
  tokenCount: number;
}

/** An object with summaries of one kind. */
export interface SummaryRef extends WholeRef {
  kind: SummaryObjectKind;
}

/** What is stored of one session. Field by field in `docs/page-format.md`. */
export interface Manifest {
  /** `manifestVersionOf` the geometry. */
  formatVersion: 2 | 3;
  /** Version of the byte layouts of blocks, summaries and open tokens. */
  layoutVersion: number;
  sessionId: string;
  modelFingerprint: string;
  numericsId: string;
  geometry: KvGeometry;
  /** 1 for a session's first commit, then one more each. */
  generation: number;
  /** Tokens whose KV is stored: whole segments plus tail; at least 1. */
  tokenCount: number;
  /** Chain at `tokenCount`, 64 hex digits. */
  chain: string;
  /** Provenance of [0, tokenCount): ascending, the last ends at `tokenCount`. */
  spans: Span[];
  /** Consecutive from token 0. */
  segments: SegmentRef[];
  /** For each kind of the geometry, in its order: runs of whole segments, consecutive from token 0, covering exactly `segments`. */
  summaries: SummaryRef[];
  /** Present exactly when `tokenCount` goes beyond the segments. */
  tail?: WholeRef | undefined;
  /** Empty, or per layer the logical blocks that the last turn chose most often, most often first. */
  hotBlocks: number[][];
  /** When the session began that it is of, milliseconds since 1970: no commit of one of the same id that began earlier follows. Absent: not known. */
  bornMs?: number | undefined;
  updatedMs: number;
}

/** What is in the place of a session's manifest: exactly one of the two. */
export type LoadedCommit = { etag: string } & (
  | { manifest: Manifest; tombstone?: undefined }
  | { tombstone: Tombstone; manifest?: undefined }
);

/** Encodes a manifest. The same manifest gives the same bytes. @throws {AssertionError} for one that would not decode. */
export function encodeManifest(manifest: Manifest): Uint8Array<ArrayBuffer> {
  const problem = manifestProblem(manifest);
  assert(problem === undefined, `manifest: ${problem}`);
  const text = Buffer.from(JSON.stringify(ordered(manifest)), "utf8");
  const envelope = beginEnvelope({ ...KIND, version: manifest.formatVersion }, text.byteLength);
  envelope.body.set(text);
  return sealEnvelope(envelope);
}

/**
 * Verifies everything that can be verified without other objects.
 * @throws {FormatError} `corrupt`, or `unsupported_version` for an intact manifest of another version.
 */
export function decodeManifest(bytes: Uint8Array): Manifest {
  const body = openEnvelope(KIND, bytes);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch (cause) {
    throw new FormatError("corrupt", "manifest: not JSON", { cause });
  }
  const problem = manifestProblem(value);
  refuseUnless(problem === undefined, `manifest: ${problem}`);
  return value as Manifest;
}

/**
 * Reads a session's manifest, or its tombstone, and the etag for the next commit; undefined where there is neither.
 * Every object it names must belong to the tenant whose manifest this is.
 * @throws {StoreError}
 * @throws {FormatError} with `etag`, so that a `corrupt` manifest can be replaced. An `unsupported_version` must not be.
 */
export async function loadCommit(
  store: PageStore,
  key: string,
  signal?: AbortSignal,
): Promise<LoadedCommit | undefined> {
  const object = await store.get(key, { signal }).catch(asDamage);
  if (object === undefined) return undefined;
  const { bytes, etag } = object;
  try {
    if (isTombstone(bytes)) return { tombstone: decodeTombstone(bytes), etag };
    const manifest = decodeManifest(bytes);
    refuseUnless(namesOwnObjectsOnly(key, manifest), "manifest: names an object of another tenant");
    return { manifest, etag };
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    throw new FormatError(error.code, error.message, { cause: error, etag });
  }
}

/** {@link loadCommit} of what can be resumed: undefined also for a session that was deleted. @throws {StoreError} @throws {FormatError} */
export async function loadManifest(
  store: PageStore,
  key: string,
  signal?: AbortSignal,
): Promise<{ manifest: Manifest; etag: string } | undefined> {
  const found = await loadCommit(store, key, signal);
  return found?.manifest && { manifest: found.manifest, etag: found.etag };
}

/**
 * Commits a manifest: only if the stored one is still at `previousEtag` (undefined: if there is none).
 * Everything it names must be stored before.
 * @throws {StoreError}
 * @throws {AssertionError} for a manifest that would not load again under this key.
 */
export async function commitManifest(
  store: PageStore,
  key: string,
  manifest: Manifest,
  previousEtag: string | undefined,
  signal?: AbortSignal,
): Promise<PutResult> {
  assert(namesOwnObjectsOnly(key, manifest), "manifest: names an object of another tenant");
  const condition = previousEtag === undefined ? "absent" : { etag: previousEtag };
  return store.put(key, encodeManifest(manifest), { condition, signal });
}

/** The version of an object, also of one that the store itself finds damaged; undefined where there is none, or it does not tell. @throws {StoreError} */
export async function etagAt(store: PageStore, key: string, signal?: AbortSignal): Promise<string | undefined> {
  return await store.get(key, { signal }).then((object) => object?.etag, damagedEtag);
}

/** What a store finds damaged is damaged: it can be replaced. @throws {FormatError} for that, else what it was given. */
function asDamage(error: unknown): never {
  const etag = damagedEtag(error);
  throw new FormatError("corrupt", `manifest: ${(error as StoreError).message}`, {
    cause: error,
    ...(etag === undefined ? {} : { etag }),
  });
}

/** Keys of every object that a manifest names. */
export function objectKeysOf(manifest: Manifest): Set<string> {
  const refs: { objectKey: string }[] = [...manifest.segments, ...manifest.summaries];
  if (manifest.tail !== undefined) refs.push(manifest.tail);
  return new Set(refs.map((ref) => ref.objectKey));
}

function namesOwnObjectsOnly(key: string, manifest: Manifest): boolean {
  const own = parseObjectKey(key);
  assert(own?.kind === "session", "manifest: not the key of a session");
  return [...objectKeysOf(manifest)].every((named) => named.startsWith(own.namespacePrefix));
}

/** Fixes the order of fields, so that bytes do not depend on how an object was put together. */
function ordered(manifest: Manifest): Manifest {
  const whole = (ref: WholeRef): WholeRef => ({
    objectKey: ref.objectKey,
    objectBytes: ref.objectBytes,
    sha256: ref.sha256,
    fromToken: ref.fromToken,
    tokenCount: ref.tokenCount,
  });
  const g = manifest.geometry;
  return {
    formatVersion: manifest.formatVersion,
    layoutVersion: manifest.layoutVersion,
    sessionId: manifest.sessionId,
    modelFingerprint: manifest.modelFingerprint,
    numericsId: manifest.numericsId,
    geometry: {
      layerCount: g.layerCount,
      kvHeadCount: g.kvHeadCount,
      headDim: g.headDim,
      encoding: g.encoding,
      summaryKinds: g.summaryKinds,
      blockBytes: g.blockBytes,
      openTokenBytes: g.openTokenBytes,
      summaryBytes: g.summaryBytes,
      segmentTokens: g.segmentTokens,
    },
    generation: manifest.generation,
    tokenCount: manifest.tokenCount,
    chain: manifest.chain,
    spans: manifest.spans.map((span) => ({ end: span.end, how: span.how })),
    segments: manifest.segments.map((ref) => ({
      chain: ref.chain,
      fromToken: ref.fromToken,
      tokenCount: ref.tokenCount,
      objectKey: ref.objectKey,
      objectOffset: ref.objectOffset,
      objectBytes: ref.objectBytes,
    })),
    summaries: manifest.summaries.map((ref) => ({ kind: ref.kind, ...whole(ref) })),
    ...(manifest.tail === undefined ? {} : { tail: whole(manifest.tail) }),
    hotBlocks: manifest.hotBlocks,
    ...(manifest.bornMs === undefined ? {} : { bornMs: manifest.bornMs }),
    updatedMs: manifest.updatedMs,
  };
}
