/** Writes a shape as a HF folder and as a GGUF file in one pass over its weights. */
import { type FileHandle, mkdir, open, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { orRefuse } from "../../cli/output-file.ts";
import type { ModelConfig } from "../../models/contract.ts";
import { tensorSizes } from "../../models/tensor-source.ts";
import { encodeBf16, encodeQ8, pairRows } from "./encode-rows.ts";
import { alignedBytes, ggufHeader } from "./gguf-header.ts";
import { drawCodes, drawNorm, listTensors, type SeededTensor } from "./seeded-weights.ts";

/** Codes held at a time, about. */
const CHUNK_CODES = 1 << 20;

/** What was written. */
export interface WrittenModel {
  /** Holds `config.json` and `model.safetensors` (bf16, norms f32). */
  folder: string;
  /** The same values as q8_0. */
  ggufPath: string;
  parameterCount: number;
}

/** What to write, and where. */
export interface WriteModelOptions {
  name: string;
  config: ModelConfig;
  seed: number;
  folder: string;
}

/** Writes `folder`/config.json, model.safetensors and `name`.gguf; files that are there are replaced. The same seed gives the same bytes. */
export async function writeModel({ name, config, seed, folder }: WriteModelOptions): Promise<WrittenModel> {
  await orRefuse(folder, () => mkdir(folder, { recursive: true }));
  await writeFile(join(folder, "config.json"), `${JSON.stringify(huggingFaceConfig(config), undefined, 2)}\n`);
  const tensors = listTensors(config);
  const ggufPath = join(folder, `${name}.gguf`);
  const safetensors = await open(join(folder, "model.safetensors"), "w");
  const gguf = await open(ggufPath, "w");
  try {
    await writeAll(safetensors, safetensorsHeader(tensors));
    await writeAll(gguf, ggufHeader(config, tensors, name));
    for (const tensor of tensors) await writeTensor({ tensor, seed, headDim: config.headDim, safetensors, gguf });
  } finally {
    await safetensors.close();
    await gguf.close();
  }
  const parameterCount = tensors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  return { folder, ggufPath, parameterCount };
}

interface TensorSinks {
  tensor: SeededTensor;
  seed: number;
  headDim: number;
  safetensors: FileHandle;
  gguf: FileHandle;
}

async function writeTensor({ tensor, seed, headDim, safetensors, gguf }: TensorSinks): Promise<void> {
  const { rowCount, rowValues } = tensorSizes(tensor.shape);
  let ggufBytes = 0;
  const toGguf = async (bytes: Uint8Array) => {
    ggufBytes += bytes.length;
    await writeAll(gguf, bytes);
  };
  if (tensor.scaleExponent === undefined) {
    const norm = new Uint8Array(drawNorm(seed, tensor).buffer);
    await writeAll(safetensors, norm);
    await toGguf(norm);
  } else {
    const chunkRows = Math.max(1, Math.floor(CHUNK_CODES / rowValues / headDim)) * headDim;
    for (let first = 0; first < rowCount; first += chunkRows) {
      const codes = drawCodes(seed, tensor, { first, count: Math.min(chunkRows, rowCount - first) });
      await writeAll(safetensors, encodeBf16(codes, tensor.scaleExponent));
      const stored = tensor.permuted ? pairRows(codes, { headDim, rowValues }) : codes;
      await toGguf(encodeQ8(stored, tensor.scaleExponent));
    }
  }
  await writeAll(gguf, new Uint8Array(alignedBytes(ggufBytes) - ggufBytes));
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, done);
    done += bytesWritten;
  }
}

function safetensorsHeader(tensors: readonly SeededTensor[]): Uint8Array {
  let end = 0;
  const entries = tensors.map(({ name, shape, scaleExponent }) => {
    const begin = end;
    end += shape.reduce((a, b) => a * b, scaleExponent === undefined ? 4 : 2);
    return [name, { dtype: scaleExponent === undefined ? "F32" : "BF16", shape, data_offsets: [begin, end] }];
  });
  const json = JSON.stringify(Object.fromEntries(entries));
  const header = Buffer.from(json.padEnd(Math.ceil(json.length / 8) * 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header]);
}

function huggingFaceConfig(config: ModelConfig): Record<string, unknown> {
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    torch_dtype: "bfloat16",
    hidden_act: "silu",
    vocab_size: config.vocabularySize,
    hidden_size: config.width,
    intermediate_size: config.ffnWidth,
    num_hidden_layers: config.layerCount,
    num_attention_heads: config.headCount,
    num_key_value_heads: config.kvHeadCount,
    head_dim: config.headDim,
    max_position_embeddings: config.contextTokensMax,
    rms_norm_eps: config.normEps,
    rope_theta: config.ropeTheta,
    tie_word_embeddings: config.tiedEmbeddings,
    bos_token_id: config.bosTokenId,
    eos_token_id: config.eosTokenIds[0],
  };
}
