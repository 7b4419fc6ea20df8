/**
 * The unsealed tail of a session: what follows its last whole segment. Read and written whole, immutable, named by chain
 * and generation. Its last, open block is stored in f32 as it lies in the open slot, so that appending goes on exactly.
 *
 * Body of an envelope "QUIRETAI": 0 geometry (36)   36 u32 from token   40 u32 token count n   44 u32 generation
 *   48 chain (32)   80 token ids u32, n   then blocks `[block][layer]`, floor(n/64) of them   then their summary
 *   slots `[kind][block]`*   then the n mod 64 open tokens: K f32 `[layer][kvHead][n mod 64][headDim]`, then V the same
 */
import { assert } from "../protocol/assert.ts";
import { CHAIN_BYTES, chainToBytes, readU32s, toHex, viewOf, writeU32s } from "./bytes.ts";
import { BODY_OFFSET, beginEnvelope, openEnvelope, sealEnvelope } from "./envelope.ts";
import { FormatError, refuseUnless } from "./format-error.ts";
import {
  BLOCK_TOKENS,
  GEOMETRY_BYTES,
  type KvGeometry,
  readGeometry,
  type StoredSummaryKind,
  versionsAfterFirst,
  writeGeometry,
} from "./geometry.ts";

/** As it is read; encodings f32 and int8 are written as the oldest version. */
const KIND = { magic: "QUIRETAI", version: 3, oldestVersion: 2 } as const;
const FROM_TOKEN_OFFSET = GEOMETRY_BYTES;
const TOKEN_COUNT_OFFSET = GEOMETRY_BYTES + 4;
const GENERATION_OFFSET = GEOMETRY_BYTES + 8;
const CHAIN_OFFSET = GEOMETRY_BYTES + 12;
const IDS_OFFSET = CHAIN_OFFSET + CHAIN_BYTES;

/** What a tail is made from, before it is known which manifest will name it. */
export interface TailParts {
  geometry: KvGeometry;
  /** First token of the tail, a multiple of `geometry.segmentTokens`. */
  fromToken: number;
  /** Chain at the tail's end, 64 hex digits. */
  chain: string;
  /** The tail's token ids, at least one. */
  ids: Uint32Array;
  /** Bytes of a sealed block, `index` counted within the tail. */
  block(index: number, layer: number): Uint8Array;
  /** Summary slot of a sealed block, for each kind that the geometry keeps. */
  summary(index: number, kind: StoredSummaryKind): Uint8Array;
  /** The `ids.length % 64` tokens of the open block, `openTokenBytes` each, as the open slot gives them. */
  open: Uint8Array;
}

/** What a tail is made from. */
export interface TailInput extends TailParts {
  /** Of the manifest that will name this tail; 1 or more. */
  generation: number;
}

/** A decoded tail; blocks, summaries and open tokens are views into the object's bytes. */
export interface Tail extends TailInput {
  /** Whole blocks: floor(ids.length / 64). */
  blockCount: number;
}

/** What the reader knows already; anything else is a `mismatch`. */
export interface TailExpectation {
  /** Digest that the manifest names, hex. */
  sha256?: string;
  geometry?: KvGeometry;
  fromToken?: number;
  tokenCount?: number;
  chain?: string;
}

/** Bytes of an encoded tail of `tokenCount` tokens. */
export function tailBytes(geometry: KvGeometry, tokenCount: number): number {
  return offsetsOf(geometry, tokenCount).end + 48;
}

/** Encodes a tail; `envelopeDigest` of the result names it. @throws {AssertionError} for wrong sizes or positions. */
export function encodeTail(input: TailInput): Uint8Array<ArrayBuffer> {
  return sealTail(layTail(input), input.generation);
}

/** Copies all of a tail into the object that it will be, which {@link sealTail} finishes. @throws {AssertionError} for wrong sizes or positions. */
export function layTail(input: TailParts): Uint8Array<ArrayBuffer> {
  const { geometry, ids } = input;
  assert(ids.length >= 1, "tail: holds no token");
  assert(
    input.fromToken >= 0 && input.fromToken % geometry.segmentTokens === 0,
    "tail: does not begin at a segment border",
  );
  const at = offsetsOf(geometry, ids.length);
  const envelope = beginEnvelope({ ...KIND, version: KIND.oldestVersion + versionsAfterFirst(geometry) }, at.end);
  const { body } = envelope;
  const view = viewOf(body);
  writeGeometry(body, 0, geometry);
  view.setUint32(FROM_TOKEN_OFFSET, input.fromToken, true);
  view.setUint32(TOKEN_COUNT_OFFSET, ids.length, true);
  body.set(chainToBytes(input.chain), CHAIN_OFFSET);
  writeU32s(body, IDS_OFFSET, ids);
  for (let index = 0; index < blockCountOf(ids.length); index++) {
    for (let layer = 0; layer < geometry.layerCount; layer++) {
      const block = input.block(index, layer);
      assert(block.byteLength === geometry.blockBytes, "tail: block of a wrong size");
      body.set(block, at.blocks + (index * geometry.layerCount + layer) * geometry.blockBytes);
    }
    for (const kind of geometry.summaryKinds) {
      const summary = input.summary(index, kind);
      assert(summary.byteLength === geometry.summaryBytes, "tail: summary of a wrong size");
      body.set(summary, summaryOffset(geometry, ids.length, { index, kind }));
    }
  }
  assert(input.open.byteLength === at.end - at.open, "tail: open block of a wrong size");
  body.set(input.open, at.open);
  return envelope.bytes;
}

