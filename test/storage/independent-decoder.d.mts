/** Types of the independent decoder, stated apart from `storage/` on purpose. */
interface Geometry {
  layerCount: number;
  kvHeadCount: number;
  headDim: number;
  encoding: string;
  summaryKinds: string[];
  blockBytes: number;
  openTokenBytes: number;
  summaryBytes: number;
  segmentTokens: number;
}

/** Reads a segment, checksums verified. */
export function decodeSegment(bytes: Uint8Array): {
  geometry: Geometry;
  fromToken: number;
  tokenCount: number;
  chain: string;
  checksums: number[];
  blocks: Uint8Array[][];
};

/** Reads a summary object, digest verified. */
export function decodeSummaries(bytes: Uint8Array): {
  digest: string;
  geometry: Geometry;
  fromToken: number;
  kind: string;
  segments: { chain: string; checksums: number[]; slots: Uint8Array[] }[];
};

/** Reads a tail, digest verified. */
export function decodeTail(bytes: Uint8Array): {
  digest: string;
  geometry: Geometry;
  fromToken: number;
  generation: number;
  chain: string;
  ids: number[];
  blocks: Uint8Array[][];
  slots: Record<string, Uint8Array[]>;
  open: Uint8Array;
};

/** Reads a manifest, digest verified. */
export function decodeManifest(bytes: Uint8Array): unknown;

/** Decodes an int8 block to f32. */
export function decodeInt8Block(
  geometry: { kvHeadCount: number; headDim: number },
  block: Uint8Array,
): { keys: Float32Array; values: Float32Array };

/** Decodes an int4 block to f32. */
export function decodeInt4Block(
  geometry: { kvHeadCount: number; headDim: number },
  block: Uint8Array,
): { keys: Float32Array; values: Float32Array };

/** Decodes an f16 block to f32. */
export function decodeF16Block(
  geometry: { kvHeadCount: number; headDim: number },
  block: Uint8Array,
): { keys: Float32Array; values: Float32Array };

/** Decodes one kind of a summary slot to f32. */
export function decodeSummarySlot(
  geometry: { layerCount: number; kvHeadCount: number; headDim: number },
  slot: Uint8Array,
): { centre: Float32Array; radius: Float32Array };

/** Decodes the residual signs of one KV head of a summary slot. */
export function decodeResidualSigns(
  headDim: number,
  head: Uint8Array,
): { mean: number[]; tokens: { signs: number[]; length: number }[] };

/** Decrypts an object that was stored under `key`. */
export function decryptObject(master: Uint8Array, key: string, stored: Uint8Array): Uint8Array;
