/** How much memory a model needs, and how many blocks and slots fit into what is given. Pure arithmetic. */
import { COARSE_KINDS } from "../kernels/coarse.ts";
import { BLOCK_TOKENS, type KvEncoding, type MatrixEncoding, type SummaryKind } from "../kernels/contract.ts";
import { blockCentreBytes, blockLayout, openSlotBytes, summaryBytes } from "../kernels/layout.ts";
import { QuireError } from "../protocol/errors.ts";
import { LIMITS } from "../protocol/limits.ts";
import type { ModelConfig } from "./contract.ts";

/** Bytes of the parts of a KV pool for one model, in the layouts that `kernels/contract.ts` fixes. */
export interface PoolUnitBytes {
  /** One block (64 tokens) of one layer. */
  blockBytes: number;
  /** One open slot: 64 tokens of every layer, f32. */
  openSlotBytes: number;
  /** Summaries of one logical block, every layer and kind, with the block's own centres. */
  summarySlotBytes: number;
  /** Of these, the block's own centres, which are in device memory only. */
  centreBytes: number;
  /** Sealed KV and summaries of one token, every layer: what a longer context costs. */
  tokenBytes: number;
}

/** Sizes of the pool's units; `summaryKinds` may be empty (dense only). */
export function poolUnitBytes(
  config: ModelConfig,
  encoding: KvEncoding,
  summaryKinds: readonly SummaryKind[],
): PoolUnitBytes {
  const { layerCount, kvHeadCount, headDim } = config;
  const shape = { layerCount, kvHeadCount, headDim, encoding, summaryKinds };
  const blockBytes = blockLayout(shape).bytes;
  const centreCount = summaryKinds.filter((kind) => COARSE_KINDS.includes(kind)).length;
  const centreBytes = centreCount * layerCount * kvHeadCount * blockCentreBytes(headDim);
  const slotBytes = summaryKinds.length * summaryBytes(shape) + centreBytes;
  return {
    blockBytes,
    openSlotBytes: openSlotBytes(shape),
    summarySlotBytes: slotBytes,
    centreBytes,
    tokenBytes: (layerCount * blockBytes + slotBytes) / BLOCK_TOKENS,
  };
}

/** Embeddings and output head suffer most from few bits and are read least: with int4 layers they are int8. */
export function tableEncoding(encoding: MatrixEncoding): MatrixEncoding {
  return encoding === "int4" ? "int8" : encoding;
}

/** Bytes of a row of `inWidth` weights; int8 and int4 have one f32 scale per 32 of them. */
const ROW_BYTES: Readonly<Record<MatrixEncoding, (inWidth: number) => number>> = {
  f32: (inWidth) => inWidth * 4,
  bf16: (inWidth) => inWidth * 2,
  // On a GPU half of it; the CPU device keeps them as f32.
  f16: (inWidth) => inWidth * 4,
  int8: (inWidth) => inWidth + Math.ceil(inWidth / 32) * 4,
  int4: (inWidth) => Math.ceil(inWidth / 32) * 20,
};

/** Bytes of the weights as the runner keeps them: matrices of layers in `encoding`, tables see {@link tableEncoding}, norms and biases f32. */
export function weightBytes(config: ModelConfig, encoding: MatrixEncoding): number {
  const { width, ffnWidth, layerCount, headCount, kvHeadCount, headDim, vocabularySize } = config;
  const matrix = (outWidth: number, inWidth: number) => outWidth * ROW_BYTES[encoding](inWidth);
  const layer =
    matrix(headCount * headDim, width) +
    2 * matrix(kvHeadCount * headDim, width) +
    matrix(width, headCount * headDim) +
    2 * matrix(ffnWidth, width) +
    matrix(width, ffnWidth);
  const table = vocabularySize * ROW_BYTES[tableEncoding(encoding)](width);
  const embeddings = table * (config.tiedEmbeddings ? 1 : 2);
  const norms = (2 * layerCount + 1) * width * 4;
  const biases = config.qkvBias ? layerCount * (headCount + 2 * kvHeadCount) * headDim * 4 : 0;
  const headNorms = config.qkNorm ? layerCount * 2 * headDim * 4 : 0;
  return embeddings + layerCount * layer + norms + biases + headNorms;
}

