/**
 * Summaries of one kind of a run of whole segments: one segment, or several compacted. For each segment its chain, a copy
 * of its block checksums (so that block ranges can be verified without reading the segment's header) and its slots.
 * Each kind is an object of its own, because a turn scores by one kind only.
 *
 * Body of an envelope "QUIRESUM": 0 geometry (36)   36 u32 from token   40 u32 segment count n   44 u32 kind
 *   48 chains, n x 32   then checksums u32 `[segment][layer][block]`   then summary slots `[segment][block]`
 */
import { assert } from "../protocol/assert.ts";
import { CHAIN_BYTES, chainToBytes, readU32s, toHex, viewOf, writeU32s } from "./bytes.ts";
import { beginEnvelope, openEnvelope, sealEnvelope } from "./envelope.ts";
import { FormatError, refuseUnless } from "./format-error.ts";
import {
  blocksPerSegment,
  GEOMETRY_BYTES,
  type KvGeometry,
  readGeometry,
  type SummaryObjectKind,
  sameGeometry,
  summaryKindCode,
  summaryObjectKinds,
  versionsAfterFirst,
  writeGeometry,
} from "./geometry.ts";

/** As it is read; encodings f32 and int8 are written as the oldest version. */
const KIND = { magic: "QUIRESUM", version: 3, oldestVersion: 2 } as const;
const FROM_TOKEN_OFFSET = GEOMETRY_BYTES;
const SEGMENT_COUNT_OFFSET = GEOMETRY_BYTES + 4;
const KIND_OFFSET = GEOMETRY_BYTES + 8;
const CHAINS_OFFSET = GEOMETRY_BYTES + 12;
/** Bounds what a damaged or hostile count can ask for. */
const SEGMENT_COUNT_MAX = 65_536;

/** What is kept of one segment. */
export interface SegmentSummary {
  /** Chain at the segment's end, 64 hex digits. */
  chain: string;
  /** CRC-32 of each block, `[layer][block]`; as in the segment's header. */
  checksums: Uint32Array;
  /** Summary slots of the segment's blocks, one after the other; empty in objects of kind `none`. */
  slots: Uint8Array;
}

/** Summaries of consecutive segments. */
export interface SummaryObject {
  geometry: KvGeometry;
  /** One that the geometry keeps. */
  kind: SummaryObjectKind;
  /** A multiple of `geometry.segmentTokens`. */
  fromToken: number;
  /** Consecutive segments, at least one. */
  segments: SegmentSummary[];
}

/** What the reader knows already; anything else is a `mismatch`. */
export interface SummaryExpectation {
  /** Digest that the manifest names, hex. */
  sha256?: string;
  geometry?: KvGeometry;
  kind?: SummaryObjectKind;
  fromToken?: number;
  tokenCount?: number;
}

/** The summary slot of one block, a view; not for objects of kind `none`. */
export function summarySlot(geometry: KvGeometry, segment: SegmentSummary, blockIndex: number): Uint8Array {
  assert(blockIndex >= 0 && blockIndex < blocksPerSegment(geometry), "summary slot: no such block");
  const offset = blockIndex * geometry.summaryBytes;
  return segment.slots.subarray(offset, offset + geometry.summaryBytes);
}

/** Encodes a summary object; `envelopeDigest` of the result names it. @throws {AssertionError} for wrong sizes or positions. */
export function encodeSummaryObject(input: SummaryObject): Uint8Array<ArrayBuffer> {
  const { geometry, kind, fromToken, segments } = input;
  const sizes = sizesOf(geometry, kind);
  assert(summaryObjectKinds(geometry).includes(kind), "summaries: the geometry keeps no such kind");
  assert(segments.length >= 1 && segments.length <= SEGMENT_COUNT_MAX, "summaries: impossible segment count");
  assert(fromToken >= 0 && fromToken % geometry.segmentTokens === 0, "summaries: do not begin at a segment border");
  const envelope = beginEnvelope(
    { ...KIND, version: KIND.oldestVersion + versionsAfterFirst(geometry) },
    CHAINS_OFFSET + segments.length * sizes.perSegmentBytes,
  );
  const { body } = envelope;
  writeGeometry(body, 0, geometry);
  viewOf(body).setUint32(FROM_TOKEN_OFFSET, fromToken, true);
  viewOf(body).setUint32(SEGMENT_COUNT_OFFSET, segments.length, true);
  viewOf(body).setUint32(KIND_OFFSET, summaryKindCode(kind), true);
  for (const [i, segment] of segments.entries()) {
    assert(segment.checksums.length === sizes.checksumCount, "summaries: checksum table of a wrong size");
    assert(segment.slots.byteLength === sizes.slotsBytes, "summaries: slots of a wrong size");
    const at = offsetsOf(sizes, segments.length, i);
    body.set(chainToBytes(segment.chain), at.chain);
    writeU32s(body, at.checksums, segment.checksums);
    body.set(segment.slots, at.slots);
  }
  return sealEnvelope(envelope);
}

