/** Model shapes that speed is measured at. Their weights are seeded and random: speed is real, text is noise. */
import { parseChoice } from "../cli/flags.ts";
import type { ModelConfig } from "../models/contract.ts";

/** `bench-213m` is the shape that peers are compared at, `house` that of the base house model, `8b` is for GPUs, `tiny` for tests. */
export type ShapeName = "bench-213m" | "1b" | "8b" | "house" | "tiny";

type Sizes = Pick<
  ModelConfig,
  "vocabularySize" | "width" | "ffnWidth" | "layerCount" | "headCount" | "kvHeadCount" | "headDim"
>;

const SIZES: Readonly<Record<ShapeName, Sizes>> = {
  "bench-213m": {
    ...{ vocabularySize: 32_000, width: 1024, ffnWidth: 2816, layerCount: 16 },
    ...{ headCount: 16, kvHeadCount: 8, headDim: 64 },
  },
  "1b": {
    ...{ vocabularySize: 128_256, width: 2048, ffnWidth: 8192, layerCount: 16 },
    ...{ headCount: 32, kvHeadCount: 8, headDim: 64 },
  },
  "8b": {
    ...{ vocabularySize: 128_256, width: 4096, ffnWidth: 14_336, layerCount: 32 },
    ...{ headCount: 32, kvHeadCount: 8, headDim: 128 },
  },
  house: {
    ...{ vocabularySize: 8192, width: 512, ffnWidth: 1344, layerCount: 8 },
    ...{ headCount: 8, kvHeadCount: 2, headDim: 64 },
  },
  tiny: {
    ...{ vocabularySize: 512, width: 64, ffnWidth: 96, layerCount: 2 },
    ...{ headCount: 4, kvHeadCount: 2, headDim: 16 },
  },
};

/** The configuration of a shape: Llama, tied embeddings, RoPE theta 500,000, 131,072 positions. */
export function shapeConfig(name: ShapeName): ModelConfig {
  return {
    modelType: "llama",
    ...SIZES[name],
    contextTokensMax: 131_072,
    normEps: 1e-5,
    ropeTheta: 500_000,
    tiedEmbeddings: true,
    bosTokenId: 1,
    eosTokenIds: [2],
  };
}

/** `--shape`. */
export const shapeFlag = {
  help: "bench-213m, 1b, 8b (for GPUs), house, or tiny (for tests)",
  placeholder: "NAME",
  fallback: "bench-213m",
  parse: parseChoice(["bench-213m", "1b", "8b", "house", "tiny"]),
} as const;
