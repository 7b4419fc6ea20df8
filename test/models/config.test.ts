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

  it("takes a window that no context outgrows, or that is switched off, for none", async () => {
    const json = await houseJson();
    for (const change of [
      { model_type: "mistral", sliding_window: null },
      { model_type: "mistral", sliding_window: 32768 },
      { model_type: "qwen2", sliding_window: 4096 },
      { model_type: "qwen3", sliding_window: 4096, use_sliding_window: false },
      { model_type: "qwen2", sliding_window: 4096, use_sliding_window: true, max_window_layers: 4 },
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
