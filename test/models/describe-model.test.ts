/** Parameter counts as published, and memory that the planner agrees with. */
import { describe, expect, it } from "vitest";
import { parseConfig } from "../../models/config.ts";
import { modelCosts } from "../../models/describe-model.ts";
import { parameterCount, planPool } from "../../models/plan-memory.ts";
import { LIMITS } from "../../protocol/limits.ts";

function shape(modelType: string, sizes: number[], more: Record<string, unknown> = {}) {
  const [vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads] =
    sizes;
  return parseConfig({
    model_type: modelType,
    max_position_embeddings: 32768,
    sliding_window: null,
    ...{ vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads },
    ...more,
  });
}

const LLAMA_1B = shape("llama", [128256, 2048, 8192, 16, 32, 8], { tie_word_embeddings: true });

describe("what a model is", () => {
  it.each([
    ["Llama 3.2 1B", LLAMA_1B, 1_235_814_400],
    ["TinyLlama 1.1B", shape("llama", [32000, 2048, 5632, 22, 32, 4]), 1_100_048_384],
    ["SmolLM2 135M", shape("llama", [49152, 576, 1536, 30, 9, 3], { tie_word_embeddings: true }), 134_515_008],
    ["Mistral 7B", shape("mistral", [32000, 4096, 14336, 32, 32, 8]), 7_241_732_096],
    ["Qwen2.5 0.5B", shape("qwen2", [151936, 896, 4864, 24, 14, 2], { tie_word_embeddings: true }), 494_032_768],
    ["Qwen3 0.6B", shape("qwen3", [151936, 1024, 3072, 28, 16, 8], { tie_word_embeddings: true }), 596_049_920],
  ])("%s has as many parameters as its card says", (_, config, count) => {
    expect(parameterCount(config)).toBe(count);
  });

  it("costs what the layouts say: Llama 3.2 1B, by hand", () => {
    const options = { config: LLAMA_1B, weights: "int8", kv: "int8", memoryBytes: [] } as const;
    const costs = modelCosts({ ...options, summaryKinds: ["min-max"] });
    // 16 layers, 8 KV heads of 64: codes of K and V, a key scale per channel and block, a value scale per token.
    expect(costs.kvTokenBytes).toBe(16 * 8 * (64 + 64 + (64 * 4) / 64 + 4));
    expect(costs.kvOpenTokenBytes).toBe(16 * 8 * 2 * 64 * 4);
    // Centre and radius of a page of 16 tokens: codes, and a scale each.
    expect(costs.summaryTokenBytes).toBe((16 * 8 * 2 * (64 + 4)) / 16);
    // The mean of a block's centres: codes and a scale, for 64 tokens.
    expect(costs.centreTokenBytes).toBe((16 * 8 * (64 + 4)) / 64);
    // 36 bytes for 32 weights; norms in f32.
    const norms = 33 * 2048;
    expect(costs.weightBytes).toBe(((1_235_814_400 - norms) / 32) * 36 + norms * 4);
    expect(costs.contexts.map(({ contextTokens }) => contextTokens)).toEqual([4096, 16384, 32768]);
  });

  it("says the longest context that the planner accepts, and no longer one", () => {
    const memoryBytes = [1.4 * 2 ** 30, 1.6 * 2 ** 30, 1.9 * 2 ** 30].map(Math.round);
    const kinds = { encoding: "int8", summaryKinds: ["min-max", "mean-deviation"] } as const;
    const options = { config: LLAMA_1B, weights: "int8", kv: kinds.encoding, memoryBytes } as const;
    const costs = modelCosts({ ...options, summaryKinds: kinds.summaryKinds });
    expect(costs.fits[0]!.contextTokensMax).toBe(0);
    for (const { memoryBytes, contextTokensMax } of costs.fits.slice(1)) {
      const poolBytes = memoryBytes - costs.weightBytes - costs.activationBytes;
      const plan = (contextTokens: number) =>
        planPool({ config: LLAMA_1B, ...kinds, poolBytes, runningMax: LIMITS.engineRunningMax, contextTokens });
      expect(contextTokensMax).toBeGreaterThan(0);
      expect(contextTokensMax).toBeLessThan(32768);
      expect(plan(contextTokensMax).tokenCapacity).toBeGreaterThanOrEqual(contextTokensMax);
      expect(() => plan(contextTokensMax + 64)).toThrow(/cannot hold one sequence/);
    }
  });
});
