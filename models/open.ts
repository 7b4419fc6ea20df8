import type { Device, KvPoolSpec, MatrixEncoding } from "../kernels/contract.ts";
import { LIMITS } from "../protocol/limits.ts";
import type { ModelConfig, ModelRunner } from "./contract.ts";
import { LlamaRunner } from "./llama.ts";
import { type LoadProgress, loadLlamaWeights } from "./llama-weights.ts";
import { openModelFiles } from "./model-files.ts";
import type { Observe } from "./observer.ts";
import type { TensorSource } from "./tensor-source.ts";

/** How a model is to run, whatever it was read from. */
export interface RunnerOptions {
  device: Device;
  /** Weight matrices; embeddings and output head too, but for int4 (see `tableEncoding`). Norms and biases are always f32. */
  encoding: MatrixEncoding;
  /** The pool's shape; layers, heads and head width come from the model. Counts: see `planPool`. */
  kv: Pick<KvPoolSpec, "encoding" | "summaryKinds" | "blockCount" | "openSlotCount" | "summarySlotCount">;
  /** Largest total row count of one step. */
  rowsMax: number;
  /** Most sequences that sample in one step (default: the most that may decode together). */
  sampledMax?: number;
  /** Called for every piece of the weights; see {@link LoadProgress}. */
  onProgress?: (progress: LoadProgress) => void;
  /** For tests and tools; see {@link Observe}. */
  observe?: Observe;
}

/**
 * Opens a model on a device and allocates its pool. `folder`: a HF folder (`config.json`, `generation_config.json`, `model.safetensors` or
 * shards with their index) or a GGUF file, see model-files.ts.
 * @throws {QuireError} `invalid_request`, one line, when it does not hold a model that the forward pass supports.
 */
export async function openModel(options: RunnerOptions & { folder: string }): Promise<ModelRunner> {
  const { config, source } = await openModelFiles(options.folder);
  try {
    return await openRunner({ ...options, config, source });
  } finally {
    await source.close();
  }
}

/** As {@link openModel}, from a configuration and tensors that need not be files. Does not close `source`. */
export async function openRunner(
  options: RunnerOptions & { config: ModelConfig; source: TensorSource },
): Promise<ModelRunner> {
  const { device, config, kv, rowsMax, observe } = options;
  const { weights, fingerprint } = await loadLlamaWeights(options);
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
