/** Every family and RoPE scaling against HF transformers: each layer's input, the final norm and the logits. */
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Device } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { compute, type FamilyCase, familyModel } from "./families.ts";
import { argmax, divergence, relativeError } from "./measures.ts";

const ERROR_MAX = 1e-4;
const cases: FamilyCase[] = JSON.parse(readFileSync("test/models/vectors/fixtures/families.json", "utf8")).cases;

describe.each(["reference", "wasm"] as const)("families on the %s device", (kind) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ kind });
  });
  afterAll(() => device?.close());

  it.each(cases)("$name: hidden states and logits in f32", async (family) => {
    const { hidden, logits } = await compute(device, family, familyModel(family));
    expect(logits.length).toBe(family.positions.length);
    family.positions.forEach((position, i) => {
      expect(hidden[i]!.length).toBe(family.hidden[i]!.length);
      hidden[i]!.forEach((values, layer) => {
        expect(relativeError(values, family.hidden[i]![layer]!), `layer ${layer} at ${position}`).toBeLessThan(
          ERROR_MAX,
        );
      });
      expect(relativeError(logits[i]!, family.logits[i]!), `logits at ${position}`).toBeLessThan(ERROR_MAX);
    });
  });
});

describe("the vectors", () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ kind: "wasm" });
  });
  afterAll(() => device?.close());

  it.each(cases.filter(({ config }) => config.rope_scaling != null || hasScaling(config.rope_parameters)))(
    "$name: tell a forward pass without the scaling from one with it",
    async (family) => {
      const { config, source } = familyModel(family);
      const { ropeScaling, ...plain } = config;
      expect(ropeScaling).toBeDefined();
      const { logits } = await compute(device, family, { config: plain, source });
      expect(relativeError(logits.at(-1)!, family.logits.at(-1)!)).toBeGreaterThan(100 * ERROR_MAX);
    },
  );
});

function hasScaling(rope: unknown): boolean {
  return rope != null && (rope as { rope_type: string }).rope_type !== "default";
}

describe("families with quantized weights", () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ kind: "wasm" });
  });
  afterAll(() => device?.close());

  // Random weights leave logits close together: a trained model agrees far more often (quantized.test.ts).
  it.each([
    { encoding: "bf16", agreementMin: 0.94, divergenceMax: 1e-4 },
    { encoding: "int8", agreementMin: 0.85, divergenceMax: 2e-3 },
    { encoding: "int4", agreementMin: 0.4, divergenceMax: 0.2 },
  ] as const)("$encoding stays close to HF's f32: top-1 agreement and divergence over all cases", async (limits) => {
    const { encoding, agreementMin, divergenceMax } = limits;
    let agreed = 0;
    const divergences: number[] = [];
    for (const family of cases) {
      const { logits } = await compute(device, family, { ...familyModel(family), encoding });
      logits.forEach((values, i) => {
        if (argmax(values) === argmax(family.logits[i]!)) agreed++;
        divergences.push(divergence(family.logits[i]!, values));
      });
    }
    const mean = divergences.reduce((a, b) => a + b) / divergences.length;
    console.log(`${encoding}: top-1 ${agreed}/${divergences.length}, mean KL ${mean.toExponential(2)} nats`);
    expect(agreed / divergences.length).toBeGreaterThan(agreementMin);
    expect(mean).toBeLessThan(divergenceMax);
  });
});

describe("the family cases", () => {
  it("cover what they are for", () => {
    const ratios = cases.map(({ config }) => Number(config.num_attention_heads) / Number(config.num_key_value_heads));
    expect(new Set(ratios)).toEqual(new Set([1, 2, 3, 4, 8]));
    expect(new Set(cases.map(({ config }) => config.model_type))).toEqual(
      new Set(["llama", "mistral", "qwen2", "qwen3"]),
    );
    expect(new Set(cases.map(({ config }) => config.tie_word_embeddings))).toEqual(new Set([true, false]));
    for (const { config, positions } of cases) {
      const rope = (config.rope_scaling ?? config.rope_parameters) as { original_max_position_embeddings?: number };
      const original = rope?.original_max_position_embeddings;
      if (original !== undefined) expect(positions.at(-1)).toBeGreaterThan(original);
    }
  });
});
