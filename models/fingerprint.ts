import { createHash } from "node:crypto";
import type { MatrixEncoding } from "../kernels/contract.ts";
import type { ModelConfig } from "./contract.ts";

/** Goes up when equal inputs would give different hidden states: names of stored bytes change with it. */
export const FORWARD_VERSION = 1;

/**
 * SHA-256 over what decides a model's hidden states: the forward pass's version, the configuration's arithmetic fields, the encoding
 * of the weights, and every tensor that was loaded, by name and f32 value. The same weights saved as bf16 and as f32 are the
 * same model; beginning and end tokens are not part of it. Tensors must be added in one fixed order.
 */
export class Fingerprint {
  readonly #hash = createHash("sha256");

  constructor(config: ModelConfig, encoding: MatrixEncoding) {
    this.#line([
      "quire model",
      FORWARD_VERSION,
      config.modelType,
      config.vocabularySize,
      config.width,
      config.ffnWidth,
      config.layerCount,
      config.headCount,
      config.kvHeadCount,
      config.headDim,
      config.normEps,
      config.ropeTheta,
      config.tiedEmbeddings,
      encoding,
      // Only where they differ from plain Llama, whose names of stored bytes are as they were.
      ...(config.ropeScaling === undefined ? [] : ["rope", JSON.stringify(config.ropeScaling)]),
      ...(config.qkvBias ? ["qkv bias"] : []),
      ...(config.qkNorm ? ["qk norm"] : []),
    ]);
  }

  /** Begins a tensor of `count` values; {@link update} gives them, in order, in pieces of any size. */
  begin(name: string, count: number): void {
    this.#line([name, count]);
  }

  /** Adds values of the tensor begun last; `data` is read at once and not kept. */
  update(data: Float32Array): void {
    this.#hash.update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }

  /** Lower-case hex. Ends the fingerprint. */
  digest(): string {
    return this.#hash.digest("hex");
  }

  #line(fields: readonly (string | number | boolean)[]): void {
    this.#hash.update(`${JSON.stringify(fields)}\n`);
  }
}
