/**
 * stories260K, read from llama2.c's format: 7 int32 (dim, hidden, layers, heads, kv heads, vocabulary, context), then f32 tensors, each
 * kind for all layers. RoPE there pairs neighbouring channels; rows of Q and K are permuted so that channel i pairs with i + headDim/2.
 */
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import type { ModelConfig } from "../../models/contract.ts";
import type { TensorSource } from "../../models/tensor-source.ts";
import { type MemoryTensor, MemoryTensors } from "./memory-tensors.ts";

const FOLDER = "../shared/data/stories260K";

/** Undefined: the data is there; otherwise the reason why tests of it are skipped. */
export const STORIES_ABSENT = existsSync(`${FOLDER}/stories260K.bin`) ? undefined : `${FOLDER} is absent`;

/** One prompt of `vectors.json`. */
export interface StoriesCase {
  name: string;
  ids: number[];
  greedy: number[];
  positions: number[];
  logits: number[][];
  /** After the embeddings, then after each layer; the last one after the final norm. */
  hidden_last_position: number[][];
}

/** The three prompts, shortest first. */
export async function storiesCases(): Promise<StoriesCase[]> {
  return JSON.parse(await readFile(`${FOLDER}/vectors.json`, "utf8")).cases;
}

/** The model in HF terms: configuration and tensors by their HF names, Q and K permuted. */
export async function readStories(): Promise<{ config: ModelConfig; source: TensorSource }> {
  const bytes = await readFile(`${FOLDER}/stories260K.bin`);
  const copy = new Uint8Array(bytes).buffer;
  const header = [...new Int32Array(copy, 0, 7)];
  const [width, ffnWidth, layerCount, headCount, kvHeadCount, vocabularySize, contextTokensMax] = header as number7;
  const headDim = width / headCount;
  const config: ModelConfig = {
    modelType: "llama",
    vocabularySize,
    width,
    ffnWidth,
    layerCount,
    headCount,
    kvHeadCount,
    headDim,
    contextTokensMax,
    normEps: 1e-5,
    ropeTheta: 10000,
    tiedEmbeddings: true,
    bosTokenId: 1,
    eosTokenIds: [2],
  };
  return { config, source: new MemoryTensors(readTensors(config, new Float32Array(copy, 28))) };
}

type number7 = [number, number, number, number, number, number, number];

function readTensors(config: ModelConfig, floats: Float32Array): Map<string, MemoryTensor> {
  const { width, ffnWidth, layerCount, headCount, kvHeadCount, headDim, vocabularySize } = config;
  const tensors = new Map<string, MemoryTensor>();
  let offset = 0;
  const take = (name: string, ...shape: number[]) => {
    const size = shape.reduce((a, b) => a * b);
    tensors.set(name, { shape, data: floats.slice(offset, offset + size) });
    offset += size;
  };
  const each = (part: string, ...shape: number[]) => {
    for (let layer = 0; layer < layerCount; layer++) take(`model.layers.${layer}.${part}.weight`, ...shape);
  };
  take("model.embed_tokens.weight", vocabularySize, width);
  each("input_layernorm", width);
  each("self_attn.q_proj", headCount * headDim, width);
  each("self_attn.k_proj", kvHeadCount * headDim, width);
  each("self_attn.v_proj", kvHeadCount * headDim, width);
  each("self_attn.o_proj", width, headCount * headDim);
  each("post_attention_layernorm", width);
  each("mlp.gate_proj", ffnWidth, width);
  each("mlp.down_proj", width, ffnWidth);
  each("mlp.up_proj", ffnWidth, width);
  take("model.norm.weight", width);
  for (const [name, tensor] of tensors) if (/\.[qk]_proj\./.test(name)) tensor.data = toHalfSplit(tensor, headDim);
  return tensors;
}

function toHalfSplit({ shape, data }: MemoryTensor, headDim: number): Float32Array {
  const [rows, width] = shape as [number, number];
  const out = new Float32Array(data.length);
  for (let row = 0; row < rows; row++) {
    const channel = row % headDim;
    const half = channel % 2 === 0 ? channel / 2 : (channel - 1) / 2 + headDim / 2;
    out.set(data.subarray(row * width, (row + 1) * width), (row - channel + half) * width);
  }
  return out;
}
