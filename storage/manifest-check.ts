/** What makes a manifest acceptable, whatever wrote it: hostile JSON must not get past here. */
import { isChainHex } from "./bytes.ts";
import { BLOCK_TOKENS, isKvGeometry, type KvGeometry, summaryObjectKinds, versionsAfterFirst } from "./geometry.ts";
import { isStoreKey } from "./key-rules.ts";
import { segmentBytes } from "./segment.ts";
import { tailBytes } from "./tail.ts";

/** First bytes of every manifest, of any version. */
export const MANIFEST_MAGIC = "QUIREMAN";

/** Newest version of the manifest's fields and envelope. */
export const MANIFEST_FORMAT_VERSION = 3;
const TEXT_CHARACTERS_MAX = 1024;
/** Hot blocks of one layer; bounds what a hostile manifest can ask for. */
const HOT_BLOCKS_MAX = 1024;

type Fields = Record<string, unknown>;

/** The version that a manifest of this geometry is written in: 2 where its readers need not know the later encodings. */
export function manifestVersionOf(geometry: KvGeometry): 2 | 3 {
  return versionsAfterFirst(geometry) === 0 ? 2 : MANIFEST_FORMAT_VERSION;
}

/** Says what is wrong with a value that should be a manifest; undefined when nothing is. Never throws. */
export function manifestProblem(value: unknown): string | undefined {
  if (!isFields(value)) return "not an object";
  const geometry = value.geometry;
  if (!isCount(value.layoutVersion, 1)) return "layoutVersion";
  for (const field of ["sessionId", "modelFingerprint", "numericsId"]) {
    if (!isText(value[field])) return field;
  }
  if (!isKvGeometry(geometry)) return "geometry";
  if (value.formatVersion !== manifestVersionOf(geometry)) return "another format version";
  if (!isCount(value.generation, 1)) return "generation";
  if (!isCount(value.tokenCount, 1)) return "tokenCount";
  if (!isChainHex(value.chain)) return "chain";
  if (!isCount(value.updatedMs, 0)) return "updatedMs";
  if (value.bornMs !== undefined && !isCount(value.bornMs, 0)) return "bornMs";
  return (
    spansProblem(value.spans, value.tokenCount) ??
    coverageProblem(value, geometry, value.tokenCount) ??
    hotBlocksProblem(value.hotBlocks, geometry, value.tokenCount)
  );
}

function spansProblem(spans: unknown, tokenCount: number): string | undefined {
  if (!Array.isArray(spans)) return "spans";
  let end = 0;
  for (const span of spans as unknown[]) {
    if (!isFields(span) || !isCount(span.end, end + 1) || !isText(span.how)) return "spans";
    end = span.end;
  }
  return end === tokenCount ? undefined : "spans do not end at tokenCount";
}

function coverageProblem(manifest: Fields, geometry: KvGeometry, tokenCount: number): string | undefined {
  const { segments, summaries, tail } = manifest;
  if (!Array.isArray(segments) || !Array.isArray(summaries)) return "segments or summaries";
  const { segmentTokens } = geometry;
  const sealedTokens = segments.length * segmentTokens;
  if (!segments.every((ref, i) => isSegmentRef(ref, geometry, i * segmentTokens))) return "segments";
  const summaryProblem = summariesProblem(summaries, geometry, sealedTokens);
  if (summaryProblem !== undefined) return summaryProblem;
  if (tail === undefined) return sealedTokens === tokenCount ? undefined : "tail is missing";
  if (!isWholeRef(tail) || tail.fromToken !== sealedTokens) return "tail";
  if (tail.objectBytes !== tailBytes(geometry, tail.tokenCount)) return "tail has another length";
  return sealedTokens + tail.tokenCount === tokenCount ? undefined : "tail does not end at tokenCount";
}

/** Every kind of the geometry covers the segments, one kind after the other. */
function summariesProblem(summaries: unknown[], geometry: KvGeometry, sealedTokens: number): string | undefined {
  let at = 0;
  for (const kind of summaryObjectKinds(geometry)) {
    let nextToken = 0;
    for (; nextToken < sealedTokens; at++) {
      const ref = summaries[at];
      if (!isWholeRef(ref) || ref.kind !== kind || ref.fromToken !== nextToken) return "summaries";
      if (ref.tokenCount % geometry.segmentTokens !== 0) return "summaries";
      nextToken += ref.tokenCount;
    }
    if (nextToken !== sealedTokens) return "summaries do not cover the segments";
  }
  return at === summaries.length ? undefined : "summaries of more than the segments";
}

function hotBlocksProblem(hotBlocks: unknown, geometry: KvGeometry, tokenCount: number): string | undefined {
  if (!Array.isArray(hotBlocks)) return "hotBlocks";
  if (hotBlocks.length !== 0 && hotBlocks.length !== geometry.layerCount) return "hotBlocks";
  const blockCount = Math.ceil(tokenCount / BLOCK_TOKENS);
  const acceptable = hotBlocks.every(
    (layer) =>
      Array.isArray(layer) &&
      layer.length <= HOT_BLOCKS_MAX &&
      new Set(layer).size === layer.length &&
      layer.every((block) => isCount(block, 0) && block < blockCount),
  );
  return acceptable ? undefined : "hotBlocks";
}

function isSegmentRef(ref: unknown, geometry: KvGeometry, fromToken: number): boolean {
  return (
    isFields(ref) &&
    isChainHex(ref.chain) &&
    ref.fromToken === fromToken &&
    ref.tokenCount === geometry.segmentTokens &&
    isStoreKey(ref.objectKey) &&
    isCount(ref.objectOffset, 0) &&
    ref.objectBytes === segmentBytes(geometry)
  );
}

function isWholeRef(ref: unknown): ref is Fields & { fromToken: number; tokenCount: number } {
  return (
    isFields(ref) &&
    isStoreKey(ref.objectKey) &&
    isCount(ref.objectBytes, 1) &&
    isChainHex(ref.sha256) &&
    isCount(ref.fromToken, 0) &&
    isCount(ref.tokenCount, 1)
  );
}

function isFields(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isCount(value: unknown, min: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= min;
}

function isText(value: unknown): value is string {
  return typeof value === "string" && value.length >= 1 && value.length <= TEXT_CHARACTERS_MAX;
}
