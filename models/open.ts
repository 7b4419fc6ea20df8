import type { Device, KvPoolSpec, MatrixEncoding } from "../kernels/contract.ts";
import { LIMITS } from "../protocol/limits.ts";
import type { ModelConfig, ModelRunner } from "./contract.ts";
import { LlamaRunner } from "./llama.ts";
import { type LoadedWeights, type LoadProgress, loadLlamaWeights } from "./llama-weights.ts";
import { type ModelFiles, openModelFiles } from "./model-files.ts";
import type { Observe } from "./observer.ts";
import { parameterCount } from "./plan-memory.ts";
import type { TensorSource } from "./tensor-source.ts";
import { openWeightCache, weightCacheKey, writeWeightCache } from "./weight-cache.ts";

/** How a model is to run, whatever it was read from. */
export interface RunnerOptions {
  device: Device;
  /** Weight matrices; embeddings and output head too, but for int4 (see `tableEncoding`). Norms and biases are always f32. */
  encoding: MatrixEncoding;
  /** The pool's shape; layers, heads and head width come from the model. Counts: see `planPool`. */
  kv: Pick<KvPoolSpec, "encoding" | "rounding" | "summaryKinds" | "blockCount" | "openSlotCount" | "summarySlotCount">;
  /** Largest total row count of one step. */
  rowsMax: number;
  /** Most sequences that sample in one step (default: the most that may decode together). */
  sampledMax?: number;
  /** Called for every piece of the weights; see {@link LoadProgress}. */
  onProgress?: (progress: LoadProgress) => void;
  /** For tests and tools; see {@link Observe}. */
  observe?: Observe;
}

/** Smaller models load in a moment, and a cache beside each would only be in the way. */
const CACHE_PARAMETERS_MIN = 64_000_000;

/** How {@link openModel} treats the cache of packed weights beside the model. */
export interface CacheOptions {
  /** `auto` (default): for int8 and int4 weights of models with 64 million parameters or more. */
  weightCache?: "auto" | "always" | "never";
}

/**
 * Opens a model on a device and allocates its pool. `folder`: a HF folder (`config.json`, `generation_config.json`, `model.safetensors` or
 * shards with their index) or a GGUF file, see model-files.ts. Packed weights are kept in a file beside it and taken from there the next
 * time, see weight-cache.ts; that they cannot be written is no error.
 * @throws {QuireError} `invalid_request`, one line, when it does not hold a model that the forward pass supports.
 */
export async function openModel(options: RunnerOptions & CacheOptions & { folder: string }): Promise<ModelRunner> {
  const files = await openModelFiles(options.folder);
  const { config, source } = files;
  try {
    if (!isCached(options, config)) return await openRunner({ ...options, config, source });
    return await openCached(options, files);
  } finally {
    await source.close();
  }
}

function isCached({ weightCache = "auto", encoding }: RunnerOptions & CacheOptions, config: ModelConfig): boolean {
  if (weightCache !== "auto") return weightCache === "always";
  return (encoding === "int8" || encoding === "int4") && parameterCount(config) >= CACHE_PARAMETERS_MIN;
}

async function openCached(options: RunnerOptions, files: ModelFiles): Promise<ModelRunner> {
  const { device, encoding } = options;
  const { config, source, weightFiles, cachePrefix } = files;
  const { packingId } = device;
  // Not by packing: a newer version takes the place of what an older one left.
  const path = `${cachePrefix}.${encoding}.${device.kind}.bin`;
  const key = weightCacheKey({ files: weightFiles, config, encoding, packingId });
  const cache = await openWeightCache(path, key);
  try {
    const loaded = await loadLlamaWeights({ ...options, config, source, ...(cache === undefined ? {} : { cache }) });
    if (cache === undefined || cache.isBroken) {
      const { fingerprint, matrices } = loaded;
      await writeWeightCache(path, { key, fingerprint, device, matrices });
    }
    return runnerOf({ ...options, config }, loaded);
  } finally {
    await cache?.close();
  }
}

/** As {@link openModel}, from a configuration and tensors that need not be files, without a cache. Does not close `source`. */
export async function openRunner(
  options: RunnerOptions & { config: ModelConfig; source: TensorSource },
): Promise<ModelRunner> {
  return runnerOf(options, await loadLlamaWeights(options));
}

function runnerOf(options: RunnerOptions & { config: ModelConfig }, loaded: LoadedWeights): ModelRunner {
  const { device, config, kv, rowsMax, observe } = options;
  const { weights, fingerprint } = loaded;
  const { layerCount, kvHeadCount, headDim } = config;
  return new LlamaRunner({
    device,
    config,
    weights,
    fingerprint,
    pool: device.kvPool({ layerCount, kvHeadCount, headDim, ...kv }),
    rowsMax,
    sampledMax: options.sampledMax ?? Math.min(rowsMax, LIMITS.engineRunningMax),
    ...(observe === undefined ? {} : { observe }),
  });
}