/** Values of all tensors that the forward pass reads, counted from the configuration; tied embeddings once. */
export function parameterCount(config: ModelConfig): number {
  // In f32 every parameter is four bytes.
  return weightBytes(config, "f32") / 4;
}

/**
 * Bytes of the runner's activation buffers for steps of up to `rowsMax` rows of which `sampledMax` are sampled, RoPE tables included,
 * checkpoints of missed layers (at most one layer input, `rowsMax * width`, on a CPU device) too.
 */
export function activationBytes(config: ModelConfig, rowsMax: number, sampledMax: number): number {
  const { width, ffnWidth, headCount, kvHeadCount, headDim, vocabularySize } = config;
  const rowFloats = 3 * width + 2 * headCount * headDim + 2 * kvHeadCount * headDim + 2 * ffnWidth;
  const sampledFloats = width + headCount * headDim + vocabularySize;
  const ropeFloats = config.contextTokensMax * headDim;
  return (rowsMax * rowFloats + sampledMax * sampledFloats + ropeFloats) * 4;
}

/** What a pool is for, and how much it may take. */
export interface PoolRequest {
  config: ModelConfig;
  encoding: KvEncoding;
  summaryKinds: readonly SummaryKind[];
  /** Bytes the pool may take, all parts together. */
  poolBytes: number;
  /** Sequences that run together. */
  runningMax: number;
  /** The longest context that one sequence must be able to reach. */
  contextTokens: number;
  /** Host memory for what of such a context the pool has no room for; absent: all of it must be resident. */
  hostBytes?: number;
  /** Largest total row count of a step (default: the limit). */
  rowsMax?: number;
}

/** Counts for `KvPoolSpec`, and what they come to. */
export interface PoolPlan {
  /** Blocks of one layer; a multiple of the layer count. */
  blockCount: number;
  openSlotCount: number;
  summarySlotCount: number;
  /** Sequences that may run together: as asked, or fewer where their open slots would crowd out the blocks. */
  runningMax: number;
  /** Sealed tokens of all sequences that fit at once. */
  tokenCapacity: number;
  bytes: number;
}

/** Open slots may take this share of the pool before fewer sequences run. */
const OPEN_SHARE_MAX = 0.5;

/**
 * Divides `poolBytes`. A sequence keeps one open slot, and a step of `rowsMax` rows over n sequences touches at most
 * `rowsMax/64 + 2n` logical blocks. Summary slots exceed the logical blocks by one whole context (at most by as many again),
 * because a resumed sequence holds the summaries of blocks that are not resident.
 *
 * A pool that cannot hold one whole context does where host memory can: then it holds a layer of it at least, and what a step seals in every layer.
 * @throws {QuireError} `invalid_request` when one sequence of `contextTokens` does not fit; the message says what would be needed.
 */
export function planPool(request: PoolRequest): PoolPlan {
  const { config, poolBytes, contextTokens } = request;
  const unit = poolUnitBytes(config, request.encoding, request.summaryKinds);
  const contextBlocks = Math.ceil(contextTokens / BLOCK_TOKENS);
  const layerBlockBytes = config.layerCount * unit.blockBytes;
  const openSlots = (runningMax: number) => openSlotsOf(runningMax, request.rowsMax);
  const isResident = smallestPoolBytes(request) <= poolBytes;
  const oneContextBytes = isResident ? contextBytes(request) : confinedBytes(request);
  const fits = (runningMax: number) => {
    const openBytes = openSlots(runningMax) * unit.openSlotBytes;
    const crowded = runningMax > 1 && openBytes > poolBytes * OPEN_SHARE_MAX;
    return !crowded && openBytes + oneContextBytes <= poolBytes;
  };
  let runningMax = request.runningMax;
  while (runningMax > 1 && !fits(runningMax)) runningMax--;
  if (!fits(runningMax)) {
    const neededBytes = smallestPoolBytes(request);
    throw new QuireError(
      "invalid_request",
      `a KV pool of ${mebibytes(poolBytes)} cannot hold one sequence of ${contextTokens} tokens: ` +
        `${mebibytes(neededBytes)} are needed${confinedAdvice(request)} (give the pool more memory or lower the context).`,
      { param: "pool_bytes" },
    );
  }
  const openSlotCount = openSlots(runningMax);
  const sealedBytes = poolBytes - openSlotCount * unit.openSlotBytes;
  const spareSummaryBytes = contextBlocks * unit.summarySlotBytes;
  const logicalBlockCount = Math.floor((sealedBytes - spareSummaryBytes) / (layerBlockBytes + unit.summarySlotBytes));
  const summarySlotCount = logicalBlockCount + contextBlocks;
  return {
    blockCount: logicalBlockCount * config.layerCount,
    openSlotCount,
    summarySlotCount,
    runningMax,
    tokenCapacity: logicalBlockCount * BLOCK_TOKENS,
    bytes:
      logicalBlockCount * layerBlockBytes +
      summarySlotCount * unit.summarySlotBytes +
      openSlotCount * unit.openSlotBytes,
  };
}

