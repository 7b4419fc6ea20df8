/** Small objects of every format, made from seeds: what the format tests start from. */
import { sha256Hex } from "../../storage/checksum.ts";
import { envelopeDigest } from "../../storage/envelope.ts";
import {
  blocksPerSegment,
  type KvGeometry,
  type KvShape,
  kvGeometry,
  type StoredSummaryKind,
  type SummaryObjectKind,
  summaryObjectKinds,
} from "../../storage/geometry.ts";
import { objectKeys } from "../../storage/keys.ts";
import type { Manifest } from "../../storage/manifest.ts";
import { manifestVersionOf } from "../../storage/manifest-check.ts";
import { encodeSegment, segmentBytes } from "../../storage/segment.ts";
import { encodeSummaryObject, type SegmentSummary, summaryDigest } from "../../storage/summary-object.ts";
import { encodeTail } from "../../storage/tail.ts";
import { noise } from "./random.ts";

/** Two layers, one KV head of 4 channels, int8, one kind of summaries, 128-token segments. */
export const SMALL_SHAPE: KvShape = {
  layerCount: 2,
  kvHeadCount: 1,
  headDim: 4,
  encoding: "int8",
  summaryKinds: ["mean-deviation"],
  segmentTokens: 128,
};

/** The geometry of {@link SMALL_SHAPE}. */
export const SMALL: KvGeometry = kvGeometry(SMALL_SHAPE);

/**
 * A geometry whose opaque sizes are a few bytes, for exhaustive tests; no pool has it.
 */
export const TINY: KvGeometry = {
  layerCount: 2,
  kvHeadCount: 1,
  headDim: 1,
  encoding: "int8",
  summaryKinds: ["min-max", "mean-deviation"],
  blockBytes: 12,
  openTokenBytes: 3,
  summaryBytes: 5,
  segmentTokens: 128,
};

/** A chain value made from a label. */
export function chainOf(label: string | number): string {
  return sha256Hex(`chain ${label}`);
}

/** Block bytes of a segment or tail, from its place. */
export function blockOf(geometry: KvGeometry, fromToken: number, layer: number, index: number): Uint8Array {
  return noise(fromToken * 1_009 + layer * 101 + index, geometry.blockBytes);
}

/** An encoded segment. */
export function sampleSegment(geometry: KvGeometry, fromToken = 0): Uint8Array<ArrayBuffer> {
  return encodeSegment({
    geometry,
    fromToken,
    chain: chainOf(fromToken + geometry.segmentTokens),
    block: (layer, index) => blockOf(geometry, fromToken, layer, index),
  });
}

/** What a summary object of a kind holds of one segment. */
export function sampleSummary(geometry: KvGeometry, fromToken: number, kind: SummaryObjectKind): SegmentSummary {
  const blockCount = blocksPerSegment(geometry);
  const checksums = Uint32Array.from({ length: geometry.layerCount * blockCount }, (_, i) => (fromToken + i) * 7_919);
  return {
    chain: chainOf(fromToken + geometry.segmentTokens),
    checksums,
    slots: kind === "none" ? new Uint8Array(0) : slotNoise(fromToken, kind, blockCount * geometry.summaryBytes),
  };
}

/** Bytes of summary slots, other ones for each kind. */
export function slotNoise(seed: number, kind: StoredSummaryKind, bytes: number): Uint8Array {
  return noise(seed + (kind === "min-max" ? 1 : 50_001), bytes);
}

/** An encoded summary object of consecutive segments, of the geometry's first kind unless another is named. */
export function sampleSummaryObject(
  geometry: KvGeometry,
  segmentCount: number,
  fromToken = 0,
  kind = summaryObjectKinds(geometry)[0] as SummaryObjectKind,
): Uint8Array<ArrayBuffer> {
  const segments = Array.from({ length: segmentCount }, (_, i) =>
    sampleSummary(geometry, fromToken + i * geometry.segmentTokens, kind),
  );
  return encodeSummaryObject({ geometry, kind, fromToken, segments });
}

/** An encoded tail. */
export function sampleTail(geometry: KvGeometry, tokenCount: number, fromToken = 0): Uint8Array<ArrayBuffer> {
  return encodeTail({
    geometry,
    fromToken,
    generation: 3,
    chain: chainOf(fromToken + tokenCount),
    ids: Uint32Array.from({ length: tokenCount }, (_, i) => (i * 2_654_435_761) >>> 0),
    block: (index, layer) => blockOf(geometry, fromToken, layer, index),
    summary: (index, kind) => slotNoise(index + 50, kind, geometry.summaryBytes),
    open: noise(99, (tokenCount % 64) * geometry.openTokenBytes),
  });
}

/** Keys of a small tenant. */
export function sampleKeys(geometry: KvGeometry, namespace = "ab01") {
  return objectKeys({ namespace, modelFingerprint: sha256Hex("model"), numericsId: "wasm-1-fused", geometry });
}

/** A manifest of `segmentCount` segments and a tail, with the objects it names. */
export function sampleSession(
  geometry: KvGeometry,
  options: { sessionId: string; segmentCount: number; tailTokens: number; namespace?: string; updatedMs?: number },
): { key: string; manifest: Manifest; objects: Map<string, Uint8Array> } {
  const { sessionId, segmentCount, tailTokens } = options;
  const keys = sampleKeys(geometry, options.namespace);
  const objects = new Map<string, Uint8Array>();
  const sealedTokens = segmentCount * geometry.segmentTokens;
  const tokenCount = sealedTokens + tailTokens;
  const segments = Array.from({ length: segmentCount }, (_, i) => {
    const fromToken = i * geometry.segmentTokens;
    const chain = chainOf(fromToken + geometry.segmentTokens);
    objects.set(keys.segment(chain), sampleSegment(geometry, fromToken));
    return {
      chain,
      fromToken,
      tokenCount: geometry.segmentTokens,
      objectKey: keys.segment(chain),
      objectOffset: 0,
      objectBytes: segmentBytes(geometry),
    };
  });
  const whole = (objectKey: string, bytes: Uint8Array, fromToken: number, count: number) => {
    objects.set(objectKey, bytes);
    const sha256 = objectKey.includes("/sum-") ? summaryDigest(bytes) : envelopeDigest(bytes);
    return { objectKey, objectBytes: bytes.byteLength, sha256, fromToken, tokenCount: count };
  };
  const summaries = (segmentCount === 0 ? [] : summaryObjectKinds(geometry)).map((kind) => {
    const objectKey = keys.summary(kind, chainOf(sealedTokens), sealedTokens);
    return { kind, ...whole(objectKey, sampleSummaryObject(geometry, segmentCount, 0, kind), 0, sealedTokens) };
  });
  const tailKey = keys.tail(sessionId, chainOf(tokenCount), 3);
  const tail =
    tailTokens === 0
      ? {}
      : { tail: whole(tailKey, sampleTail(geometry, tailTokens, sealedTokens), sealedTokens, tailTokens) };
  const manifest: Manifest = {
    formatVersion: manifestVersionOf(geometry),
    layoutVersion: 2,
    sessionId,
    modelFingerprint: sha256Hex("model"),
    numericsId: "wasm-1-fused",
    geometry,
    generation: 3,
    tokenCount,
    chain: chainOf(tokenCount),
    spans: [{ end: tokenCount, how: "dense" }],
    segments,
    summaries,
    ...tail,
    hotBlocks: Array.from({ length: geometry.layerCount }, (_, layer) => (layer === 0 ? [] : [0])),
    updatedMs: options.updatedMs ?? 1_700_000_000_000,
  };
  return { key: keys.session(sessionId), manifest, objects };
}
