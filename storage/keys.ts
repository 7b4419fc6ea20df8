/**
 * Every key of the page store:
 *
 *   kv/<namespace>/<fingerprint16>.<numericsId>.<layout>/seg/<chain>
 *                                                       /sum-<kind>/<chain>-<tokenCount>-layers
 *                                                       /tail/<sessionKey>/<chain>-<generation>-<writing>
 *                                                       /session/<sessionKey>
 *
 * `<layout>` is the layout version and a digest of the geometry: engines with other settings never read each other's
 * bytes. `<sessionKey>` is the SHA-256 of the session id, so that an id of the caller's choice cannot shape a key.
 */
import { assert } from "../protocol/assert.ts";
import { isChainHex } from "./bytes.ts";
import { sha256Hex } from "./checksum.ts";
import { GEOMETRY_BYTES, type KvGeometry, type SummaryObjectKind, writeGeometry } from "./geometry.ts";
import { isKeyPart } from "./key-rules.ts";

/** Version of the byte layouts of blocks, summaries and open tokens. */
export const LAYOUT_VERSION = 2;

/** Everything stored lies under this prefix. */
export const ROOT_PREFIX = "kv/";

const LAYERS_SUFFIX = "-layers";
const NAMESPACE_PATTERN = /^[0-9a-f]{1,64}$/;
const FINGERPRINT_PATTERN = /^[0-9a-f]{16,64}$/;
const WRITING_PATTERN = /^[0-9a-f]{1,32}$/;
const TAIL_PATTERN = /\/[0-9a-f]{64}-\d+-([0-9a-f]{1,32})$/;
const NUMERICS_PATTERN = /^[A-Za-z0-9._-]{1,96}$/;

/** Whose bytes, of which model, and in which numerics and layout. */
export interface KeySpace {
  /** Server-derived tenant salt, 1-64 lower-case hex digits. */
  namespace: string;
  /** Hex; the first 16 digits go into keys, all of it into the manifest. */
  modelFingerprint: string;
  /** 1-96 characters `[A-Za-z0-9._-]`. */
  numericsId: string;
  geometry: KvGeometry;
}

/** How a summary object lies: layer by layer, or slot by slot as those of versions 2 and 3. */
export type SummaryForm = "layers" | "slots";

/** How the summary object of this key lies, if its writer named it rightly. */
export function summaryFormOf(objectKey: string): SummaryForm {
  return objectKey.endsWith(LAYERS_SUFFIX) ? "layers" : "slots";
}

/** What tells the tail of this key from others of its chain and generation; undefined for one that was named without. */
export function tailWritingOf(objectKey: string): string | undefined {
  return TAIL_PATTERN.exec(objectKey)?.[1];
}

/** Makes the keys of one namespace, model, numerics and layout. Chains are 64 hex digits. */
export interface ObjectKeys {
  readonly namespace: string;
  /** Ends with `/`. All the keys below begin with it. */
  readonly prefix: string;
  segment(chain: string): string;
  /** `chain` at the end of the run, `tokenCount` its length. `slots`: as objects were named that do not lie layer by layer. */
  summary(kind: SummaryObjectKind, chain: string, tokenCount: number, form?: SummaryForm): string;
  /**
   * `writing`, hex digits of its own for every tail that is put: whoever deletes one takes none that another has put again meanwhile. Undefined: as
   * engines named tails that did not tell them apart.
   */
  tail(sessionId: string, chain: string, generation: number, writing?: string): string;
  /** Every tail of a session begins with this. */
  tailPrefix(sessionId: string): string;
  /** The session's manifest. */
  session(sessionId: string): string;
}

/** SHA-256 of a session id as UTF-8, hex. */
export function sessionKeyOf(sessionId: string): string {
  return sha256Hex(sessionId);
}

/** Prefix of everything of one tenant, of all models and layouts. @throws {AssertionError} for a namespace that is not hex. */
export function namespacePrefix(namespace: string): string {
  assert(NAMESPACE_PATTERN.test(namespace), "keys: namespace must be 1-64 lower-case hex digits");
  return `${ROOT_PREFIX}${namespace}/`;
}

/** Whether a model and numerics, of whatever origin, can be in a key. */
export function canBeInKey({
  modelFingerprint,
  numericsId,
}: Pick<KeySpace, "modelFingerprint" | "numericsId">): boolean {
  return FINGERPRINT_PATTERN.test(modelFingerprint) && NUMERICS_PATTERN.test(numericsId);
}

/** @throws {AssertionError} for parts that cannot be in a key. */
export function objectKeys(space: KeySpace): ObjectKeys {
  assert(canBeInKey(space), "keys: a model fingerprint is 16-64 hex digits, a numerics id what a key takes");
  const layout = `${LAYOUT_VERSION}-${geometryTag(space.geometry)}`;
  const part = `${space.modelFingerprint.slice(0, 16)}.${space.numericsId}.${layout}`;
  assert(isKeyPart(part), "keys: impossible layout part");
  const prefix = `${namespacePrefix(space.namespace)}${part}/`;
  const tailPrefix = (sessionId: string): string => `${prefix}tail/${sessionKeyOf(sessionId)}/`;
  return {
    namespace: space.namespace,
    prefix,
    segment: (chain) => `${prefix}seg/${checkedChain(chain)}`,
    summary: (kind, chain, tokenCount, form = "layers") =>
      `${prefix}sum-${kind}/${checkedChain(chain)}-${checkedCount(tokenCount)}${form === "layers" ? LAYERS_SUFFIX : ""}`,
    tail: (sessionId, chain, generation, writing) =>
      `${tailPrefix(sessionId)}${checkedChain(chain)}-${checkedCount(generation)}${writing === undefined ? "" : `-${checkedWriting(writing)}`}`,
    tailPrefix,
    session: (sessionId) => `${prefix}session/${sessionKeyOf(sessionId)}`,
  };
}

/** Layout version 1 had all kinds of summaries in objects under `sum`. */
const KEY_PATTERN = /^(kv\/[0-9a-f]{1,64}\/)[A-Za-z0-9._-]+\/(seg|sum(?:-[a-z-]+)?|tail|session)\//;

/** Which kind of object a key names, of any layout version, and its tenant with that one's prefix; undefined for keys that are not ours. */
export function parseObjectKey(
  key: string,
): { kind: "seg" | "sum" | "tail" | "session"; namespace: string; namespacePrefix: string } | undefined {
  const match = KEY_PATTERN.exec(key);
  if (match === null) return undefined;
  const namespacePrefix = match[1] as string;
  return {
    namespace: namespacePrefix.slice(ROOT_PREFIX.length, -1),
    namespacePrefix,
    kind: (match[2] as string).split("-")[0] as "seg" | "sum" | "tail" | "session",
  };
}

function geometryTag(geometry: KvGeometry): string {
  const bytes = new Uint8Array(GEOMETRY_BYTES);
  writeGeometry(bytes, 0, geometry);
  return sha256Hex(bytes).slice(0, 12);
}

function checkedChain(chain: string): string {
  assert(isChainHex(chain), "keys: chain must be 64 lower-case hex digits");
  return chain;
}

function checkedWriting(writing: string): string {
  assert(WRITING_PATTERN.test(writing), "keys: a writing must be 1-32 lower-case hex digits");
  return writing;
}

function checkedCount(count: number): number {
  assert(Number.isSafeInteger(count) && count >= 1, "keys: impossible count");
  return count;
}
