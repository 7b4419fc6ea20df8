/**
 * What is left of a deleted session: an object in the place of its manifest. It keeps away every commit that belongs to what was deleted, whoever makes
 * it and however late, until none can come any more and a garbage collection takes it. JSON in an envelope "QUIREMAN" of a version of its own, so that
 * whoever does not know it leaves it alone; `docs/page-format.md` has the fields.
 */
import { assert } from "../protocol/assert.ts";
import { viewOf } from "./bytes.ts";
import { BODY_OFFSET, beginEnvelope, openEnvelope, sealEnvelope } from "./envelope.ts";
import { FormatError, refuseUnless } from "./format-error.ts";
import { isStoreKey } from "./key-rules.ts";
import { MANIFEST_MAGIC } from "./manifest-check.ts";

/** Version of the envelope by which a tombstone is told from a manifest. */
export const TOMBSTONE_VERSION = 4;

const KIND = { magic: MANIFEST_MAGIC, version: TOMBSTONE_VERSION } as const;
const OBJECT_KEYS_MAX = 65_536;

/** See the head of this file. */
export interface Tombstone {
  formatVersion: typeof TOMBSTONE_VERSION;
  sessionId: string;
  /** One more than that of the manifest which it replaced; 1 where there was none. */
  generation: number;
  /** Sessions of this id that began earlier are over, milliseconds since 1970: nothing of them is committed any more. */
  bornMs: number;
  /** What the deleted manifest named: whoever keeps copies drops them. They protect nothing from a garbage collection. */
  objectKeys: string[];
  /** When the session was deleted, milliseconds since 1970. */
  updatedMs: number;
}

/** Whether bytes claim to be a tombstone; {@link decodeTombstone} verifies them. */
export function isTombstone(bytes: Uint8Array): boolean {
  return (
    bytes.byteLength >= BODY_OFFSET &&
    Buffer.from(bytes.subarray(0, 8)).toString("latin1") === MANIFEST_MAGIC &&
    viewOf(bytes).getUint32(8, true) === TOMBSTONE_VERSION
  );
}

/** Encodes a tombstone. @throws {AssertionError} for one that would not decode. */
export function encodeTombstone(tombstone: Tombstone): Uint8Array<ArrayBuffer> {
  assert(isFields(tombstone), "tombstone: impossible fields");
  const { formatVersion, sessionId, generation, bornMs, objectKeys, updatedMs } = tombstone;
  const fields = { formatVersion, sessionId, generation, bornMs, objectKeys, updatedMs };
  const text = Buffer.from(JSON.stringify(fields), "utf8");
  const envelope = beginEnvelope(KIND, text.byteLength);
  envelope.body.set(text);
  return sealEnvelope(envelope);
}

/** @throws {FormatError} `corrupt`, or `unsupported_version` for an intact object of another version. */
export function decodeTombstone(bytes: Uint8Array): Tombstone {
  const body = openEnvelope(KIND, bytes);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch (cause) {
    throw new FormatError("corrupt", "tombstone: not JSON", { cause });
  }
  refuseUnless(isFields(value), "tombstone: impossible fields");
  return value;
}

function isFields(value: unknown): value is Tombstone {
  if (typeof value !== "object" || value === null) return false;
  const { formatVersion, sessionId, generation, bornMs, objectKeys, updatedMs } = value as Partial<Tombstone>;
  return (
    formatVersion === TOMBSTONE_VERSION &&
    typeof sessionId === "string" &&
    sessionId.length >= 1 &&
    sessionId.length <= 1024 &&
    isCount(generation, 1) &&
    isCount(bornMs, 0) &&
    isCount(updatedMs, 0) &&
    Array.isArray(objectKeys) &&
    objectKeys.length <= OBJECT_KEYS_MAX &&
    objectKeys.every(isStoreKey)
  );
}

function isCount(value: unknown, min: number): boolean {
  return Number.isSafeInteger(value) && (value as number) >= min;
}
