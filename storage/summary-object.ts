/**
 * Summaries of one kind of a run of whole segments: one segment, or several compacted. For each segment its chain, a copy
 * of its block checksums (so that block ranges can be verified without reading the segment's header) and its slots.
 * Each kind is an object of its own, because a turn scores by one kind only.
 *
 * Body of an envelope "QUIRESUM": 0 geometry (36)   36 u32 from token   40 u32 segment count n   44 u32 kind
 *   48 chains, n x 32   then checksums u32 `[segment][layer][block]`
 *   then CRC-32 of each layer's section, u32 `[layer]`   then SHA-256 of the object up to here, by which a manifest names it
 *   then sections `[layer][segment][block]`, each a layer's share of a summary slot
 *
 * So an object can be read layer by layer: its head (up to that SHA-256) by a range, then sections, each verified by the head. Versions 2 and 3, which are
 * read but not written any more, have whole slots `[segment][block]` behind the checksums, and are named by the envelope's digest.
 */
import { assert } from "../protocol/assert.ts";
import { bytesEqual, CHAIN_BYTES, chainToBytes, readU32s, toHex, viewOf, writeU32s } from "./bytes.ts";
import { crc32, sha256 } from "./checksum.ts";
import { BODY_OFFSET, beginEnvelope, envelopeDigest, openEnvelope, openHead, sealEnvelope } from "./envelope.ts";
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
  writeGeometry,
} from "./geometry.ts";

/** As it is read; only the newest is written. */
const KIND = { magic: "QUIRESUM", version: 4, oldestVersion: 2 } as const;
/** The first with a section for each layer. */
const LAYERED_VERSION = 4;
const FROM_TOKEN_OFFSET = GEOMETRY_BYTES;
const SEGMENT_COUNT_OFFSET = GEOMETRY_BYTES + 4;
const KIND_OFFSET = GEOMETRY_BYTES + 8;
const CHAINS_OFFSET = GEOMETRY_BYTES + 12;
const DIGEST_BYTES = 32;
/** Bounds what a damaged or hostile count can ask for. */
const SEGMENT_COUNT_MAX = 65_536;

/** What is known of one segment before its slots. */
export interface SegmentChecks {
  /** Chain at the segment's end, 64 hex digits. */
  chain: string;
  /** CRC-32 of each block, `[layer][block]`; as in the segment's header. */
  checksums: Uint32Array;
}

