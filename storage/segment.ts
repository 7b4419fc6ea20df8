/**
 * A segment: a fixed run of tokens, all layers, immutable, named by the chain at its end. Header, then blocks in order
 * `[layer][block]`, so that neighbouring blocks of one layer are one contiguous range and each block is one range read.
 *
 *   0 magic "QUIRESEG"   8 u32 version   12 u32 header bytes   16 geometry (36)   52 u32 from token   56 u32 token count
 *   60 chain (32)   92 u32 CRC-32 of each block `[layer][block]`   zeros   header bytes - 4: u32 CRC-32 of all before it
 */
import { assert } from "../protocol/assert.ts";
import { CHAIN_BYTES, chainToBytes, readU32s, toHex, viewOf, writeU32s } from "./bytes.ts";
import { crc32 } from "./checksum.ts";
import { FormatError, refuseUnless } from "./format-error.ts";
import { blocksPerSegment, type KvGeometry, readGeometry, versionsAfterFirst, writeGeometry } from "./geometry.ts";

const MAGIC = "QUIRESEG";
/** Of encodings f32 and int8; the next one is the newest that is read. */
const VERSION = 1;
const VERSION_MAX = 2;
const GEOMETRY_OFFSET = 16;
const FROM_TOKEN_OFFSET = 52;
const TOKEN_COUNT_OFFSET = 56;
const CHAIN_OFFSET = 60;
const CHECKSUMS_OFFSET = CHAIN_OFFSET + CHAIN_BYTES;
/** Blocks begin at a multiple of this, relative to the segment. */
const HEADER_ALIGNMENT = 64;
/** Larger than any real header; bounds what a damaged length can ask for. */
const HEADER_BYTES_MAX = 16 * 1024 * 1024;

/** What a segment is made from. */
export interface SegmentInput {
  geometry: KvGeometry;
  /** A multiple of `geometry.segmentTokens`. */
  fromToken: number;
  /** Chain at the segment's end, 64 hex digits. */
  chain: string;
  /** Bytes of one block, `index` counted within the segment; copied before the next call. */
  block(layer: number, index: number): Uint8Array;
}

/** What a segment's header says. */
export interface SegmentHeader {
  geometry: KvGeometry;
  fromToken: number;
  tokenCount: number;
  /** 64 hex digits. */
  chain: string;
  /** CRC-32 of each block, `[layer][block]`. */
  checksums: Uint32Array<ArrayBuffer>;
}

/** What the reader knows already; anything else is a `mismatch`. */
export interface SegmentExpectation {
  geometry?: KvGeometry;
  chain?: string;
  fromToken?: number;
}

/** Bytes of a segment's header. */
export function segmentHeaderBytes(geometry: KvGeometry): number {
  const bytes = CHECKSUMS_OFFSET + 4 * geometry.layerCount * blocksPerSegment(geometry) + 4;
  return Math.ceil(bytes / HEADER_ALIGNMENT) * HEADER_ALIGNMENT;
}

/** Bytes of a whole segment. */
export function segmentBytes(geometry: KvGeometry): number {
  return segmentHeaderBytes(geometry) + geometry.layerCount * blocksPerSegment(geometry) * geometry.blockBytes;
}

/**
 * Where `blockCount` (default 1) neighbouring blocks of one layer lie, relative to the segment's first byte.
 * Needs no header. @throws {AssertionError} for blocks outside of the segment.
 */
export function segmentRange(
  geometry: KvGeometry,
  layer: number,
  blockIndex: number,
  blockCount = 1,
): { offset: number; bytes: number } {
  const perLayer = blocksPerSegment(geometry);
  assert(layer >= 0 && layer < geometry.layerCount, "segment range: no such layer");
  assert(blockIndex >= 0 && blockCount >= 1 && blockIndex + blockCount <= perLayer, "segment range: no such block");
  return {
    offset: segmentHeaderBytes(geometry) + (layer * perLayer + blockIndex) * geometry.blockBytes,
    bytes: blockCount * geometry.blockBytes,
  };
}

/** Place of a block's checksum in a table `[layer][block]` of one segment. */
export function checksumIndex(geometry: KvGeometry, layer: number, blockIndex: number): number {
  return layer * blocksPerSegment(geometry) + blockIndex;
}

/** Encodes a segment. The same input gives the same bytes. @throws {AssertionError} for wrong sizes or positions. */
export function encodeSegment(input: SegmentInput): Uint8Array<ArrayBuffer> {
  const { geometry, fromToken } = input;
  assert(fromToken >= 0 && fromToken % geometry.segmentTokens === 0, "segment: does not begin at a segment border");
  const bytes = new Uint8Array(segmentBytes(geometry));
  const checksums = new Uint32Array(geometry.layerCount * blocksPerSegment(geometry));
  for (let layer = 0; layer < geometry.layerCount; layer++) {
    for (let index = 0; index < blocksPerSegment(geometry); index++) {
      const block = input.block(layer, index);
      assert(block.byteLength === geometry.blockBytes, "segment: block of a wrong size");
      bytes.set(block, segmentRange(geometry, layer, index).offset);
      checksums[checksumIndex(geometry, layer, index)] = crc32(block);
    }
  }
  writeHeader(bytes, input, checksums);
  return bytes;
}

