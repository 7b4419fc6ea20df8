/**
 * Seeded random weights whose values are q8_0 to begin with: blocks of 32 codes times one power of two, the largest code of each block
 * being 127 in magnitude. bf16, q8_0 and our own int8 hold them exactly, so every engine computes with the same weights.
 */
import type { ModelConfig } from "../../models/contract.ts";
import { type RowRange, type TensorSource, tensorSizes } from "../../models/tensor-source.ts";
import { assert } from "../../protocol/assert.ts";
import { seededRandom } from "../random.ts";

/** Values of one q8_0 block. */
export const CODES_PER_BLOCK = 32;
/** No tensor has more rows; row `r` of tensor `i` draws from stream `i * ROWS_MAX + r`. */
const ROWS_MAX = 2 ** 18;
/** Codes are drawn evenly from -127..127. */
const CODE_DEVIATION = 73.3;
/** The smallest power of two that is a normal f16. */
const SCALE_EXPONENT_MIN = -14;

/** One tensor: a matrix of codes, or a norm in f32. */
export interface SeededTensor {
  /** As HF names it. */
  name: string;
  ggufName: string;
  shape: readonly number[];
  /** What codes are multiplied with: 2 to this power. Undefined: a norm. */
  scaleExponent: number | undefined;
  /** llama.cpp stores the rows of each head in pairs. */
  permuted: boolean;
  /** Place in the list: names the stream of random numbers. */
  index: number;
}

/** Every tensor of a model with tied embeddings, in the order in which files hold them. */
export function listTensors(config: ModelConfig): SeededTensor[] {
  assert(config.tiedEmbeddings, "seeded weights have tied embeddings");
  const { width, ffnWidth, layerCount, headCount, kvHeadCount, headDim, vocabularySize } = config;
  const tensors: SeededTensor[] = [];
  const add = (name: string, ggufName: string, shape: readonly number[], { permuted = false, shrink = 1 } = {}) => {
    const exponent = -Math.round(Math.log2(CODE_DEVIATION * Math.sqrt(shape.at(-1)!) * shrink));
    const scaleExponent = shape.length === 1 ? undefined : Math.max(SCALE_EXPONENT_MIN, exponent);
    tensors.push({ name, ggufName, shape, scaleExponent, permuted, index: tensors.length });
  };
  // As in GPT-2: what is added to the residual stream shrinks with its depth.
  const shrink = Math.sqrt(2 * layerCount);
  add("model.embed_tokens.weight", "token_embd.weight", [vocabularySize, width]);
  for (let layer = 0; layer < layerCount; layer++) {
    const put = (ours: string, theirs: string, shape: readonly number[], how = {}) =>
      add(`model.layers.${layer}.${ours}.weight`, `blk.${layer}.${theirs}.weight`, shape, how);
    put("input_layernorm", "attn_norm", [width]);
    put("self_attn.q_proj", "attn_q", [headCount * headDim, width], { permuted: true });
    put("self_attn.k_proj", "attn_k", [kvHeadCount * headDim, width], { permuted: true });
    put("self_attn.v_proj", "attn_v", [kvHeadCount * headDim, width]);
    put("self_attn.o_proj", "attn_output", [width, headCount * headDim], { shrink });
    put("post_attention_layernorm", "ffn_norm", [width]);
    put("mlp.gate_proj", "ffn_gate", [ffnWidth, width]);
    put("mlp.up_proj", "ffn_up", [ffnWidth, width]);
    put("mlp.down_proj", "ffn_down", [width, ffnWidth], { shrink });
  }
  add("model.norm.weight", "output_norm.weight", [width]);
  return tensors;
}

/** Codes `[rows.count, inWidth]` of a matrix, -127..127; the same for a row whatever rows are drawn with it. */
export function drawCodes(seed: number, tensor: SeededTensor, rows: RowRange): Int8Array {
  const { rowValues } = tensorSizes(tensor.shape);
  assert(rowValues % CODES_PER_BLOCK === 0, `rows of ${rowValues} values are no whole q8_0 blocks`);
  const codes = new Int8Array(rows.count * rowValues);
  let at = 0;
  for (let row = rows.first; row < rows.first + rows.count; row++) {
    const random = seededRandom(seed, tensor.index * ROWS_MAX + row);
    for (const end = at + rowValues; at < end; at += 4) {
      const word = random() * 2 ** 32;
      for (let byte = 0; byte < 4; byte++) codes[at + byte] = (((word >>> (byte * 8)) & 255) % 255) - 127;
      if (at % CODES_PER_BLOCK === 0) codes[at] = codes[at]! < 0 ? -127 : 127;
    }
  }
  return codes;
}

/** A norm's weights, near 1 and exact in bf16. */
export function drawNorm(seed: number, tensor: SeededTensor): Float32Array {
  const random = seededRandom(seed, tensor.index * ROWS_MAX);
  return Float32Array.from({ length: tensor.shape[0]! }, () => 1 + (Math.floor(random() * 33) - 16) / 128);
}

/** The weights as f32, made as they are read: no file is needed to measure speed. */
export class SeededWeights implements TensorSource {
  readonly #seed: number;
  readonly #tensors: ReadonlyMap<string, SeededTensor>;

  constructor(config: ModelConfig, seed: number) {
    this.#seed = seed;
    this.#tensors = new Map(listTensors(config).map((tensor) => [tensor.name, tensor]));
  }

  get names(): string[] {
    return [...this.#tensors.keys()];
  }

  shape(name: string): readonly number[] | undefined {
    return this.#tensors.get(name)?.shape;
  }

  async read(name: string): Promise<Float32Array> {
    return this.readRows(name, { first: 0, count: tensorSizes(this.shape(name) ?? []).rowCount });
  }

  async readRows(name: string, rows: RowRange): Promise<Float32Array> {
    const tensor = this.#tensors.get(name);
    assert(tensor !== undefined, `there is no tensor ${name}`);
    if (tensor.scaleExponent === undefined) {
      return drawNorm(this.#seed, tensor).subarray(rows.first, rows.first + rows.count);
    }
    const scale = 2 ** tensor.scaleExponent;
    const codes = drawCodes(this.#seed, tensor, rows);
    // `Float32Array.from` would make a list of boxed values first, megabytes that the process does not give back.
    const values = new Float32Array(codes.length);
    for (let i = 0; i < codes.length; i++) values[i] = codes[i]! * scale;
    return values;
  }

  async close(): Promise<void> {}
}
