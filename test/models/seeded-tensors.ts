/** Tensors of a tiny checkpoint from a seed; `tensor` in vectors/make-vectors.py is the other half, value for value. */
import type { ModelConfig } from "../../models/contract.ts";
import { type MemoryTensor, MemoryTensors } from "./memory-tensors.ts";

/** Every tensor of a checkpoint of this configuration by its HF name. */
export function seededTensors(config: ModelConfig): MemoryTensors {
  return new MemoryTensors(new Map(tensorShapes(config).map(([name, shape]) => [name, seededTensor(name, shape)])));
}

/** Names and shapes as HF writes them. */
export function tensorShapes(config: ModelConfig): [name: string, shape: number[]][] {
  const { width, ffnWidth, headDim, vocabularySize } = config;
  const queryWidth = config.headCount * headDim;
  const keyWidth = config.kvHeadCount * headDim;
  const shapes: [string, number[]][] = [
    ["model.embed_tokens.weight", [vocabularySize, width]],
    ["model.norm.weight", [width]],
  ];
  if (!config.tiedEmbeddings) shapes.push(["lm_head.weight", [vocabularySize, width]]);
  for (let layer = 0; layer < config.layerCount; layer++) {
    const at = (part: string) => `model.layers.${layer}.${part}`;
    shapes.push([at("input_layernorm.weight"), [width]], [at("post_attention_layernorm.weight"), [width]]);
    for (const [part, outWidth] of Object.entries({ q: queryWidth, k: keyWidth, v: keyWidth })) {
      shapes.push([at(`self_attn.${part}_proj.weight`), [outWidth, width]]);
      if (config.qkvBias) shapes.push([at(`self_attn.${part}_proj.bias`), [outWidth]]);
      if (config.qkNorm && part !== "v") shapes.push([at(`self_attn.${part}_norm.weight`), [headDim]]);
    }
    shapes.push([at("self_attn.o_proj.weight"), [width, queryWidth]]);
    shapes.push([at("mlp.gate_proj.weight"), [ffnWidth, width]], [at("mlp.up_proj.weight"), [ffnWidth, width]]);
    shapes.push([at("mlp.down_proj.weight"), [width, ffnWidth]]);
  }
  return shapes;
}

/** Norms around 1, biases and matrices around 0. */
export function seededTensor(name: string, shape: number[]): MemoryTensor {
  const next = mulberry32(nameSeed(name));
  const count = shape.reduce((a, b) => a * b, 1);
  const data = Float32Array.from({ length: count }, () => {
    const value = next();
    if (name.endsWith("norm.weight")) return 0.8 + 0.4 * value;
    return (value - 0.5) * (/q_proj|k_proj/.test(name) ? 0.9 : 0.5);
  });
  return { shape, data };
}

/** FNV-1a, 32 bits. */
function nameSeed(name: string): number {
  let hash = 2166136261;
  for (const byte of new TextEncoder().encode(name)) hash = Math.imul(hash ^ byte, 16777619) >>> 0;
  return hash;
}

/** Uniform in [0, 1). */
function mulberry32(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