function writeHeader(bytes: Uint8Array, input: SegmentInput, checksums: Uint32Array): void {
  const headerBytes = segmentHeaderBytes(input.geometry);
  const view = viewOf(bytes);
  bytes.set(Buffer.from(MAGIC, "latin1"), 0);
  view.setUint32(8, VERSION + versionsAfterFirst(input.geometry), true);
  view.setUint32(12, headerBytes, true);
  writeGeometry(bytes, GEOMETRY_OFFSET, input.geometry);
  view.setUint32(FROM_TOKEN_OFFSET, input.fromToken, true);
  view.setUint32(TOKEN_COUNT_OFFSET, input.geometry.segmentTokens, true);
  bytes.set(chainToBytes(input.chain), CHAIN_OFFSET);
  writeU32s(bytes, CHECKSUMS_OFFSET, checksums);
  view.setUint32(headerBytes - 4, crc32(bytes.subarray(0, headerBytes - 4)), true);
}

/**
 * Verifies and reads a header; `bytes` may go on after it.
 * @throws {FormatError} `corrupt`, `unsupported_version`, or `mismatch` against `expected`.
 */
export function decodeSegmentHeader(bytes: Uint8Array, expected: SegmentExpectation = {}): SegmentHeader {
  refuseUnless(bytes.byteLength >= HEADER_ALIGNMENT, "segment: too short");
  refuseUnless(Buffer.from(bytes.subarray(0, 8)).toString("latin1") === MAGIC, "segment: no such magic");
  const view = viewOf(bytes);
  const headerBytes = view.getUint32(12, true);
  refuseUnless(headerBytes >= HEADER_ALIGNMENT && headerBytes <= HEADER_BYTES_MAX, "segment: impossible header length");
  refuseUnless(bytes.byteLength >= headerBytes, "segment: header is cut");
  const checksum = view.getUint32(headerBytes - 4, true);
  refuseUnless(crc32(bytes.subarray(0, headerBytes - 4)) === checksum, "segment: header checksum does not match");
  const version = view.getUint32(8, true);
  refuseUnless(version >= 1, "segment: version 0");
  if (version > VERSION_MAX) {
    throw new FormatError("unsupported_version", `segment: version ${version}, newest known is ${VERSION_MAX}`);
  }
  refuseUnless(headerBytes > CHECKSUMS_OFFSET, "segment: header is too short");
  const geometry = readGeometry(bytes, GEOMETRY_OFFSET, expected.geometry);
  refuseUnless(headerBytes === segmentHeaderBytes(geometry), "segment: header length does not match its geometry");
  const header: SegmentHeader = {
    geometry,
    fromToken: view.getUint32(FROM_TOKEN_OFFSET, true),
    tokenCount: view.getUint32(TOKEN_COUNT_OFFSET, true),
    chain: toHex(bytes.subarray(CHAIN_OFFSET, CHAIN_OFFSET + CHAIN_BYTES)),
    checksums: readU32s(bytes, CHECKSUMS_OFFSET, geometry.layerCount * blocksPerSegment(geometry)),
  };
  checkHeader(header, expected);
  return header;
}

function checkHeader(header: SegmentHeader, expected: SegmentExpectation): void {
  refuseUnless(header.tokenCount === header.geometry.segmentTokens, "segment: token count is not a segment's");
  refuseUnless(header.fromToken % header.geometry.segmentTokens === 0, "segment: does not begin at a segment border");
  const asExpected =
    (expected.chain === undefined || expected.chain === header.chain) &&
    (expected.fromToken === undefined || expected.fromToken === header.fromToken);
  if (!asExpected) throw new FormatError("mismatch", "segment: not the one expected");
}

/** Whether a block's bytes are those its checksum was made from. */
export function verifyBlock(bytes: Uint8Array, checksum: number): boolean {
  return crc32(bytes) === checksum;
}

/**
 * Verifies a whole segment, every block included, and gives views of its blocks.
 * @throws {FormatError} `corrupt`, `unsupported_version`, or `mismatch` against `expected`.
 */
export function decodeSegment(
  bytes: Uint8Array,
  expected: SegmentExpectation = {},
): SegmentHeader & { block(layer: number, index: number): Uint8Array } {
  const header = decodeSegmentHeader(bytes, expected);
  const { geometry, checksums } = header;
  refuseUnless(bytes.byteLength === segmentBytes(geometry), "segment: length does not match its geometry");
  const block = (layer: number, index: number): Uint8Array => {
    const range = segmentRange(geometry, layer, index);
    return bytes.subarray(range.offset, range.offset + range.bytes);
  };
  for (let layer = 0; layer < geometry.layerCount; layer++) {
    for (let index = 0; index < blocksPerSegment(geometry); index++) {
      const intact = verifyBlock(block(layer, index), checksums[checksumIndex(geometry, layer, index)] as number);
      refuseUnless(intact, `segment: checksum of layer ${layer}, block ${index} does not match`);
    }
  }
  return { ...header, block };
}
