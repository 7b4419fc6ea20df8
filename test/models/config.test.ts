import { readFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { parseConfig, readConfig } from "../../models/config.ts";
import { QuireError } from "../../protocol/errors.ts";

const HOUSE = "weights/house-0";

async function houseJson(): Promise<Record<string, unknown>> {
  return JSON.parse(await readFile(`${HOUSE}/config.json`, "utf8"));
}

function refusal(config: unknown, generation?: unknown): QuireError {
  try {
    parseConfig(config, generation);
  } catch (thrown) {
    if (thrown instanceof QuireError) return thrown;
    throw thrown;
  }
  throw new Error("was accepted");
}

describe("model configuration", () => {
  it("reads house-0", async () => {
    expect(await readConfig(HOUSE)).toEqual({
      modelType: "llama",
      vocabularySize: 260,
      width: 128,
      ffnWidth: 352,
      layerCount: 4,
      headCount: 4,
      kvHeadCount: 2,
      headDim: 32,
      contextTokensMax: 32768,
      normEps: 1e-5,
      ropeTheta: 500000,
      tiedEmbeddings: true,
      bosTokenId: 256,
      eosTokenIds: [259],
    });
  });

  it("takes HF's defaults for what is absent", () => {
    const config = parseConfig({
      model_type: "llama",
      vocab_size: 100,
      hidden_size: 64,
      intermediate_size: 128,
      num_hidden_layers: 1,
      num_attention_heads: 4,
    });
    expect(config).toEqual({
      modelType: "llama",
      vocabularySize: 100,
      width: 64,
      ffnWidth: 128,
      layerCount: 1,
      headCount: 4,
      kvHeadCount: 4,
      headDim: 16,
      contextTokensMax: 2048,
      normEps: 1e-6,
      ropeTheta: 10000,
      tiedEmbeddings: false,
      eosTokenIds: [],
    });
  });

  it("reads theta where transformers 5 writes it", async () => {
    const { rope_theta: _, ...rest } = await houseJson();
    const config = parseConfig({ ...rest, rope_parameters: { rope_type: "default", rope_theta: 1234 } });
    expect(config.ropeTheta).toBe(1234);
  });

  it("reads theta and scaling as older files write them", async () => {
    const json = await houseJson();
    const scaling = { type: "yarn", factor: 4, original_max_position_embeddings: 16384 };
    const config = parseConfig({ ...json, rope_theta: 1234, rope_scaling: scaling });
    expect(config.ropeTheta).toBe(1234);
    expect(config.ropeScaling).toEqual({
      type: "yarn",
      factor: 4,
      originalContextTokens: 16384,
      betaFast: 32,
      betaSlow: 1,
      attentionFactor: 0.1 * Math.log(4) + 1,
      truncate: true,
    });
    expect(config.contextTokensMax).toBe(65536);
  });

  it("reads scaling that stands in both places, as long as they agree", async () => {
    const rope_parameters = { rope_type: "linear", factor: 4, rope_theta: 50_000 };
    const both = { ...(await houseJson()), rope_parameters, rope_scaling: { type: "linear", factor: 4 } };
    expect(parseConfig(both)).toMatchObject({ ropeTheta: 50_000, ropeScaling: { type: "linear", factor: 4 } });
  });

  it("takes a window that no context outgrows, or that is switched off, for none", async () => {
    const json = await houseJson();
    for (const change of [
      { model_type: "mistral", sliding_window: null },
      { model_type: "mistral", sliding_window: 32768 },
      { model_type: "qwen2", sliding_window: 4096 },
      { model_type: "qwen3", sliding_window: 4096, use_sliding_window: false },
      { model_type: "qwen2", sliding_window: 4096, use_sliding_window: true, max_window_layers: 4 },
      {
        ...{ model_type: "qwen3", sliding_window: 4096, use_sliding_window: true, max_window_layers: 0 },
        layer_types: ["full_attention", "full_attention", "full_attention", "full_attention"],
      },
    ]) {
      expect(parseConfig({ ...json, ...change }).modelType).toBe(change.model_type);
    }
  });

  it("knows what the families add", async () => {
    const json = await houseJson();
    expect(parseConfig({ ...json, model_type: "qwen2" })).toMatchObject({ qkvBias: true });
    const { head_dim: _, ...rest } = json;
    expect(parseConfig({ ...rest, model_type: "qwen3" })).toMatchObject({ qkNorm: true, headDim: 128 });
  });

  it("takes end tokens from the generation config, one or several", async () => {
    const json = await houseJson();
    expect(parseConfig(json, { eos_token_id: [259, 258] }).eosTokenIds).toEqual([259, 258]);
    expect(parseConfig(json, { eos_token_id: 12 }).eosTokenIds).toEqual([12]);
    expect(parseConfig(json, {}).eosTokenIds).toEqual([259]);
  });

  /** What these files say of the forward pass; the rest of each is of no concern here. */
  const hub: [name: string, json: Record<string, unknown>, expected: object][] = [
    [
      "Llama-3.2-1B-Instruct",
      {
        ...{ architectures: ["LlamaForCausalLM"], attention_bias: false, attention_dropout: 0.0, bos_token_id: 128000 },
        ...{ eos_token_id: [128001, 128008, 128009], head_dim: 64, hidden_act: "silu", hidden_size: 2048 },
        ...{ initializer_range: 0.02, intermediate_size: 8192, max_position_embeddings: 131072, mlp_bias: false },
        ...{ model_type: "llama", num_attention_heads: 32, num_hidden_layers: 16, num_key_value_heads: 8 },
        ...{
          pretraining_tp: 1,
          rms_norm_eps: 1e-5,
          rope_theta: 500000.0,
          tie_word_embeddings: true,
          vocab_size: 128256,
        },
        rope_scaling: {
          factor: 32.0,
          high_freq_factor: 4.0,
          low_freq_factor: 1.0,
          original_max_position_embeddings: 8192,
          rope_type: "llama3",
        },
        ...{ torch_dtype: "bfloat16", use_cache: true },
      },
      { contextTokensMax: 131072, eosTokenIds: [128001, 128008, 128009], ropeScaling: { type: "llama3", factor: 32 } },
    ],
    [
      "Qwen2.5-0.5B-Instruct",
      {
        ...{ attention_dropout: 0.0, bos_token_id: 151643, eos_token_id: 151645, hidden_act: "silu", hidden_size: 896 },
        ...{ intermediate_size: 4864, max_position_embeddings: 32768, max_window_layers: 21, model_type: "qwen2" },
        ...{ num_attention_heads: 14, num_hidden_layers: 24, num_key_value_heads: 2, rms_norm_eps: 1e-6 },
        ...{ rope_theta: 1000000.0, sliding_window: 32768, tie_word_embeddings: true, torch_dtype: "bfloat16" },
        ...{ use_cache: true, use_sliding_window: false, vocab_size: 151936 },
      },
      { headDim: 64, qkvBias: true, ropeTheta: 1e6 },
    ],
    [
      "Qwen3-0.6B",
      {
        ...{ attention_bias: false, bos_token_id: 151643, eos_token_id: 151645, head_dim: 128, hidden_act: "silu" },
        ...{ hidden_size: 1024, intermediate_size: 3072, max_position_embeddings: 40960, max_window_layers: 28 },
        ...{ model_type: "qwen3", num_attention_heads: 16, num_hidden_layers: 28, num_key_value_heads: 8 },
        ...{ rms_norm_eps: 1e-6, rope_scaling: null, rope_theta: 1000000, sliding_window: null, vocab_size: 151936 },
        ...{ tie_word_embeddings: true, torch_dtype: "bfloat16", use_sliding_window: false },
      },
      { headDim: 128, qkNorm: true, contextTokensMax: 40960 },
    ],
    [
      "SmolLM2-135M-Instruct",
      {
        ...{ attention_bias: false, bos_token_id: 1, eos_token_id: 2, hidden_act: "silu", hidden_size: 576 },
        ...{ intermediate_size: 1536, is_llama_config: true, max_position_embeddings: 8192, mlp_bias: false },
        ...{ model_type: "llama", num_attention_heads: 9, num_hidden_layers: 30, num_key_value_heads: 3 },
        ...{ rms_norm_eps: 1e-5, rope_interleaved: false, rope_scaling: null, rope_theta: 100000 },
        ...{ tie_word_embeddings: true, torch_dtype: "bfloat16", vocab_size: 49152 },
      },
      { headDim: 64, tiedEmbeddings: true },
    ],
    [
      "Mistral-7B-Instruct-v0.3",
      {
        ...{ bos_token_id: 1, eos_token_id: 2, hidden_act: "silu", hidden_size: 4096, intermediate_size: 14336 },
        ...{ max_position_embeddings: 32768, model_type: "mistral", num_attention_heads: 32, num_hidden_layers: 32 },
        ...{ num_key_value_heads: 8, rms_norm_eps: 1e-5, rope_theta: 1000000.0, sliding_window: null },
        ...{ tie_word_embeddings: false, torch_dtype: "bfloat16", vocab_size: 32768 },
      },
      { headDim: 128, contextTokensMax: 32768 },
    ],
  ];
  it.each(hub)("reads %s", (_, json, expected) => {
    expect(parseConfig(json)).toMatchObject(expected);
  });

  const refused: [field: string, change: Record<string, unknown>][] = [
    ["model_type", { model_type: "mamba" }],
    ["hidden_act", { hidden_act: "gelu" }],
    ["attention_bias", { attention_bias: true }],
    ["mlp_bias", { mlp_bias: true }],
    ["rope_scaling", { rope_scaling: { rope_type: "dynamic", factor: 8 } }],
    ["rope_scaling", { rope_scaling: { type: "longrope", factor: 8 } }],
    ["rope_parameters", { rope_parameters: { full_attention: { rope_type: "default" } } }],
    ["rope_parameters", { rope_parameters: { rope_type: "default", partial_rotary_factor: 0.5 } }],
    ["low_freq_factor", { rope_scaling: { rope_type: "llama3", factor: 8 } }],
    ["high_freq_factor", { rope_scaling: { rope_type: "llama3", factor: 8, low_freq_factor: 4, high_freq_factor: 4 } }],
    ["original_max_position_embeddings", { rope_parameters: { rope_type: "yarn" } }],
    ["factor", { rope_scaling: { type: "linear", factor: 0 } }],
    ["truncate", { rope_scaling: { type: "yarn", factor: 2, truncate: "no" } }],
    ["sliding_window", { model_type: "mistral" }],
    ["sliding_window", { model_type: "mistral", sliding_window: 4096 }],
    ["sliding_window", { model_type: "qwen2", use_sliding_window: true, sliding_window: 4096, max_window_layers: 3 }],
    [
      "sliding_window",
      {
        ...{ model_type: "qwen2", use_sliding_window: true, sliding_window: 4096, max_window_layers: 4 },
        layer_types: ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
      },
    ],
    ["sliding_window", { model_type: "qwen3", use_sliding_window: true, sliding_window: 4096, layer_types: "all" }],
    [
      "rope_scaling",
      {
        rope_parameters: { rope_type: "default", rope_theta: 1_000_000 },
        rope_scaling: { type: "yarn", factor: 4, original_max_position_embeddings: 32_768 },
      },
    ],
    ["num_key_value_heads", { model_type: "qwen3", num_key_value_heads: undefined }],
    ["partial_rotary_factor", { partial_rotary_factor: 0.5 }],
    ["quantization_config", { quantization_config: { quant_method: "awq" } }],
    ["torch_dtype", { torch_dtype: "float8_e4m3fn" }],
    ["dtype", { dtype: "int8" }],
    ["num_key_value_heads", { num_key_value_heads: 3 }],
    ["hidden_size", { hidden_size: 130, head_dim: null }],
    ["head_dim", { head_dim: 30 }],
    ["num_hidden_layers", { num_hidden_layers: "4" }],
    ["vocab_size", { vocab_size: undefined }],
    ["intermediate_size", { intermediate_size: 1e12 }],
    ["rms_norm_eps", { rms_norm_eps: 0 }],
    ["rope_theta", { rope_theta: "500000" }],
    ["eos_token_id", { eos_token_id: [260] }],
    ["tie_word_embeddings", { tie_word_embeddings: 1 }],
  ];
  it.each(refused)("refuses an unsupported %s in one line that names it", async (field, change) => {
    const error = refusal({ ...(await houseJson()), ...change });
    expect(error.code).toBe("invalid_request");
    expect(error.param).toBe(field);
    expect(error.message).toContain(field);
    expect(error.message).not.toContain("\n");
  });

  it("refuses what is no object, and a folder without a config", async () => {
    expect(refusal([]).message).toContain("config.json");
    expect(refusal(await houseJson(), "x").message).toContain("generation_config.json");
    await expect(readConfig("test/models")).rejects.toMatchObject({ code: "invalid_request" });
  });
});