/** What is kept of one segment. */
export interface SegmentSummary extends SegmentChecks {
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

/** An object's head: everything but its slots, and what verifies them. */
export interface SummaryHead extends Omit<SummaryObject, "segments"> {
  segments: SegmentChecks[];
  /** CRC-32 of each layer's section. */
  sectionChecksums: Uint32Array;
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

/** What fixes where everything lies in an object. */
export interface SummaryShape {
  geometry: KvGeometry;
  kind: SummaryObjectKind;
  segmentCount: number;
}

/** The summary slot of one block, a view; not for objects of kind `none`. */
export function summarySlot(geometry: KvGeometry, segment: SegmentSummary, blockIndex: number): Uint8Array {
  assert(blockIndex >= 0 && blockIndex < blocksPerSegment(geometry), "summary slot: no such block");
  const offset = blockIndex * geometry.summaryBytes;
  return segment.slots.subarray(offset, offset + geometry.summaryBytes);
}

/** Where the sections of layers `[fromLayer, toLayer)` lie in an object; with `fromLayer` -1 the head before them, too. */
export function summaryRange(
  shape: SummaryShape,
  { fromLayer, toLayer }: { fromLayer: number; toLayer: number },
): { offset: number; bytes: number } {
  const { headEnd, sectionBytes } = layoutOf(shape);
  const at = (layer: number) => BODY_OFFSET + headEnd + layer * sectionBytes;
  const offset = fromLayer < 0 ? 0 : at(fromLayer);
  return { offset, bytes: at(toLayer) - offset };
}

/** One layer of the summary slot of one block, out of that layer's section; a view. */
export function layerSummary(geometry: KvGeometry, section: Uint8Array, blockIndex: number): Uint8Array {
  const bytes = geometry.summaryBytes / geometry.layerCount;
  return section.subarray(blockIndex * bytes, (blockIndex + 1) * bytes);
}

/** Encodes a summary object; {@link summaryDigest} of the result names it. @throws {AssertionError} for wrong sizes or positions. */
export function encodeSummaryObject(input: SummaryObject): Uint8Array<ArrayBuffer> {
  const { geometry, kind, fromToken, segments } = input;
  assert(summaryObjectKinds(geometry).includes(kind), "summaries: the geometry keeps no such kind");
  assert(segments.length >= 1 && segments.length <= SEGMENT_COUNT_MAX, "summaries: impossible segment count");
  assert(fromToken >= 0 && fromToken % geometry.segmentTokens === 0, "summaries: do not begin at a segment border");
  const layout = layoutOf({ geometry, kind, segmentCount: segments.length });
  assert(Number.isInteger(layout.sectionBytes), "summaries: a slot is not the same for every layer");
  const envelope = beginEnvelope(KIND, layout.headEnd + geometry.layerCount * layout.sectionBytes);
  const { body } = envelope;
  writeGeometry(body, 0, geometry);
  viewOf(body).setUint32(FROM_TOKEN_OFFSET, fromToken, true);
  viewOf(body).setUint32(SEGMENT_COUNT_OFFSET, segments.length, true);
  viewOf(body).setUint32(KIND_OFFSET, summaryKindCode(kind), true);
  for (const [i, segment] of segments.entries()) {
    assert(segment.checksums.length === layout.checksumCount, "summaries: checksum table of a wrong size");
    assert(segment.slots.byteLength === layout.slotsBytes, "summaries: slots of a wrong size");
    body.set(chainToBytes(segment.chain), CHAINS_OFFSET + i * CHAIN_BYTES);
    writeU32s(body, layout.checksumsAt(i), segment.checksums);
  }
  if (layout.slotsBytes > 0) moveSlots(geometry, body.subarray(layout.headEnd), segments, "in");
  writeU32s(body, layout.sectionChecksumsAt, sectionChecksums(body, geometry, layout));
  const headEnd = BODY_OFFSET + layout.headEnd;
  envelope.bytes.set(sha256(envelope.bytes.subarray(0, headEnd - DIGEST_BYTES)), headEnd - DIGEST_BYTES);
  return sealEnvelope(envelope);
}

/** The digest by which a manifest names a finished object, of whichever version; hex. */
export function summaryDigest(bytes: Uint8Array): string {
  if (versionOf(bytes) < LAYERED_VERSION) return envelopeDigest(bytes);
  const body = bytes.subarray(BODY_OFFSET);
  const { headEnd } = layoutOf(readShape(body, {}));
  return toHex(body.subarray(headEnd - DIGEST_BYTES, headEnd));
}

/**
 * Verifies and reads a summary object. Slots of versions 2 and 3 are views into `bytes`.
 * @throws {FormatError} `corrupt`, `unsupported_version`, or `mismatch` against `expected`.
 */
export function decodeSummaryObject(bytes: Uint8Array, expected: SummaryExpectation = {}): SummaryObject {
  const body = openEnvelope(KIND, bytes);
  const isLayered = versionOf(bytes) >= LAYERED_VERSION;
  const head = isLayered ? readHead(bytes, body, expected) : readChecks(body, expected);
  if (!isLayered && expected.sha256 !== undefined && envelopeDigest(bytes) !== expected.sha256)
    throw new FormatError("mismatch", "summaries: not the object that was named");
  const { geometry, kind, fromToken } = head;
  const layout = layoutOf({ geometry, kind, segmentCount: head.segments.length });
  const slotsAt = isLayered ? layout.headEnd : layout.sectionChecksumsAt;
  refuseUnless(
    body.byteLength === slotsAt + head.segments.length * layout.slotsBytes,
    "summaries: length does not match",
  );
  if (!isLayered) {
    const slotsOf = (i: number) =>
      body.subarray(slotsAt + i * layout.slotsBytes, slotsAt + (i + 1) * layout.slotsBytes);
    return {
      geometry,
      kind,
      fromToken,
      segments: head.segments.map((checks, i) => ({ ...checks, slots: slotsOf(i) })),
    };
  }
  const sums = sectionChecksums(body, geometry, layout);
  refuseUnless(
    readU32s(body, layout.sectionChecksumsAt, geometry.layerCount).every((sum, layer) => sum === sums[layer]),
    "summaries: a layer does not match its checksum",
  );
  const segments = head.segments.map((checks) => ({ ...checks, slots: new Uint8Array(layout.slotsBytes) }));
  if (layout.slotsBytes > 0) moveSlots(geometry, body.subarray(layout.headEnd), segments, "out");
  return { geometry, kind, fromToken, segments };
}

/**
 * Verifies and reads the head of an object of which only its beginning was read, at least {@link summaryRange}'s bytes up to layer 0.
 * @throws {FormatError} also `unsupported_version` for one of an older version, which must be read whole.
 */
export function decodeSummaryHead(bytes: Uint8Array, expected: SummaryExpectation = {}): SummaryHead {
  openHead(KIND, bytes);
  if (versionOf(bytes) < LAYERED_VERSION)
    throw new FormatError("unsupported_version", "summaries: not layer by layer, to be read whole");
  return readHead(bytes, bytes.subarray(BODY_OFFSET), expected);
}

/** Whether a section, as it was read, is the one of its layer. */
export function isSectionIntact(head: SummaryHead, layer: number, section: Uint8Array): boolean {
  const { sectionBytes } = layoutOf({ ...head, segmentCount: head.segments.length });
  return section.byteLength === sectionBytes && crc32(section) === head.sectionChecksums[layer];
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

function versionOf(bytes: Uint8Array): number {
  return viewOf(bytes).getUint32(8, true);
}

/** The head of a layered object, verified by its digest. */
function readHead(bytes: Uint8Array, body: Uint8Array, expected: SummaryExpectation): SummaryHead {
  const { headEnd, sectionBytes, sectionChecksumsAt } = layoutOf(readShape(body, {}));
  refuseUnless(body.byteLength >= headEnd, "summaries: head is too short");
  refuseUnless(Number.isInteger(sectionBytes), "summaries: a slot is not the same for every layer");
  const digest = body.subarray(headEnd - DIGEST_BYTES, headEnd);
  const intact = bytesEqual(sha256(bytes.subarray(0, BODY_OFFSET + headEnd - DIGEST_BYTES)), digest);
  refuseUnless(intact, "summaries: digest of the head does not match");
  if (expected.sha256 !== undefined && toHex(digest) !== expected.sha256)
    throw new FormatError("mismatch", "summaries: not the object that was named");
  const checks = readChecks(body, expected);
  return { ...checks, sectionChecksums: readU32s(body, sectionChecksumsAt, checks.geometry.layerCount) };
}

/** What lies alike in all versions. */
function readChecks(body: Uint8Array, expected: SummaryExpectation): Omit<SummaryHead, "sectionChecksums"> {
  const shape = readShape(body, expected);
  const { geometry, kind, segmentCount } = shape;
  const layout = layoutOf(shape);
  const fromToken = viewOf(body).getUint32(FROM_TOKEN_OFFSET, true);
  refuseUnless(body.byteLength >= layout.sectionChecksumsAt, "summaries: length does not match");
  refuseUnless(fromToken % geometry.segmentTokens === 0, "summaries: do not begin at a segment border");
  const asExpected =
    (expected.kind === undefined || expected.kind === kind) &&
    (expected.fromToken === undefined || expected.fromToken === fromToken) &&
    (expected.tokenCount === undefined || expected.tokenCount === segmentCount * geometry.segmentTokens);
  if (!asExpected) throw new FormatError("mismatch", "summaries: not the run expected");
  const segments = Array.from({ length: segmentCount }, (_, i): SegmentChecks => {
    const chainAt = CHAINS_OFFSET + i * CHAIN_BYTES;
    return {
      chain: toHex(body.subarray(chainAt, chainAt + CHAIN_BYTES)),
      checksums: readU32s(body, layout.checksumsAt(i), layout.checksumCount),
    };
  });
  return { geometry, kind, fromToken, segments };
}

function readShape(body: Uint8Array, expected: SummaryExpectation): SummaryShape {
  refuseUnless(body.byteLength >= CHAINS_OFFSET, "summaries: body is too short");
  const geometry = readGeometry(body, 0, expected.geometry);
  const segmentCount = viewOf(body).getUint32(SEGMENT_COUNT_OFFSET, true);
  const kindCode = viewOf(body).getUint32(KIND_OFFSET, true);
  const kind = summaryObjectKinds(geometry).find((known) => summaryKindCode(known) === kindCode);
  refuseUnless(kind !== undefined, "summaries: a kind that the geometry does not keep");
  refuseUnless(segmentCount >= 1 && segmentCount <= SEGMENT_COUNT_MAX, "summaries: impossible segment count");
  return { geometry, kind, segmentCount };
}

/** Offsets are within the body. */
function layoutOf({ geometry, kind, segmentCount }: SummaryShape) {
  const { layerCount, summaryBytes } = geometry;
  const checksumCount = layerCount * blocksPerSegment(geometry);
  const slotsBytes = kind === "none" ? 0 : blocksPerSegment(geometry) * summaryBytes;
  const checksumsOffset = CHAINS_OFFSET + segmentCount * CHAIN_BYTES;
  const sectionChecksumsAt = checksumsOffset + segmentCount * 4 * checksumCount;
  return {
    checksumCount,
    slotsBytes,
    checksumsAt: (segment: number) => checksumsOffset + segment * 4 * checksumCount,
    sectionChecksumsAt,
    headEnd: sectionChecksumsAt + 4 * layerCount + DIGEST_BYTES,
    sectionBytes: (segmentCount * slotsBytes) / layerCount,
  };
}

function sectionChecksums(
  body: Uint8Array,
  { layerCount }: KvGeometry,
  { headEnd, sectionBytes }: ReturnType<typeof layoutOf>,
): Uint32Array {
  const section = (layer: number) =>
    body.subarray(headEnd + layer * sectionBytes, headEnd + (layer + 1) * sectionBytes);
  return Uint32Array.from({ length: layerCount }, (_, layer) => crc32(section(layer)));
}

/** Between slots, block by block, and sections, layer by layer. */
function moveSlots(
  geometry: KvGeometry,
  sections: Uint8Array,
  segments: readonly SegmentSummary[],
  direction: "in" | "out",
): void {
  const { layerCount, summaryBytes } = geometry;
  const perSegment = blocksPerSegment(geometry);
  const bytes = summaryBytes / layerCount;
  for (const [i, { slots }] of segments.entries()) {
    for (let block = 0; block < perSegment; block++) {
      for (let layer = 0; layer < layerCount; layer++) {
        const at = ((layer * segments.length + i) * perSegment + block) * bytes;
        const share = block * summaryBytes + layer * bytes;
        if (direction === "in") sections.set(slots.subarray(share, share + bytes), at);
        else slots.set(sections.subarray(at, at + bytes), share);
      }
    }
  }
}