/** Writes generation and digest into what {@link layTail} gave, in place, and returns it; the same bytes can be sealed again for another generation. */
export function sealTail(bytes: Uint8Array<ArrayBuffer>, generation: number): Uint8Array<ArrayBuffer> {
  assert(Number.isInteger(generation) && generation >= 1, "tail: impossible generation");
  viewOf(bytes).setUint32(BODY_OFFSET + GENERATION_OFFSET, generation, true);
  return sealEnvelope({ bytes });
}

/**
 * Verifies and reads a tail.
 * @throws {FormatError} `corrupt`, `unsupported_version`, or `mismatch` against `expected`.
 */
export function decodeTail(bytes: Uint8Array, expected: TailExpectation = {}): Tail {
  const body = openEnvelope(KIND, bytes, expected.sha256);
  refuseUnless(body.byteLength >= IDS_OFFSET, "tail: body is too short");
  const geometry = readGeometry(body, 0, expected.geometry);
  const view = viewOf(body);
  const fromToken = view.getUint32(FROM_TOKEN_OFFSET, true);
  const tokenCount = view.getUint32(TOKEN_COUNT_OFFSET, true);
  const generation = view.getUint32(GENERATION_OFFSET, true);
  const chain = toHex(body.subarray(CHAIN_OFFSET, CHAIN_OFFSET + CHAIN_BYTES));
  refuseUnless(tokenCount >= 1 && generation >= 1, "tail: impossible counts");
  refuseUnless(fromToken % geometry.segmentTokens === 0, "tail: does not begin at a segment border");
  const at = offsetsOf(geometry, tokenCount);
  refuseUnless(body.byteLength === at.end, "tail: length does not match");
  const asExpected =
    (expected.fromToken === undefined || expected.fromToken === fromToken) &&
    (expected.tokenCount === undefined || expected.tokenCount === tokenCount) &&
    (expected.chain === undefined || expected.chain === chain);
  if (!asExpected) throw new FormatError("mismatch", "tail: not the one expected");
  return {
    geometry,
    fromToken,
    generation,
    chain,
    ids: readU32s(body, IDS_OFFSET, tokenCount),
    blockCount: blockCountOf(tokenCount),
    ...viewsOf(body, geometry, tokenCount),
  };
}

function viewsOf(body: Uint8Array, geometry: KvGeometry, tokenCount: number) {
  const at = offsetsOf(geometry, tokenCount);
  const { blockBytes, layerCount, summaryBytes } = geometry;
  return {
    block(index: number, layer: number): Uint8Array {
      assert(index >= 0 && index < blockCountOf(tokenCount), "tail: no such block");
      assert(layer >= 0 && layer < layerCount, "tail: no such layer");
      const offset = at.blocks + (index * layerCount + layer) * blockBytes;
      return body.subarray(offset, offset + blockBytes);
    },
    summary(index: number, kind: StoredSummaryKind): Uint8Array {
      assert(index >= 0 && index < blockCountOf(tokenCount), "tail: no such summary");
      const offset = summaryOffset(geometry, tokenCount, { index, kind });
      return body.subarray(offset, offset + summaryBytes);
    },
    open: body.subarray(at.open, at.end),
  };
}

function blockCountOf(tokenCount: number): number {
  return Math.floor(tokenCount / BLOCK_TOKENS);
}

function summaryOffset(
  geometry: KvGeometry,
  tokenCount: number,
  slot: { index: number; kind: StoredSummaryKind },
): number {
  const kindIndex = geometry.summaryKinds.indexOf(slot.kind);
  assert(kindIndex !== -1, "tail: the geometry keeps no such kind of summary");
  const slots = kindIndex * blockCountOf(tokenCount) + slot.index;
  return offsetsOf(geometry, tokenCount).summaries + slots * geometry.summaryBytes;
}

function offsetsOf(geometry: KvGeometry, tokenCount: number) {
  const blockCount = blockCountOf(tokenCount);
  const blocks = IDS_OFFSET + 4 * tokenCount;
  const summaries = blocks + blockCount * geometry.layerCount * geometry.blockBytes;
  const open = summaries + geometry.summaryKinds.length * blockCount * geometry.summaryBytes;
  const end = open + (tokenCount % BLOCK_TOKENS) * geometry.openTokenBytes;
  return { blocks, summaries, open, end };
}
