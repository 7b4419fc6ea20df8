/** Sizes at which the GPU device is measured. */

/** A Llama-family shape. */
export interface GpuShape {
  width: number;
  ffnWidth: number;
  headCount: number;
  kvHeadCount: number;
  headDim: number;
  layerCount: number;
  vocabularySize: number;
}

/** What one run measures. */
export interface GpuSizes {
  shape: GpuShape;
  /** Sequences that decode together. */
  batch: number;
  /** Contexts of attention, tokens. */
  contexts: readonly number[];
  budgetTokens: number;
  /** Rows of a prefill chunk. */
  chunkRows: number;
  /** Bytes of the copy that measures bandwidth. */
  copyBytes: number;
  /** Batches and contexts of whole steps. */
  steps: readonly { batch: number; contextTokens: number }[];
}

/** `8b` is for hardware; `tiny` shows on a software GPU that everything runs. */
export const GPU_SIZES = {
  "8b": {
    shape: {
      ...{ width: 4096, ffnWidth: 14_336, headCount: 32, kvHeadCount: 8, headDim: 128 },
      ...{ layerCount: 32, vocabularySize: 128_256 },
    },
    ...{ batch: 8, contexts: [32_768, 131_072], budgetTokens: 2048, chunkRows: 512, copyBytes: 2 ** 29 },
    steps: [
      { batch: 8, contextTokens: 32_768 },
      { batch: 1, contextTokens: 131_072 },
    ],
  },
  tiny: {
    shape: {
      ...{ width: 64, ffnWidth: 96, headCount: 4, kvHeadCount: 2, headDim: 16, layerCount: 2 },
      vocabularySize: 256,
    },
    ...{ batch: 2, contexts: [512], budgetTokens: 128, chunkRows: 16, copyBytes: 2 ** 16 },
    steps: [{ batch: 2, contextTokens: 512 }],
  },
} as const satisfies Record<string, GpuSizes>;
