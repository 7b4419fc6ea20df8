/** A GGUF file as a model: its metadata as {@link ModelConfig}, its tensors by their HF names, in HF's order of rows. */
import { QuireError } from "../protocol/errors.ts";
import type { ModelConfig, RopeScaling } from "./contract.ts";
import type { GgufFile, GgufTensor } from "./gguf.ts";
import { GgufFields } from "./gguf-fields.ts";
import { type RowRange, type TensorSource, tensorSizes } from "./tensor-source.ts";
import { failFile } from "./weights-file.ts";

/** What llama.cpp calls the families that it computes as Llama does. */
const ARCHITECTURES: Readonly<Record<string, { qkvBias?: boolean; qkNorm?: boolean; permuted?: boolean }>> = {
  llama: { permuted: true },
  qwen2: { qkvBias: true },
  qwen3: { qkNorm: true },
};

const TOP_NAMES: Readonly<Record<string, string>> = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
};
const LAYER_NAMES: Readonly<Record<string, string>> = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_q_norm: "self_attn.q_norm",
  attn_k_norm: "self_attn.k_norm",
  attn_output: "self_attn.o_proj",
  ffn_norm: "post_attention_layernorm",
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
};
/** Divisors of the RoPE frequencies (Llama 3): part of the configuration here. */
const ROPE_FACTORS = "rope_freqs.weight";

/**
 * Reads the configuration; of the tensors only the RoPE factors are read.
 * @throws {QuireError} `invalid_request`, one line with the file's name and what is missing or unsupported.
 */
export async function readGgufConfig(file: GgufFile): Promise<ModelConfig> {
  const fields = new GgufFields(file);
  const modelType = fields.text("general.architecture");
  const family = ARCHITECTURES[modelType];
  if (family === undefined || !Object.hasOwn(ARCHITECTURES, modelType)) {
    const known = Object.keys(ARCHITECTURES).join(", ");
    return failFile(
      file.name,
      `architecture ${JSON.stringify(modelType.slice(0, 80))} is not supported, only ${known}`,
    );
  }
  const key = (name: string) => `${modelType}.${name}`;
  const embeddings = file.tensors.get("token_embd.weight") ?? failFile(file.name, "has no token_embd.weight");
  const width = fields.count(key("embedding_length"));
  const headCount = fields.count(key("attention.head_count"));
  const kvHeadCount = fields.count(key("attention.head_count_kv"), headCount);
  const headDim = fields.count(key("attention.key_length"), width / headCount);
  if (headCount % kvHeadCount !== 0 || headDim % 4 !== 0) {
    failFile(file.name, `${headCount} heads of ${headDim}, ${kvHeadCount} of them for keys, are not supported`);
  }
  refuseUnsupported(fields, key, headDim);
  const contextTokensMax = fields.count(key("context_length"));
  const { scaling, positions } = await ropeScaling(file, fields, { key, headDim, contextTokensMax });
  refuseWindow(fields, key, contextTokensMax);
  const vocabularySize = embeddings.shape[0]!;
  return {
    modelType,
    vocabularySize,
    width,
    ffnWidth: fields.count(key("feed_forward_length")),
    layerCount: fields.count(key("block_count")),
    headCount,
    kvHeadCount,
    headDim,
    contextTokensMax: Math.max(contextTokensMax, positions),
    normEps: fields.positive(key("attention.layer_norm_rms_epsilon")),
    ropeTheta: fields.positive(key("rope.freq_base"), 10_000),
    ...(scaling === undefined ? {} : { ropeScaling: scaling }),
    ...(family.qkvBias ? { qkvBias: true } : {}),
    ...(family.qkNorm ? { qkNorm: true } : {}),
    tiedEmbeddings: !file.tensors.has("output.weight"),
    ...specialIds(fields, vocabularySize),
  };
}

function refuseUnsupported(fields: GgufFields, key: (name: string) => string, headDim: number): void {
  if (fields.optionalCount(key("expert_count"))) fields.fail(key("expert_count"), "experts are not supported");
  for (const name of ["rope.dimension_count", "attention.value_length"]) {
    const value = fields.optionalCount(key(name));
    if (value !== undefined && value !== headDim) fields.fail(key(name), `${value} is not supported, only ${headDim}`);
  }
}

function refuseWindow(fields: GgufFields, key: (name: string) => string, contextTokensMax: number): void {
  const name = key("attention.sliding_window");
  const windowTokens = fields.optionalCount(name);
  if (windowTokens !== undefined && windowTokens < contextTokensMax) {
    fields.fail(name, `attention within a window of ${windowTokens} tokens is not supported`);
  }
}

