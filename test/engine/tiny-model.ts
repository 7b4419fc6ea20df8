/** A model of 2 layers with seeded random weights: small enough that the scalar reference serves whole conversations in milliseconds. */
import type { ModelConfig } from "../../models/contract.ts";
import { type RowRange, type TensorSource, tensorSizes } from "../../models/tensor-source.ts";

/** GQA with two query heads per KV head. */
export const TINY_CONFIG: ModelConfig = {
  modelType: "llama",
  vocabularySize: 64,
  width: 32,
  ffnWidth: 48,
  layerCount: 2,
  headCount: 4,
  kvHeadCount: 2,
  headDim: 8,
  contextTokensMax: 4096,
  normEps: 1e-5,
  ropeTheta: 10_000,
  tiedEmbeddings: true,
  eosTokenIds: [],
};

/** Mulberry32: uniform in [0, 1). */
export function uniform(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Weights in the names of HF Llama checkpoints. */
export class TinyWeights implements TensorSource {
  readonly #shapes = new Map<string, readonly number[]>();

  constructor(config: ModelConfig = TINY_CONFIG) {
    const { width, ffnWidth, headCount, kvHeadCount, headDim } = config;
    this.#shapes.set("model.embed_tokens.weight", [config.vocabularySize, width]);
    this.#shapes.set("model.norm.weight", [width]);
    for (let layer = 0; layer < config.layerCount; layer++) {
      const at = (name: string) => `model.layers.${layer}.${name}.weight`;
      this.#shapes.set(at("input_layernorm"), [width]);
      this.#shapes.set(at("post_attention_layernorm"), [width]);
      this.#shapes.set(at("self_attn.q_proj"), [headCount * headDim, width]);
      this.#shapes.set(at("self_attn.k_proj"), [kvHeadCount * headDim, width]);
      this.#shapes.set(at("self_attn.v_proj"), [kvHeadCount * headDim, width]);
      this.#shapes.set(at("self_attn.o_proj"), [width, headCount * headDim]);
      this.#shapes.set(at("mlp.gate_proj"), [ffnWidth, width]);
      this.#shapes.set(at("mlp.up_proj"), [ffnWidth, width]);
      this.#shapes.set(at("mlp.down_proj"), [width, ffnWidth]);
    }
  }

  get names(): string[] {
    return [...this.#shapes.keys()];
  }

  shape(name: string): readonly number[] | undefined {
    return this.#shapes.get(name);
  }

  /** Norms near 1, matrices large enough that attention is not uniform. */
  async read(name: string): Promise<Float32Array> {
    const shape = this.#shapes.get(name);
    if (!shape) throw new Error(`no tensor ${name}`);
    const seed = [...name].reduce((hash, letter) => Math.imul(hash ^ letter.charCodeAt(0), 16777619) >>> 0, 2166136261);
    const next = uniform(seed);
    const count = shape.reduce((product, size) => product * size, 1);
    const scale = /q_proj|k_proj/.test(name) ? 1.2 : 0.5;
    return Float32Array.from({ length: count }, () =>
      shape.length === 1 ? 0.8 + 0.4 * next() : (next() - 0.5) * scale,
    );
  }

  async readRows(name: string, { first, count }: RowRange): Promise<Float32Array> {
    const { rowValues } = tensorSizes(this.#shapes.get(name) ?? []);
    return (await this.read(name)).slice(first * rowValues, (first + count) * rowValues);
  }

  async close(): Promise<void> {}
}
