/** What a runner loads, names and refuses: on a model of two layers with seeded random weights. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Device, MatrixEncoding } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import type { ModelConfig, ModelRunner } from "../../models/contract.ts";
import { openModel, openRunner } from "../../models/open.ts";
import { AssertionError } from "../../protocol/assert.ts";
import { Conversation, poolCounts } from "./conversation.ts";
import { type MemoryTensor, MemoryTensors } from "./memory-tensors.ts";

const CONFIG: ModelConfig = {
  modelType: "llama",
  vocabularySize: 50,
  width: 24,
  ffnWidth: 40,
  layerCount: 2,
  headCount: 3,
  kvHeadCount: 1,
  headDim: 8,
  contextTokensMax: 256,
  normEps: 1e-5,
  ropeTheta: 10000,
  tiedEmbeddings: true,
  eosTokenIds: [],
};
const ROWS_MAX = 64;

let device: Device;
beforeAll(async () => {
  device = await openDevice({ kind: "reference" });
});
afterAll(() => device?.close());

function tensors(): Map<string, MemoryTensor> {
  let state = 12345;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  };
  const all = new Map<string, MemoryTensor>();
  const add = (name: string, ...shape: number[]) => {
    all.set(name, { shape, data: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, random) });
  };
  add("model.embed_tokens.weight", 50, 24);
  for (const layer of [0, 1]) {
    const prefix = `model.layers.${layer}`;
    add(`${prefix}.input_layernorm.weight`, 24);
    add(`${prefix}.self_attn.q_proj.weight`, 24, 24);
    add(`${prefix}.self_attn.k_proj.weight`, 8, 24);
    add(`${prefix}.self_attn.v_proj.weight`, 8, 24);
    add(`${prefix}.self_attn.o_proj.weight`, 24, 24);
    add(`${prefix}.post_attention_layernorm.weight`, 24);
    add(`${prefix}.mlp.gate_proj.weight`, 40, 24);
    add(`${prefix}.mlp.up_proj.weight`, 40, 24);
    add(`${prefix}.mlp.down_proj.weight`, 24, 40);
  }
  add("model.norm.weight", 24);
  return all;
}

interface OpenOptions {
  config?: Partial<ModelConfig>;
  encoding?: MatrixEncoding;
  onLogits?: (logits: Float32Array) => void;
}

function open(source: Map<string, MemoryTensor>, options: OpenOptions = {}): Promise<ModelRunner> {
  return openRunner({
    device,
    config: { ...CONFIG, ...options.config },
    source: new MemoryTensors(source),
    encoding: options.encoding ?? "f32",
    kv: {
      encoding: "f32",
      summaryKinds: [],
      ...poolCounts({ layerCount: 2, contextTokens: 256, rowsMax: ROWS_MAX, sequences: 2 }),
    },
    rowsMax: ROWS_MAX,
    sampledMax: 1,
    observe: ({ stage, values }) => {
      if (stage === "logits") options.onLogits?.(values);
    },
  });
}

describe("loading", () => {
  it("reads an untied head, and a tied one that carries a copy", async () => {
    const logitsOf = async (source: Map<string, MemoryTensor>, config: Partial<ModelConfig>) => {
      let logits = new Float32Array(0);
      const runner = await open(source, {
        config,
        onLogits: (values) => {
          logits = Float32Array.from(values);
        },
      });
      await new Conversation(runner, { contextTokens: 256 }).prefill([3, 1, 4, 1, 5]);
      return logits;
    };
    const tied = await logitsOf(tensors(), {});
    expect(tied.length).toBe(50);
    const source = tensors();
    const embeddings = source.get("model.embed_tokens.weight")!;
    const head = { shape: [50, 24], data: embeddings.data.map((value) => 2 * value) };
    source.set("lm_head.weight", head);
    expect([...(await logitsOf(source, { tiedEmbeddings: false }))]).toEqual([...tied.map((value) => 2 * value)]);
    expect([...(await logitsOf(source, { tiedEmbeddings: true }))]).toEqual([...tied]);
  });

  it("gives equal models one fingerprint and every difference another", async () => {
    const base = (await open(tensors())).fingerprint;
    expect(base).toMatch(/^[0-9a-f]{64}$/);
    expect((await open(tensors(), { config: { eosTokenIds: [7], contextTokensMax: 300 } })).fingerprint).toBe(base);
    const others = [
      (await open(tensors(), { encoding: "int8" })).fingerprint,
      (await open(tensors(), { config: { ropeTheta: 10001 } })).fingerprint,
      (await open(tensors(), { config: { normEps: 2e-5 } })).fingerprint,
    ];
    for (const name of tensors().keys()) {
      const source = tensors();
      source.get(name)!.data[5]! += 1e-3;
      others.push((await open(source)).fingerprint);
    }
    expect(new Set([base, ...others]).size).toBe(1 + 3 + 20);
  });

  it("knows house-0 in another process, as long as nobody touches weights or forward pass", async () => {
    const runner = await openModel({
      folder: "weights/house-0",
      device,
      encoding: "f32",
      kv: { encoding: "f32", summaryKinds: [], blockCount: 4, openSlotCount: 2, summarySlotCount: 1 },
      rowsMax: 16,
    });
    // Computed once by a Python script from the file.
    expect(runner.fingerprint).toBe("30eaed548c21f66acbb6b9924910d07a7956d764885c2ddf03e50203c13cc521");
  });

  const refusals: [what: string, change: (source: Map<string, MemoryTensor>) => unknown, message: RegExp][] = [
    ["a missing tensor", (source) => source.delete("model.norm.weight"), /model\.norm\.weight is missing/],
    [
      "a transposed tensor",
      (source) => source.get("model.layers.1.mlp.up_proj.weight")!.shape.reverse(),
      /up_proj\.weight has shape \[24,40\], the configuration needs \[40,24\]/,
    ],
    [
      "a matrix with what is no number",
      (source) => source.get("model.layers.1.mlp.down_proj.weight")!.data.fill(Number.NaN, 7, 8),
      /down_proj\.weight holds a value that is no finite number/,
    ],
    [
      "a norm with an infinity",
      (source) => source.get("model.norm.weight")!.data.fill(Number.NEGATIVE_INFINITY, 23),
      /model\.norm\.weight holds a value that is no finite number/,
    ],
    [
      "a bias",
      (source) => source.set("model.layers.0.self_attn.q_proj.bias", { shape: [24], data: new Float32Array(24) }),
      /q_proj\.bias is not part of such a model/,
    ],
    [
      "a layer beyond the configuration",
      (source) => source.set("model.layers.2.input_layernorm.weight", { shape: [24], data: new Float32Array(24) }),
      /model\.layers\.2\.input_layernorm\.weight is not part/,
    ],
  ];
  it.each(refusals)("refuses %s in one line", async (_, change, message) => {
    const source = tensors();
    change(source);
    await expect(open(source)).rejects.toMatchObject({
      code: "invalid_request",
      message: expect.stringMatching(message),
    });
  });

  it("refuses an untied model without a head, and a folder without weights", async () => {
    await expect(open(tensors(), { config: { tiedEmbeddings: false } })).rejects.toThrow(/lm_head\.weight is missing/);
    const options = { device, encoding: "f32", rowsMax: 8 } as const;
    const kv = { encoding: "f32", summaryKinds: [], blockCount: 0, openSlotCount: 0, summarySlotCount: 0 } as const;
    await expect(openModel({ ...options, kv, folder: "test/models" })).rejects.toMatchObject({
      code: "invalid_request",
    });
  });
});

describe("a step", () => {
  it("refuses what cannot be one, and works afterwards", async () => {
    const runner = await open(tensors());
    const conversation = new Conversation(runner, { contextTokens: 256 });
    const other = new Conversation(runner, { contextTokens: 256, index: 1 });
    const good = conversation.step([1, 2, 3], { sample: true });
    const checkpoint = { layer: 1, rowCount: 3, buffer: device.buffer("checkpoint", 3 * 24 * 4) };
    const broken = [
      [],
      [{ ...good, tokens: Uint32Array.of(1, 2) }],
      [{ ...good, tokens: Uint32Array.of(1, 2, 50) }],
      [conversation.step(new Uint32Array(ROWS_MAX + 1), { sample: false })],
      [{ ...good, slice: { ...good.slice, position: 254 } }],
      [good, other.step([1], { sample: true })],
      [{ ...good, resumeFrom: checkpoint }, other.step([1], { sample: false })],
      [{ ...conversation.step([1, 2], { sample: true }), resumeFrom: checkpoint }],
    ];
    for (const steps of broken) await expect(runner.step(steps)).rejects.toThrow(AssertionError);
    const [result] = await runner.step([good]);
    expect(result!.sample!.tokenId).toBeLessThan(50);
    device.release(checkpoint.buffer);
  });

  it("is one at a time", async () => {
    const runner = await open(tensors());
    const conversation = new Conversation(runner, { contextTokens: 256 });
    const first = runner.step([conversation.step([1], { sample: true })]);
    await expect(runner.step([conversation.step([1], { sample: true })])).rejects.toThrow("a step is running");
    expect((await first)[0]!.sample).toBeDefined();
  });
});