/**
 * Verifies and reads a summary object. Slots are views into `bytes`.
 * @throws {FormatError} `corrupt`, `unsupported_version`, or `mismatch` against `expected`.
 */
export function decodeSummaryObject(bytes: Uint8Array, expected: SummaryExpectation = {}): SummaryObject {
  const body = openEnvelope(KIND, bytes, expected.sha256);
  refuseUnless(body.byteLength >= CHAINS_OFFSET, "summaries: body is too short");
  const geometry = readGeometry(body, 0, expected.geometry);
  const fromToken = viewOf(body).getUint32(FROM_TOKEN_OFFSET, true);
  const segmentCount = viewOf(body).getUint32(SEGMENT_COUNT_OFFSET, true);
  const kindCode = viewOf(body).getUint32(KIND_OFFSET, true);
  const kind = summaryObjectKinds(geometry).find((known) => summaryKindCode(known) === kindCode);
  refuseUnless(kind !== undefined, "summaries: a kind that the geometry does not keep");
  const sizes = sizesOf(geometry, kind);
  refuseUnless(segmentCount >= 1 && segmentCount <= SEGMENT_COUNT_MAX, "summaries: impossible segment count");
  refuseUnless(
    body.byteLength === CHAINS_OFFSET + segmentCount * sizes.perSegmentBytes,
    "summaries: length does not match",
  );
  refuseUnless(fromToken % geometry.segmentTokens === 0, "summaries: do not begin at a segment border");
  const asExpected =
    (expected.kind === undefined || expected.kind === kind) &&
    (expected.fromToken === undefined || expected.fromToken === fromToken) &&
    (expected.tokenCount === undefined || expected.tokenCount === segmentCount * geometry.segmentTokens);
  if (!asExpected) throw new FormatError("mismatch", "summaries: not the run expected");
  const segments = Array.from({ length: segmentCount }, (_, i): SegmentSummary => {
    const at = offsetsOf(sizes, segmentCount, i);
    return {
      chain: toHex(body.subarray(at.chain, at.chain + CHAIN_BYTES)),
      checksums: readU32s(body, at.checksums, sizes.checksumCount),
      slots: body.subarray(at.slots, at.slots + sizes.slotsBytes),
    };
  });
  return { geometry, kind, fromToken, segments };
}

/**
 * One object out of consecutive ones, which are not changed.
 * @throws {AssertionError} when they do not follow each other or differ in geometry or kind.
 */
export function compactSummaries(objects: readonly SummaryObject[]): SummaryObject {
  const [first] = objects;
  assert(first !== undefined, "compaction: nothing to compact");
  let nextToken = first.fromToken;
  for (const object of objects) {
    assert(sameGeometry(object.geometry, first.geometry), "compaction: geometries differ");
    assert(object.kind === first.kind, "compaction: kinds differ");
    assert(object.fromToken === nextToken, "compaction: objects do not follow each other");
    nextToken += object.segments.length * object.geometry.segmentTokens;
  }
  return {
    geometry: first.geometry,
    kind: first.kind,
    fromToken: first.fromToken,
    segments: objects.flatMap((object) => object.segments),
  };
}

interface Sizes {
  checksumCount: number;
  slotsBytes: number;
  perSegmentBytes: number;
}

function sizesOf(geometry: KvGeometry, kind: SummaryObjectKind): Sizes {
  const checksumCount = geometry.layerCount * blocksPerSegment(geometry);
  const slotsBytes = kind === "none" ? 0 : blocksPerSegment(geometry) * geometry.summaryBytes;
  return { checksumCount, slotsBytes, perSegmentBytes: CHAIN_BYTES + 4 * checksumCount + slotsBytes };
}

function offsetsOf(sizes: Sizes, segmentCount: number, index: number) {
  const checksumsOffset = CHAINS_OFFSET + segmentCount * CHAIN_BYTES;
  const slotsOffset = checksumsOffset + segmentCount * 4 * sizes.checksumCount;
  return {
    chain: CHAINS_OFFSET + index * CHAIN_BYTES,
    checksums: checksumsOffset + index * 4 * sizes.checksumCount,
    slots: slotsOffset + index * sizes.slotsBytes,
  };
}
