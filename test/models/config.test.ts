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
    ["rope_scaling", { rope_scaling: { rope_type: "llama3", factor: 8 } }],
    ["rope_parameters", { rope_parameters: { rope_type: "yarn" } }],
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
