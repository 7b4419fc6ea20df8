/** HF `config.json` and `generation_config.json` -> {@link ModelConfig}. What the forward pass does not do is refused here. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { QuireError } from "../protocol/errors.ts";
import { dimension, fail, flag, type Json, object, positive, show, tokenIds } from "./config-fields.ts";
import type { ModelConfig } from "./contract.ts";
import { parseRope } from "./rope-config.ts";

const DTYPES = ["float32", "float16", "bfloat16"];

/** What HF's classes of a family take for granted where the configuration says nothing. */
interface Family {
  qkvBias?: boolean;
  qkNorm?: boolean;
  headDim?: number;
  contextTokensMax?: number;
  /** Every query head has a KV head of its own where the configuration does not say. */
  kvHeadsOptional?: boolean;
  /** Width of the attention window where the configuration does not say. */
  windowTokens?: number;
}

/** TinyLlama and SmolLM2 are Llama models by their `model_type`. */
const FAMILIES: Readonly<Record<string, Family>> = {
  llama: { kvHeadsOptional: true, contextTokensMax: 2048 },
  mistral: { windowTokens: 4096 },
  qwen2: { qkvBias: true },
  qwen3: { qkNorm: true, headDim: 128 },
};

/**
 * Reads both files of a model folder; `generation_config.json` may be absent.
 * @throws {QuireError} `invalid_request`, one line that names the file, the field and what is wrong with it.
 */
export async function readConfig(folder: string): Promise<ModelConfig> {
  const config = await readJson(folder, "config.json");
  if (config === undefined) throw new QuireError("invalid_request", `config.json: not found in ${folder}`);
  return parseConfig(config, await readJson(folder, "generation_config.json"));
}

/**
 * Checks the parsed files. Defaults are those of HF's configuration classes.
 * @throws {QuireError} `invalid_request`, one line that names the field (also in `param`) and what is unsupported.
 */
export function parseConfig(config: unknown, generation?: unknown): ModelConfig {
  const json = object(config, "config.json");
  const family = familyOf(json);
  refuseUnsupported(json);
  const width = dimension(json, "hidden_size");
  const headCount = dimension(json, "num_attention_heads");
  const kvHeadCount = dimension(json, "num_key_value_heads", family.kvHeadsOptional ? headCount : undefined);
  if (headCount % kvHeadCount !== 0) fail("num_key_value_heads", `${kvHeadCount} does not divide ${headCount} heads`);
  if (json.head_dim == null && family.headDim === undefined && width % headCount !== 0) {
    fail("hidden_size", `${width} is not a multiple of ${headCount} heads, and head_dim is absent`);
  }
  const headDim = dimension(json, "head_dim", family.headDim ?? width / headCount);
  if (headDim % 4 !== 0) fail("head_dim", `${headDim} is not a multiple of 4`);
  const vocabularySize = dimension(json, "vocab_size");
  const rope = parseRope(json);
  const positions = dimension(json, "max_position_embeddings", family.contextTokensMax);
  const contextTokensMax = Math.max(positions, rope.contextTokensMax ?? 0);
  refuseWindow(json, family, contextTokensMax);
  return {
    modelType: json.model_type as string,
    vocabularySize,
    width,
    ffnWidth: dimension(json, "intermediate_size"),
    layerCount: dimension(json, "num_hidden_layers"),
    headCount,
    kvHeadCount,
    headDim,
    contextTokensMax,
    normEps: positive(json, "rms_norm_eps", 1e-6),
    ropeTheta: rope.theta,
    ...(rope.scaling === undefined ? {} : { ropeScaling: rope.scaling }),
    ...(family.qkvBias ? { qkvBias: true } : {}),
    ...(family.qkNorm ? { qkNorm: true } : {}),
    tiedEmbeddings: flag(json, "tie_word_embeddings"),
    ...specialIds(json, generation === undefined ? {} : object(generation, "generation_config.json"), vocabularySize),
  };
}

/** End tokens come from the generation config where it names them. */
function specialIds(json: Json, generation: Json, size: number): Pick<ModelConfig, "bosTokenId" | "eosTokenIds"> {
  const [bosTokenId] = tokenIds(generation, "bos_token_id", size) ?? tokenIds(json, "bos_token_id", size) ?? [];
  return {
    ...(bosTokenId === undefined ? {} : { bosTokenId }),
    eosTokenIds: tokenIds(generation, "eos_token_id", size) ?? tokenIds(json, "eos_token_id", size) ?? [],
  };
}

function familyOf(json: Json): Family {
  const { model_type: type } = json;
  if (typeof type === "string" && Object.hasOwn(FAMILIES, type)) return FAMILIES[type]!;
  return fail("model_type", `${show(type)} is not supported, only ${Object.keys(FAMILIES).map(show).join(", ")}`);
}

function refuseUnsupported(json: Json): void {
  const activation = json.hidden_act ?? "silu";
  if (activation !== "silu") fail("hidden_act", `${show(activation)} is not supported, only "silu"`);
  for (const field of ["attention_bias", "mlp_bias"]) {
    if (flag(json, field)) fail(field, "biases other than Qwen2's of Q, K and V are not supported");
  }
  if (json.quantization_config != null) fail("quantization_config", "quantized checkpoints are not supported");
  for (const field of ["torch_dtype", "dtype"]) {
    const dtype = json[field];
    if (dtype != null && !(typeof dtype === "string" && DTYPES.includes(dtype))) {
      fail(field, `${show(dtype)} is not supported, only ${DTYPES.join(", ")}`);
    }
  }
}

/** A window that no context outgrows is none. */
function refuseWindow(json: Json, family: Family, contextTokensMax: number): void {
  const windowTokens = json.sliding_window === undefined ? family.windowTokens : json.sliding_window;
  if (windowTokens == null || !isWindowed(json)) return;
  if (typeof windowTokens !== "number" || !(windowTokens >= contextTokensMax)) {
    const problem = `attention within a window of ${show(windowTokens)} tokens is not supported`;
    fail("sliding_window", `${problem}, the context is ${contextTokensMax}`);
  }
}

/** Mistral's window counts always, Qwen's where it is switched on and a layer has it: by its type, or by being far enough up. */
function isWindowed(json: Json): boolean {
  if (json.model_type === "mistral") return true;
  const types = json.layer_types;
  const isFull = Array.isArray(types) && types.every((type) => type === "full_attention");
  if (types != null) return flag(json, "use_sliding_window") && !isFull;
  const firstLayer = json.max_window_layers ?? 28;
  return flag(json, "use_sliding_window") && (firstLayer as number) < (json.num_hidden_layers as number);
}

async function readJson(folder: string, name: string): Promise<unknown> {
  let text: string;
  try {
    text = await readFile(join(folder, name), "utf8");
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw new QuireError("invalid_request", `${name}: cannot be read from ${folder}`, { cause });
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new QuireError("invalid_request", `${name}: is not JSON`, { cause });
  }
}
