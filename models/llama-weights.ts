/** The tensors of a Llama model by their HF names, packed for a device. */
import {
  type Device,
  type DeviceBuffer,
  MATRIX_ROW_GROUP,
  type Matrix,
  type MatrixEncoding,
} from "../kernels/contract.ts";
import { QuireError } from "../protocol/errors.ts";
import type { ModelConfig } from "./contract.ts";
import { Fingerprint } from "./fingerprint.ts";
import { parameterCount, tableEncoding } from "./plan-memory.ts";
import type { RowRange, TensorSource } from "./tensor-source.ts";
import type { WeightCache } from "./weight-cache.ts";

/** A projection into heads: matrix `[heads * headDim, width]`, bias f32 `[heads * headDim]`, norm of each head f32 `[headDim]`. */
export interface Projection {
  readonly matrix: Matrix;
  readonly bias?: DeviceBuffer;
  readonly norm?: DeviceBuffer;
}

/** One layer; matrices are `[outWidth, inWidth]`, norms f32 `[width]`. */
export interface LayerWeights {
  readonly attentionNorm: DeviceBuffer;
  readonly query: Projection;
  readonly key: Projection;
  readonly value: Projection;
  readonly output: Matrix;
  readonly ffnNorm: DeviceBuffer;
  readonly gate: Matrix;
  readonly up: Matrix;
  readonly down: Matrix;
}

/** All weights of a model on a device. With tied embeddings `head` is `embeddings`. */
export interface LlamaWeights {
  readonly embeddings: Matrix;
  readonly layers: readonly LayerWeights[];
  readonly finalNorm: DeviceBuffer;
  readonly head: Matrix;
}

/** Where tensors come from and where they go. */
export interface LoadWeightsOptions {
  device: Device;
  config: ModelConfig;
  encoding: MatrixEncoding;
  source: TensorSource;
  /** Packed matrices of the same checkpoint, if there are. */
  cache?: WeightCache;
  onProgress?: (progress: LoadProgress) => void;
}

/** What loading gives. */
export interface LoadedWeights {
  weights: LlamaWeights;
  fingerprint: string;
  /** By their HF names, in the order in which they were loaded. */
  matrices: ReadonlyMap<string, Matrix>;
}

/** How far loading is, in values of the tensors that are read. */
export interface LoadProgress {
  /** HF's name of the tensor being read. */
  tensor: string;
  loadedCount: number;
  totalCount: number;
}

/** Values read, converted, hashed and packed at a time: weights are never held whole in f32. */
const PIECE_VALUES = 4 * 1024 * 1024;

/**
 * Reads every tensor once, in a fixed order and in pieces, packs it for the device and hashes it. Norms and biases stay f32 whatever the encoding.
 * @throws {QuireError} `invalid_request` when a tensor is missing, has another shape than the configuration says, holds infinities or
 * what is no number, or is one that the forward pass would ignore (a bias of another family).
 */
export async function loadLlamaWeights(options: LoadWeightsOptions): Promise<LoadedWeights> {
  const { config } = options;
  const loader = new TensorLoader(options);
  const { width, vocabularySize } = config;
  const embeddings = await loader.table("model.embed_tokens.weight", vocabularySize, width);
  const layers: LayerWeights[] = [];
  for (let layer = 0; layer < config.layerCount; layer++) layers.push(await loadLayer(loader, config, layer));
  const finalNorm = await loader.vector("model.norm.weight", width);
  // Tied checkpoints may carry a copy of the embeddings under this name; HF does not read it either.
  if (config.tiedEmbeddings) loader.ignore("lm_head.weight");
  const head = config.tiedEmbeddings ? embeddings : await loader.table("lm_head.weight", vocabularySize, width);
  loader.assertNothingLeft();
  const fingerprint = options.cache?.fingerprint ?? loader.fingerprint.digest();
  return { weights: { embeddings, layers, finalNorm, head }, fingerprint, matrices: loader.matrices };
}

async function loadLayer(loader: TensorLoader, config: ModelConfig, layer: number): Promise<LayerWeights> {
  const { width, ffnWidth } = config;
  const queryWidth = config.headCount * config.headDim;
  const keyWidth = config.kvHeadCount * config.headDim;
  const name = (part: string) => `model.layers.${layer}.${part}.weight`;
  // Older exports store what is computed from theta.
  loader.ignore(`model.layers.${layer}.self_attn.rotary_emb.inv_freq`);
  return {
    attentionNorm: await loader.vector(name("input_layernorm"), width),
    query: await loadProjection(loader, config, { layer, part: "q", outWidth: queryWidth }),
    key: await loadProjection(loader, config, { layer, part: "k", outWidth: keyWidth }),
    value: await loadProjection(loader, config, { layer, part: "v", outWidth: keyWidth }),
    output: await loader.matrix(name("self_attn.o_proj"), width, queryWidth),
    ffnNorm: await loader.vector(name("post_attention_layernorm"), width),
    gate: await loader.matrix(name("mlp.gate_proj"), ffnWidth, width),
    up: await loader.matrix(name("mlp.up_proj"), ffnWidth, width),
    down: await loader.matrix(name("mlp.down_proj"), width, ffnWidth),
  };
}

