/**
 * The shape of a KV pool as stored bytes need it. Blocks, summary slots and open tokens are opaque here: only their
 * sizes matter (`docs/page-format.md` gives their insides).
 */
import { assert } from "../protocol/assert.ts";
import { viewOf } from "./bytes.ts";
import { FormatError, refuseUnless } from "./format-error.ts";

/** Tokens of one block. */
export const BLOCK_TOKENS = 64;
/** Pages of one block, each with one summary per kind. */
const PAGES_PER_BLOCK = 4;
/** Tokens of one segment unless a setting says otherwise. */
export const SEGMENT_TOKENS_DEFAULT = 256;
/** Bytes of a geometry in a binary header. */
export const GEOMETRY_BYTES = 36;

/** In the order of their numbers in binary formats. */
const ENCODINGS = ["f32", "int8", "f16", "int4"] as const;
/** In the order of their numbers in binary formats, from 1. */
const SUMMARY_KINDS = [
  "min-max",
  "mean-deviation",
  "centre-deviation",
  "representatives",
  "sign-bits",
  "residual-signs",
] as const;
/** Kinds that one geometry may keep: a byte for each in its 36. */
export const SUMMARY_KIND_COUNT_MAX = 4;

/** How sealed blocks are stored; `block-encoding.ts` has the last two. */
export type StoredEncoding = (typeof ENCODINGS)[number];
/** Kinds of page summaries. */
export type StoredSummaryKind = (typeof SUMMARY_KINDS)[number];
/** Kinds of summary objects: where no summaries are kept, `none` still has the chains and block checksums. */
export type SummaryObjectKind = StoredSummaryKind | "none";

/** Sizes and settings that every stored byte depends on. */
export interface KvGeometry {
  readonly layerCount: number;
  readonly kvHeadCount: number;
  readonly headDim: number;
  readonly encoding: StoredEncoding;
  /** Which are stored, in the order in which a tail holds them; each at most once. */
  readonly summaryKinds: readonly StoredSummaryKind[];
  /** One stored block of one layer: 64 tokens, K and V, all KV heads. */
  readonly blockBytes: number;
  /** One token of an open slot: K and V in f32, all layers. */
  readonly openTokenBytes: number;
  /** Summaries of one kind of one logical block: 4 pages, all layers. */
  readonly summaryBytes: number;
  /** A multiple of 64. */
  readonly segmentTokens: number;
}

/** What {@link kvGeometry} computes a geometry from: a pool's shape, how its blocks are stored, and the segment length. */
export interface KvShape {
  layerCount: number;
  kvHeadCount: number;
  headDim: number;
  encoding: StoredEncoding;
  summaryKinds: readonly StoredSummaryKind[];
  /** Default 256. */
  segmentTokens?: number;
}

/**
 * The geometry of a pool of this shape, its sizes computed from the layouts in `docs/page-format.md`.
 * @throws {AssertionError} for an impossible shape.
 */
export function kvGeometry(shape: KvShape): KvGeometry {
  const { layerCount, kvHeadCount, headDim, encoding, summaryKinds } = shape;
  const geometry: KvGeometry = {
    layerCount,
    kvHeadCount,
    headDim,
    encoding,
    summaryKinds: [...summaryKinds],
    blockBytes: storedBlockBytes(shape),
    openTokenBytes: 2 * layerCount * kvHeadCount * headDim * 4,
    summaryBytes: layerCount * kvHeadCount * PAGES_PER_BLOCK * (2 * headDim + 2 * 4),
    segmentTokens: shape.segmentTokens ?? SEGMENT_TOKENS_DEFAULT,
  };
  assert(isKvGeometry(geometry), "geometry: impossible shape");
  return geometry;
}

/** Bytes of a stored block of one layer. */
export function storedBlockBytes({
  kvHeadCount,
  headDim,
  encoding,
}: Pick<KvShape, "kvHeadCount" | "headDim" | "encoding">): number {
  const valueCount = 2 * kvHeadCount * BLOCK_TOKENS * headDim;
  const vectorCount = kvHeadCount * (headDim + BLOCK_TOKENS);
  if (encoding === "f32") return valueCount * 4;
  if (encoding === "f16") return valueCount * 2;
  // int8: a scale for each vector; int4: its least code and step, too.
  return encoding === "int8" ? valueCount + 4 * vectorCount : valueCount / 2 + 6 * vectorCount;
}

/**
 * How many versions later than f32 and int8 the objects of an encoding are: its readers must know it. Objects of f32 and int8 stay what readers of the
 * earlier versions read.
 */
export function versionsAfterFirst({ encoding }: Pick<KvGeometry, "encoding">): 0 | 1 {
  return encoding === "f32" || encoding === "int8" ? 0 : 1;
}

