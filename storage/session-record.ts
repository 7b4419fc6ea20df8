/**
 * What a manifest says of a session whatever version wrote it: enough to list sessions and to know which objects are
 * still named. Version 1 (layout 1: summaries in f32, all kinds in one object) is not resumed any more, but its objects
 * belong to its session until that is deleted, also while engines of the older version go on writing them.
 */
import type { PageStore } from "./contract.ts";
import { openEnvelope } from "./envelope.ts";
import { FormatError, refuseUnless } from "./format-error.ts";
import { isStoreKey } from "./key-rules.ts";
import { parseObjectKey } from "./keys.ts";
import { decodeManifest, objectKeysOf } from "./manifest.ts";
import { MANIFEST_FORMAT_VERSION, MANIFEST_MAGIC } from "./manifest-check.ts";
import { decodeTombstone, isTombstone } from "./tombstone.ts";

/** The session behind a manifest of any known version. */
export interface SessionRecord {
  formatVersion: number;
  sessionId: string;
  modelFingerprint: string;
  numericsId: string;
  tokenCount: number;
  generation: number;
  updatedMs: number;
  /** The session was deleted: this is its tombstone, which names nothing. */
  isDeleted: boolean;
  /** Every object that the manifest names. */
  objectKeys: Set<string>;
  /** Bytes of those objects as the manifest tells them, each once; sessions may share them. */
  objectBytes: number;
}

/**
 * Reads the record of a session's manifest; undefined where there is none.
 * @throws {StoreError}
 * @throws {FormatError} `corrupt`, or `unsupported_version` for an intact manifest of a newer version.
 */
export async function loadSessionRecord(
  store: PageStore,
  key: string,
  signal?: AbortSignal,
): Promise<SessionRecord | undefined> {
  const object = await store.get(key, { signal });
  if (object === undefined) return undefined;
  const record = decodeSessionRecord(object.bytes);
  const own = parseObjectKey(key)?.namespacePrefix ?? "";
  refuseUnless(
    [...record.objectKeys].every((named) => named.startsWith(own)),
    "manifest: names an object of another tenant",
  );
  return record;
}

/** {@link loadSessionRecord} without a store. @throws {FormatError} */
export function decodeSessionRecord(bytes: Uint8Array): SessionRecord {
  if (isTombstone(bytes)) return ofDeleted(bytes);
  const body = openEnvelope({ magic: MANIFEST_MAGIC, version: MANIFEST_FORMAT_VERSION, oldestVersion: 1 }, bytes);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch (cause) {
    throw new FormatError("corrupt", "manifest: not JSON", { cause });
  }
  if (versionOf(value) === 1) return firstVersion(value as Fields);
  const manifest = decodeManifest(bytes);
  const { formatVersion, sessionId, modelFingerprint, numericsId, tokenCount, generation, updatedMs } = manifest;
  return {
    ...{ formatVersion, sessionId, modelFingerprint, numericsId, tokenCount, generation, updatedMs },
    isDeleted: false,
    objectKeys: objectKeysOf(manifest),
    objectBytes: bytesOf([...manifest.segments, ...manifest.summaries, ...(manifest.tail ? [manifest.tail] : [])]),
  };
}

function ofDeleted(bytes: Uint8Array): SessionRecord {
  const { formatVersion, sessionId, generation, updatedMs } = decodeTombstone(bytes);
  return {
    ...{ formatVersion, sessionId, generation, updatedMs, modelFingerprint: "", numericsId: "", tokenCount: 0 },
    ...{ isDeleted: true, objectKeys: new Set(), objectBytes: 0 },
  };
}

type Fields = Record<string, unknown>;

function versionOf(value: unknown): unknown {
  return typeof value === "object" && value !== null ? (value as Fields).formatVersion : undefined;
}

function firstVersion(fields: Fields): SessionRecord {
  const text = (name: string): string => {
    const value = fields[name];
    refuseUnless(typeof value === "string" && value.length >= 1 && value.length <= 1024, `manifest: ${name}`);
    return value as string;
  };
  const count = (name: string, min: number): number => {
    const value = fields[name];
    refuseUnless(Number.isSafeInteger(value) && (value as number) >= min, `manifest: ${name}`);
    return value as number;
  };
  const refsOf = (name: string): NamedObject[] => {
    const refs = fields[name];
    refuseUnless(Array.isArray(refs), `manifest: ${name}`);
    return (refs as unknown[]).map((ref) => namedObject(ref, name));
  };
  const tail = fields.tail === undefined ? [] : [namedObject(fields.tail, "tail")];
  const objects = [...refsOf("segments"), ...refsOf("summaries"), ...tail];
  return {
    formatVersion: 1,
    sessionId: text("sessionId"),
    modelFingerprint: text("modelFingerprint"),
    numericsId: text("numericsId"),
    tokenCount: count("tokenCount", 1),
    generation: count("generation", 1),
    updatedMs: count("updatedMs", 0),
    isDeleted: false,
    objectKeys: new Set(objects.map(({ objectKey }) => objectKey)),
    objectBytes: bytesOf(objects),
  };
}

interface NamedObject {
  objectKey: string;
  objectBytes: number;
}

function namedObject(ref: unknown, name: string): NamedObject {
  const { objectKey, objectBytes } = (typeof ref === "object" && ref !== null ? ref : {}) as Fields;
  refuseUnless(isStoreKey(objectKey) && Number.isSafeInteger(objectBytes), `manifest: ${name}`);
  return { objectKey, objectBytes: objectBytes as number };
}

function bytesOf(objects: readonly NamedObject[]): number {
  return objects.reduce((sum, { objectBytes }) => sum + objectBytes, 0);
}