/** llama.cpp stores its frequency scale under these names; its ramp and magnitude for YaRN equal HF's with their defaults. */
async function ropeScaling(
  file: GgufFile,
  fields: GgufFields,
  { key, headDim, contextTokensMax }: { key: (name: string) => string; headDim: number; contextTokensMax: number },
): Promise<{ scaling: RopeScaling | undefined; positions: number }> {
  const factorTensor = file.tensors.get(ROPE_FACTORS);
  if (factorTensor !== undefined) {
    const { shape } = factorTensor;
    if (shape.length !== 1 || shape[0] !== headDim / 2) {
      failFile(file.name, `${ROPE_FACTORS} has shape [${shape}], heads of ${headDim} need [${headDim / 2}]`);
    }
    const factors = [...(await file.readRows(factorTensor, { first: 0, count: 1 }))];
    if (!factors.every((factor) => factor > 0 && Number.isFinite(factor)))
      failFile(file.name, `${ROPE_FACTORS} holds what is no factor`);
    return { scaling: { type: "factors", factors }, positions: 0 };
  }
  const type = fields.optionalText(key("rope.scaling.type")) ?? "none";
  if (type === "none") return { scaling: undefined, positions: 0 };
  const factor = fields.positive(key("rope.scaling.factor"));
  if (type === "linear") return { scaling: { type, factor }, positions: 0 };
  if (type !== "yarn") fields.fail(key("rope.scaling.type"), `${JSON.stringify(type)} is not supported`);
  const originalContextTokens = fields.count(key("rope.scaling.original_context_length"), contextTokensMax);
  const magnitude = fields.positive(key("rope.scaling.attn_factor"), 1);
  const scaling: RopeScaling = {
    type: "yarn",
    factor,
    originalContextTokens,
    betaFast: fields.positive(key("rope.scaling.yarn_beta_fast"), 32),
    betaSlow: fields.positive(key("rope.scaling.yarn_beta_slow"), 1),
    attentionFactor: magnitude * (factor <= 1 ? 1 : 0.1 * Math.log(factor) + 1),
    truncate: true,
  };
  return { scaling, positions: Math.floor(factor * originalContextTokens) };
}

function specialIds(fields: GgufFields, vocabularySize: number): Pick<ModelConfig, "bosTokenId" | "eosTokenIds"> {
  const id = (name: string) => fields.tokenId(`tokenizer.ggml.${name}_token_id`, vocabularySize);
  const bosTokenId = id("bos");
  const ends = [id("eos"), id("eot"), id("eom")].filter((each) => each !== undefined);
  return { ...(bosTokenId === undefined ? {} : { bosTokenId }), eosTokenIds: [...new Set(ends)] };
}

interface NamedTensor {
  tensor: GgufTensor;
  /** Rows of Q and K are stored in pairs and go back to halves. */
  permuted: boolean;
}

/** Tensors of an open file by their HF names; closing it closes the file. Tensors that HF has no name for keep theirs. */
export class GgufTensors implements TensorSource {
  readonly #file: GgufFile;
  readonly #headDim: number;
  readonly #tensors: ReadonlyMap<string, NamedTensor>;

  constructor(file: GgufFile, config: ModelConfig) {
    this.#file = file;
    this.#headDim = config.headDim;
    const tensors = new Map<string, NamedTensor>();
    for (const [name, tensor] of file.tensors) {
      if (name === ROPE_FACTORS) continue;
      const isPaired = /^blk\.\d+\.attn_[qk]\.weight$/.test(name);
      const permuted = isPaired && ARCHITECTURES[config.modelType]?.permuted === true;
      if (permuted && tensor.shape[0]! % config.headDim !== 0) {
        failFile(file.name, `tensor ${name} has shape [${tensor.shape}], not a multiple of heads of ${config.headDim}`);
      }
      tensors.set(huggingFaceName(name), { tensor, permuted });
    }
    this.#tensors = tensors;
  }

  get names(): string[] {
    return [...this.#tensors.keys()];
  }

  shape(name: string): readonly number[] | undefined {
    return this.#tensors.get(name)?.tensor.shape;
  }

  async read(name: string): Promise<Float32Array> {
    return this.readRows(name, { first: 0, count: tensorSizes(this.shape(name) ?? []).rowCount });
  }

  async readRows(name: string, rows: RowRange): Promise<Float32Array> {
    const found = this.#tensors.get(name);
    if (found === undefined) throw new QuireError("invalid_request", `${this.#file.name}: tensor ${name} is missing`);
    const { tensor, permuted } = found;
    if (tensor.shape.length === 1) {
      const whole = await this.#file.readRows(tensor, { first: 0, count: 1 });
      return whole.subarray(rows.first, rows.first + rows.count);
    }
    return permuted ? this.#readHalves(tensor, rows) : this.#file.readRows(tensor, rows);
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  /** Undoes llama.cpp's pairing of neighbouring rows: row 2i + h of a head is row i + h * headDim/2 in HF's order. */
  async #readHalves(tensor: GgufTensor, { first, count }: RowRange): Promise<Float32Array> {
    const headDim = this.#headDim;
    const { rowValues } = tensorSizes(tensor.shape);
    const start = Math.floor(first / headDim) * headDim;
    const end = Math.ceil((first + count) / headDim) * headDim;
    const stored = await this.#file.readRows(tensor, { first: start, count: end - start });
    const out = new Float32Array(count * rowValues);
    for (let row = 0; row < count; row++) {
      const channel = (first + row) % headDim;
      const paired = first + row - channel + ((2 * channel) % headDim) + Math.floor((2 * channel) / headDim);
      const at = (paired - start) * rowValues;
      out.set(stored.subarray(at, at + rowValues), row * rowValues);
    }
    return out;
  }
}

function huggingFaceName(name: string): string {
  const top = TOP_NAMES[name];
  if (top !== undefined) return top;
  const match = /^blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name);
  const part = match === null ? undefined : LAYER_NAMES[match[2]!];
  return part === undefined ? name : `model.layers.${match![1]}.${part}.${match![3]}`;
}