async function loadProjection(
  loader: TensorLoader,
  config: ModelConfig,
  { layer, part, outWidth }: { layer: number; part: "q" | "k" | "v"; outWidth: number },
): Promise<Projection> {
  const name = `model.layers.${layer}.self_attn.${part}`;
  const matrix = await loader.matrix(`${name}_proj.weight`, outWidth, config.width);
  const bias = config.qkvBias ? await loader.vector(`${name}_proj.bias`, outWidth) : undefined;
  const isNormed = config.qkNorm && part !== "v";
  const norm = isNormed ? await loader.vector(`${name}_norm.weight`, config.headDim) : undefined;
  return { matrix, ...(bias === undefined ? {} : { bias }), ...(norm === undefined ? {} : { norm }) };
}

type MatrixShape = Pick<Matrix, "outWidth" | "inWidth">;

class TensorLoader {
  readonly fingerprint: Fingerprint;
  readonly matrices = new Map<string, Matrix>();
  readonly #options: LoadWeightsOptions;
  readonly #left: Set<string>;
  readonly #totalCount: number;
  #loadedCount = 0;

  constructor(options: LoadWeightsOptions) {
    this.#options = options;
    this.fingerprint = new Fingerprint(options.config, options.encoding);
    this.#left = new Set(options.source.names);
    this.#totalCount = parameterCount(options.config);
  }

  /** A matrix of a layer. */
  matrix(name: string, outWidth: number, inWidth: number): Promise<Matrix> {
    return this.#matrix(name, this.#options.encoding, { outWidth, inWidth });
  }

  /** Embeddings or output head. */
  table(name: string, outWidth: number, inWidth: number): Promise<Matrix> {
    return this.#matrix(name, tableEncoding(this.#options.encoding), { outWidth, inWidth });
  }

  async #matrix(name: string, encoding: MatrixEncoding, shape: MatrixShape): Promise<Matrix> {
    const { outWidth, inWidth } = shape;
    this.#begin(name, [outWidth, inWidth]);
    const { device, cache } = this.#options;
    const matrix = device.emptyMatrix(name, encoding, shape);
    this.matrices.set(name, matrix);
    if (await cache?.fill(name, device, matrix)) {
      this.#advance(name, outWidth * inWidth);
      return matrix;
    }
    const groups = Math.max(1, Math.floor(PIECE_VALUES / (inWidth * MATRIX_ROW_GROUP)));
    for (let first = 0; first < outWidth; first += groups * MATRIX_ROW_GROUP) {
      const count = Math.min(groups * MATRIX_ROW_GROUP, outWidth - first);
      device.writeRows(matrix, first, await this.#piece(name, { first, count }));
    }
    return matrix;
  }

  async vector(name: string, width: number): Promise<DeviceBuffer> {
    this.#begin(name, [width]);
    const data = await this.#piece(name, { first: 0, count: width });
    const buffer = this.#options.device.buffer(name, data.byteLength);
    this.#options.device.write(buffer, 0, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    return buffer;
  }

  ignore(name: string): void {
    this.#left.delete(name);
  }

  /** A tensor that nobody asked for would change the result in the model it was made for: say so rather than be wrong. */
  assertNothingLeft(): void {
    const [name] = this.#left;
    if (name !== undefined) {
      throw new QuireError(
        "invalid_request",
        `weights: tensor ${name.slice(0, 120)} is not part of such a model (the forward pass would ignore it)`,
      );
    }
  }

  #begin(name: string, shape: readonly number[]): void {
    const found = this.#options.source.shape(name);
    if (found === undefined) throw new QuireError("invalid_request", `weights: tensor ${name} is missing`);
    if (found.length !== shape.length || found.some((size, i) => size !== shape[i])) {
      throw new QuireError(
        "invalid_request",
        `weights: tensor ${name} has shape [${found}], the configuration needs [${shape}]`,
      );
    }
    this.#left.delete(name);
    const count = shape.reduce((a, b) => a * b, 1);
    this.fingerprint.begin(name, count);
  }

  async #piece(name: string, rows: RowRange): Promise<Float32Array> {
    const data = await this.#options.source.readRows(name, rows);
    if (!areFinite(data)) {
      throw new QuireError("invalid_request", `weights: tensor ${name} holds a value that is no finite number`);
    }
    this.fingerprint.update(data);
    this.#advance(name, data.length);
    return data;
  }

  #advance(tensor: string, count: number): void {
    this.#loadedCount += count;
    this.#options.onProgress?.({ tensor, loadedCount: this.#loadedCount, totalCount: this.#totalCount });
  }
}

function areFinite(values: Float32Array): boolean {
  let sum = 0;
  // 0 for every number, else not a number: quicker than to ask each of them.
  for (let at = 0; at < values.length; at++) sum += (values[at] as number) * 0;
  return sum === 0;
}