/**
 * A context for a pool that nobody chose one for: the model's own where it fits, else as many whole blocks as fit into half of the pool, so
 * that other sequences have room; at least one block.
 */
export function defaultContextTokens(request: Omit<PoolRequest, "contextTokens" | "runningMax">): number {
  const { config, poolBytes } = request;
  const needed = (contextTokens: number) => smallestPoolBytes({ ...request, contextTokens });
  if (needed(config.contextTokensMax) <= poolBytes) return config.contextTokensMax;
  const blockBytes = needed(BLOCK_TOKENS) - needed(0);
  const blocks = Math.floor((poolBytes / 2 - needed(0)) / blockBytes);
  return Math.min(config.contextTokensMax, Math.max(1, blocks) * BLOCK_TOKENS);
}

/** Bytes of the smallest pool that does for one sequence of `contextTokens` whose blocks are in host memory. */
export function smallestConfinedPoolBytes(request: Omit<PoolRequest, "poolBytes" | "runningMax">): number {
  const unit = poolUnitBytes(request.config, request.encoding, request.summaryKinds);
  return leastConfinedBytes(request) + openSlotsOf(1, request.rowsMax) * unit.openSlotBytes;
}

/** Bytes of the smallest pool that holds one sequence of `contextTokens`, all of it resident. */
export function smallestPoolBytes(request: Omit<PoolRequest, "poolBytes" | "runningMax">): number {
  const unit = poolUnitBytes(request.config, request.encoding, request.summaryKinds);
  return contextBytes(request) + openSlotsOf(1, request.rowsMax) * unit.openSlotBytes;
}

function contextBytes({
  config,
  encoding,
  summaryKinds,
  contextTokens,
}: Omit<PoolRequest, "poolBytes" | "runningMax">) {
  const unit = poolUnitBytes(config, encoding, summaryKinds);
  const blocks = Math.ceil(contextTokens / BLOCK_TOKENS);
  return blocks * (config.layerCount * unit.blockBytes + 2 * unit.summarySlotBytes);
}

/** Summaries of a whole context; of its blocks a layer, and one more in all layers, which a step seals. */
function leastConfinedBytes({
  config,
  encoding,
  summaryKinds,
  contextTokens,
}: Omit<PoolRequest, "poolBytes" | "runningMax">): number {
  const unit = poolUnitBytes(config, encoding, summaryKinds);
  const contextBlocks = Math.ceil(contextTokens / BLOCK_TOKENS);
  const logicalBlocks = Math.ceil(contextBlocks / config.layerCount) + 1;
  return (
    logicalBlocks * (config.layerCount * unit.blockBytes + unit.summarySlotBytes) +
    contextBlocks * unit.summarySlotBytes
  );
}

/** Infinite without host memory for all that such a sequence may compute. */
function confinedBytes(request: PoolRequest): number {
  return (request.hostBytes ?? 0) < hostBytesOf(request) ? Number.POSITIVE_INFINITY : leastConfinedBytes(request);
}

/** K and V of a whole context. */
function hostBytesOf({ config, encoding, summaryKinds, contextTokens }: PoolRequest): number {
  const { blockBytes } = poolUnitBytes(config, encoding, summaryKinds);
  return Math.ceil(contextTokens / BLOCK_TOKENS) * config.layerCount * blockBytes;
}

function confinedAdvice(request: PoolRequest): string {
  if (request.hostBytes === undefined) return "";
  const host = mebibytes(hostBytesOf(request));
  return `, or ${mebibytes(smallestConfinedPoolBytes(request))} and ${host} of host memory`;
}

function openSlotsOf(runningMax: number, rowsMax: number = LIMITS.stepRowsMax): number {
  return Math.ceil(rowsMax / BLOCK_TOKENS) + 2 * runningMax;
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
