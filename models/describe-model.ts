/** What a model is and what it costs, for people and for `quire inspect`. Arithmetic over its configuration. */
import { BLOCK_TOKENS, type KvEncoding, type MatrixEncoding, type SummaryKind } from "../kernels/contract.ts";
import { LIMITS } from "../protocol/limits.ts";
import type { ModelConfig } from "./contract.ts";
import { activationBytes, poolUnitBytes, smallestPoolBytes, weightBytes } from "./plan-memory.ts";

/** How the model would run. */
export interface DescribeOptions {
  config: ModelConfig;
  weights: MatrixEncoding;
  kv: KvEncoding;
  summaryKinds: readonly SummaryKind[];
  /** Memory sizes to fit contexts into. */
  memoryBytes: readonly number[];
}

/** Sizes in bytes; the pool is that of one sequence, all of it resident, the rest of the engine's process not counted. */
export interface ModelCosts {
  weightBytes: number;
  /** Buffers of a step of the most rows, RoPE tables included. */
  activationBytes: number;
  /** K and V of one token once its block is sealed, all layers. */
  kvTokenBytes: number;
  /** K and V of one token in an open block (f32), all layers. */
  kvOpenTokenBytes: number;
  /** Page summaries of one token, all layers and kinds, wherever its pages are. */
  summaryTokenBytes: number;
  /** What the device keeps beside them for scoring by blocks. */
  centreTokenBytes: number;
  /** Weights, activations and pool at some contexts, the longest last. */
  contexts: { contextTokens: number; poolBytes: number; totalBytes: number }[];
  /** The longest context in each memory size; 0 where not even one block fits. */
  fits: { memoryBytes: number; contextTokensMax: number }[];
}

/** Contexts worth a row, as far as the model reaches. */
const CONTEXTS = [4096, 16_384, 32_768, 65_536, 131_072];

/** Works out every size. */
export function modelCosts(options: DescribeOptions): ModelCosts {
  const { config, weights, kv: encoding, summaryKinds, memoryBytes } = options;
  const unit = poolUnitBytes(config, encoding, summaryKinds);
  const weightsBytes = weightBytes(config, weights);
  const stepBytes = activationBytes(config, LIMITS.stepRowsMax, LIMITS.engineRunningMax);
  const poolBytes = (contextTokens: number) => smallestPoolBytes({ config, encoding, summaryKinds, contextTokens });
  const totalBytes = (contextTokens: number) => weightsBytes + stepBytes + poolBytes(contextTokens);
  const longest = config.contextTokensMax;
  const contexts = [...CONTEXTS.filter((contextTokens) => contextTokens < longest), longest];
  const blockBytes = poolBytes(2 * BLOCK_TOKENS) - poolBytes(BLOCK_TOKENS);
  const longestIn = (bytes: number) => {
    const blocks = Math.floor((bytes - totalBytes(0)) / blockBytes);
    return Math.max(0, Math.min(longest, blocks * BLOCK_TOKENS));
  };
  return {
    weightBytes: weightsBytes,
    activationBytes: stepBytes,
    kvTokenBytes: (config.layerCount * unit.blockBytes) / BLOCK_TOKENS,
    kvOpenTokenBytes: unit.openSlotBytes / BLOCK_TOKENS,
    summaryTokenBytes: (unit.summarySlotBytes - unit.centreBytes) / BLOCK_TOKENS,
    centreTokenBytes: unit.centreBytes / BLOCK_TOKENS,
    contexts: contexts.map((contextTokens) => ({
      contextTokens,
      poolBytes: poolBytes(contextTokens),
      totalBytes: totalBytes(contextTokens),
    })),
    fits: memoryBytes.map((bytes) => ({ memoryBytes: bytes, contextTokensMax: longestIn(bytes) })),
  };
}

/** What distinguishes a family from plain Llama, in words. */
export function architectureNotes(config: ModelConfig): string[] {
  const { headCount, kvHeadCount, ropeScaling: rope } = config;
  const attention =
    headCount === kvHeadCount
      ? "multi-head attention"
      : `grouped-query attention, ${headCount / kvHeadCount} query heads per KV head`;
  return [
    attention,
    ...(config.qkvBias ? ["biases of Q, K and V"] : []),
    ...(config.qkNorm ? ["norms of each head of Q and K"] : []),
    `RoPE theta ${config.ropeTheta}`,
    ...(rope === undefined ? [] : [`RoPE scaling ${rope.type}${"factor" in rope ? ` by ${rope.factor}` : ""}`]),
    config.tiedEmbeddings ? "tied embeddings" : "an output head of its own",
  ];
}
