/** HF `config.json` and `generation_config.json` -> {@link ModelConfig}. What the forward pass does not do is refused here. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { QuireError } from "../protocol/errors.ts";
import type { ModelConfig } from "./contract.ts";

type Json = Readonly<Record<string, unknown>>;

/** Largest count accepted for any dimension: well above real models, well below what overflows arithmetic on sizes. */
const DIMENSION_MAX = 2 ** 24;
const DTYPES = ["float32", "float16", "bfloat16"];

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
 * Checks the parsed files. Defaults are those of HF's `LlamaConfig`; end tokens come from the generation config where it names them.
 * @throws {QuireError} `invalid_request`, one line that names the field (also in `param`) and what is unsupported.
 */
export function parseConfig(config: unknown, generation?: unknown): ModelConfig {
  const json = object(config, "config.json");
  const generationJson = generation === undefined ? {} : object(generation, "generation_config.json");
  refuseUnsupported(json);
  const width = dimension(json, "hidden_size");
  const headCount = dimension(json, "num_attention_heads");
  const kvHeadCount = dimension(json, "num_key_value_heads", headCount);
  if (headCount % kvHeadCount !== 0) fail("num_key_value_heads", `${kvHeadCount} does not divide ${headCount} heads`);
  if (json.head_dim == null && width % headCount !== 0) {
    fail("hidden_size", `${width} is not a multiple of ${headCount} heads, and head_dim is absent`);
  }
  const headDim = dimension(json, "head_dim", width / headCount);
  if (headDim % 4 !== 0) fail("head_dim", `${headDim} is not a multiple of 4`);
  const vocabularySize = dimension(json, "vocab_size");
  const bosTokenId =
    tokenIds(generationJson, "bos_token_id", vocabularySize) ?? tokenIds(json, "bos_token_id", vocabularySize);
  return {
    modelType: "llama",
    vocabularySize,
    width,
    ffnWidth: dimension(json, "intermediate_size"),
    layerCount: dimension(json, "num_hidden_layers"),
    headCount,
    kvHeadCount,
    headDim,
    contextTokensMax: dimension(json, "max_position_embeddings", 2048),
    normEps: positive(json, "rms_norm_eps", 1e-6),
    ropeTheta: ropeTheta(json),
    tiedEmbeddings: flag(json, "tie_word_embeddings"),
    ...(bosTokenId?.[0] === undefined ? {} : { bosTokenId: bosTokenId[0] }),
    eosTokenIds:
      tokenIds(generationJson, "eos_token_id", vocabularySize) ?? tokenIds(json, "eos_token_id", vocabularySize) ?? [],
  };
}

function refuseUnsupported(json: Json): void {
  if (json.model_type !== "llama") fail("model_type", `${show(json.model_type)} is not supported, only "llama"`);
  const activation = json.hidden_act ?? "silu";
  if (activation !== "silu") fail("hidden_act", `${show(activation)} is not supported, only "silu"`);
  for (const field of ["attention_bias", "mlp_bias"]) {
    if (flag(json, field)) fail(field, "weights with biases are not supported");
  }
  for (const field of ["rope_scaling", "rope_parameters"]) {
    if (json[field] == null) continue;
    const rope = object(json[field], field);
    const type = rope.rope_type ?? rope.type ?? "default";
    if (type !== "default") fail(field, `rope type ${show(type)} is not supported, only "default"`);
  }
  if ((json.partial_rotary_factor ?? 1) !== 1) fail("partial_rotary_factor", "only 1 is supported");
  if (json.quantization_config != null) fail("quantization_config", "quantized checkpoints are not supported");
  for (const field of ["torch_dtype", "dtype"]) {
    const dtype = json[field];
    if (dtype != null && !(typeof dtype === "string" && DTYPES.includes(dtype))) {
      fail(field, `${show(dtype)} is not supported, only ${DTYPES.join(", ")}`);
    }
  }
}

/** Transformers 5 writes theta into `rope_parameters`, earlier ones beside it. */
function ropeTheta(json: Json): number {
  const parameters = json.rope_parameters;
  if (parameters != null && object(parameters, "rope_parameters").rope_theta != null) {
    return positive(parameters as Json, "rope_theta", 10_000);
  }
  return positive(json, "rope_theta", 10_000);
}

function dimension(json: Json, field: string, fallback?: number): number {
  const value = json[field] ?? fallback;
  if (!Number.isSafeInteger(value) || (value as number) < 1 || (value as number) > DIMENSION_MAX) {
    fail(field, value === undefined ? "is missing" : `${show(value)} is not a whole number from 1 to ${DIMENSION_MAX}`);
  }
  return value as number;
}

function positive(json: Json, field: string, fallback: number): number {
  const value = json[field] ?? fallback;
  if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) fail(field, `${show(value)} is not above 0`);
  return value;
}

function flag(json: Json, field: string): boolean {
  const value = json[field] ?? false;
  if (typeof value !== "boolean") fail(field, `${show(value)} is not true or false`);
  return value;
}

/** One id or a list of ids; undefined where absent or null. */
function tokenIds(json: Json, field: string, vocabularySize: number): number[] | undefined {
  const value = json[field];
  if (value == null) return undefined;
  const ids: unknown[] = Array.isArray(value) ? value : [value];
  for (const id of ids) {
    if (!Number.isSafeInteger(id) || (id as number) < 0 || (id as number) >= vocabularySize) {
      fail(field, `${show(id)} is not a token id below ${vocabularySize}`);
    }
  }
  return ids as number[];
}

function object(value: unknown, name: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) fail(name, "is not a JSON object");
  return value as Json;
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? "undefined";
  return text.length > 80 ? `${text.slice(0, 80)}...` : text;
}

function fail(field: string, problem: string): never {
  throw new QuireError("invalid_request", `model config: ${field}: ${problem}`, { param: field });
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