/** Whether `value`, of any origin, is a geometry whose numbers are within the format's bounds. */
export function isKvGeometry(value: unknown): value is KvGeometry {
  if (typeof value !== "object" || value === null) return false;
  const g = value as Record<string, unknown>;
  return (
    inRange(g.layerCount, 1, 1024) &&
    inRange(g.kvHeadCount, 1, 1024) &&
    inRange(g.headDim, 1, 4096) &&
    ENCODINGS.some((encoding) => encoding === g.encoding) &&
    isKindList(g.summaryKinds) &&
    inRange(g.blockBytes, 1, 2 ** 30) &&
    inRange(g.openTokenBytes, 1, 2 ** 30) &&
    inRange(g.summaryBytes, 1, 2 ** 30) &&
    inRange(g.segmentTokens, BLOCK_TOKENS, 65_536) &&
    g.segmentTokens % BLOCK_TOKENS === 0
  );
}

/** Whether bytes of one geometry can be read as bytes of the other. */
export function sameGeometry(a: KvGeometry, b: KvGeometry): boolean {
  return (
    a.layerCount === b.layerCount &&
    a.kvHeadCount === b.kvHeadCount &&
    a.headDim === b.headDim &&
    a.encoding === b.encoding &&
    a.summaryKinds.join() === b.summaryKinds.join() &&
    a.blockBytes === b.blockBytes &&
    a.openTokenBytes === b.openTokenBytes &&
    a.summaryBytes === b.summaryBytes &&
    a.segmentTokens === b.segmentTokens
  );
}

/** Kinds of summary objects that cover every segment of such a geometry, in order; at least one. */
export function summaryObjectKinds(geometry: KvGeometry): readonly SummaryObjectKind[] {
  return geometry.summaryKinds.length === 0 ? ["none"] : geometry.summaryKinds;
}

/** Number of a kind in binary formats: 0 for `none`. */
export function summaryKindCode(kind: SummaryObjectKind): number {
  return kind === "none" ? 0 : SUMMARY_KINDS.indexOf(kind) + 1;
}

/** Blocks of one layer in one segment. */
export function blocksPerSegment(geometry: KvGeometry): number {
  return geometry.segmentTokens / BLOCK_TOKENS;
}

/** Writes the 36 bytes of a geometry. */
export function writeGeometry(bytes: Uint8Array, offset: number, geometry: KvGeometry): void {
  assert(isKvGeometry(geometry), "geometry: out of bounds");
  const view = viewOf(bytes);
  view.setUint32(offset, geometry.layerCount, true);
  view.setUint32(offset + 4, geometry.kvHeadCount, true);
  view.setUint32(offset + 8, geometry.headDim, true);
  view.setUint32(offset + 12, ENCODINGS.indexOf(geometry.encoding), true);
  for (let i = 0; i < SUMMARY_KIND_COUNT_MAX; i++) {
    view.setUint8(offset + 16 + i, summaryKindCode(geometry.summaryKinds[i] ?? "none"));
  }
  view.setUint32(offset + 20, geometry.blockBytes, true);
  view.setUint32(offset + 24, geometry.openTokenBytes, true);
  view.setUint32(offset + 28, geometry.summaryBytes, true);
  view.setUint32(offset + 32, geometry.segmentTokens, true);
}

/**
 * Reads 36 bytes back, which must be there.
 * @throws {FormatError} `corrupt` when they are no geometry; `mismatch` when they are not the one `expected`.
 */
export function readGeometry(bytes: Uint8Array, offset: number, expected?: KvGeometry): KvGeometry {
  const view = viewOf(bytes);
  const kindCodes = [...bytes.subarray(offset + 16, offset + 16 + SUMMARY_KIND_COUNT_MAX)];
  const kindCount = kindCodes.indexOf(0) === -1 ? SUMMARY_KIND_COUNT_MAX : kindCodes.indexOf(0);
  refuseUnless(
    kindCodes.slice(kindCount).every((code) => code === 0),
    "geometry: gap in the list of summary kinds",
  );
  const geometry: unknown = {
    layerCount: view.getUint32(offset, true),
    kvHeadCount: view.getUint32(offset + 4, true),
    headDim: view.getUint32(offset + 8, true),
    encoding: ENCODINGS[view.getUint32(offset + 12, true)],
    summaryKinds: kindCodes.slice(0, kindCount).map((code) => SUMMARY_KINDS[code - 1]),
    blockBytes: view.getUint32(offset + 20, true),
    openTokenBytes: view.getUint32(offset + 24, true),
    summaryBytes: view.getUint32(offset + 28, true),
    segmentTokens: view.getUint32(offset + 32, true),
  };
  refuseUnless(isKvGeometry(geometry), "geometry: out of bounds");
  if (expected !== undefined && !sameGeometry(geometry, expected)) {
    throw new FormatError("mismatch", "geometry: not the one expected");
  }
  return geometry;
}

function inRange(value: unknown, min: number, max: number): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= min && value <= max;
}

function isKindList(value: unknown): value is StoredSummaryKind[] {
  return (
    Array.isArray(value) &&
    value.length <= SUMMARY_KIND_COUNT_MAX &&
    value.every((kind) => SUMMARY_KINDS.some((known) => known === kind)) &&
    new Set(value).size === value.length
  );
}
