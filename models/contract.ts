/** What the engine asks of a model: configuration, a pool's shape, and one step over a batch of slices. */
import type { DeviceBuffer, KvPool, Miss, Sample, SampleRow, SliceTraffic, StepSlice } from "../kernels/contract.ts";

/**
 * How RoPE frequencies are stretched beyond the context a model was first trained on; formulas in rope-frequencies.ts.
 * `factors`: one divisor per channel pair, as GGUF files carry them.
 */
export type RopeScaling =
  | { type: "linear"; factor: number }
  | { type: "factors"; factors: readonly number[] }
  | { type: "llama3"; factor: number; lowFreqFactor: number; highFreqFactor: number; originalContextTokens: number }
  | {
      type: "yarn";
      factor: number;
      originalContextTokens: number;
      betaFast: number;
      betaSlow: number;
      /** Cosines and sines are multiplied with it. */
      attentionFactor: number;
      /** Borders of the ramp are whole channels. */
      truncate: boolean;
    };

/** Llama-family shape, from HF `config.json` or a GGUF file's metadata. */
export interface ModelConfig {
  modelType: string;
  vocabularySize: number;
  width: number;
  ffnWidth: number;
  layerCount: number;
  headCount: number;
  kvHeadCount: number;
  headDim: number;
  contextTokensMax: number;
  normEps: number;
  ropeTheta: number;
  /** Absent: plain RoPE. */
  ropeScaling?: RopeScaling;
  /** Q, K and V are projected with biases (Qwen2). Absent: no. */
  qkvBias?: boolean;
  /** Each head of Q and K goes through an RMSNorm of its own before RoPE (Qwen3). Absent: no. */
  qkNorm?: boolean;
  tiedEmbeddings: boolean;
  bosTokenId?: number;
  eosTokenIds: number[];
}

/** The input of a layer for the rows of one slice: a step goes on from here once missing blocks have arrived. */
export interface Checkpoint {
  readonly layer: number;
  readonly rowCount: number;
  readonly buffer: DeviceBuffer;
}

/** One sequence's part of a step. */
export interface SequenceStep {
  slice: StepSlice;
  /** `[rowCount]` */
  tokens: Uint32Array;
  /**
   * Samples from the last row; `row` is filled in by the runner. Where no sequence of a step samples, the last layer only appends:
   * it selects nothing and misses nothing.
   */
  sample?: Omit<SampleRow, "row">;
  /** Beside `sample`: samples also from so many rows before the last, in order (checks guesses of the next tokens in one step). */
  draftSamples?: readonly Omit<SampleRow, "row">[];
  /** True: a miss makes the step of this sequence void (see {@link SequenceResult.checkpoint}). */
  exact: boolean;
  /**
   * Exact, alone in its batch: on a device that can look before a step ends, it ends before each layer that may miss a block, so that the next
   * call sees what has come meanwhile.
   */
  pauses?: boolean;
  /**
   * Alone in its batch, at least 1: the step ends before this layer, or the first behind it that makes a choice of its own, for what that is made by is not there
   * yet. A step that goes on from a layer goes on from one before it. One that is not exact has attended around what it says it missed before that.
   */
  layerEnd?: number | undefined;
  /** Goes on from a layer; such a step must be alone in its batch. The runner releases it, unless the step is a guess. */
  resumeFrom?: Checkpoint;
  /**
   * A guess: from its checkpoint on, layers run with what is there, up to this one, which only chooses. Its misses are what the real step
   * will probably miss there. Not exact, without samples, alone in its batch; what it appends is written again by the real step.
   */
  guessLayer?: number;
}

/** What a step did for one sequence. */
export interface SequenceResult {
  sample?: Sample;
  /** In the order of the step's `draftSamples`. */
  draftSamples?: Sample[];
  /** Blocks that were selected and not resident. Exact: those of the first layer that missed, and as hints those of later layers that ran. */
  misses: Miss[];
  /**
   * The step paused, or came to its `layerEnd`, and missed nothing from there on: call again with `resumeFrom`. Or exact and something missed: the result is void; fetch the misses of the first layer that missed and call again with `resumeFrom`. The
   * checkpoint is of that layer, or of the one whose choice it takes over.
   * KV appended at deeper layers is rewritten by that call.
   */
  checkpoint?: Checkpoint;
  /** As `StepReadback.chosenBlocks`, where the slice asked for it; of the layers that ran in this call. */
  chosenBlocks?: Uint32Array;
  /**
   * As `StepReadback.choices`, where the slice asked for it; of the layers that ran in this call. Whole only where a row of the step was sampled:
   * else the last layer chooses nothing.
   */
  choice?: Uint8Array;
  /** Of the layers that ran in this call: a step that was void and went on from a layer has read that layer twice, unless it went on in place. */
  traffic: SliceTraffic;
}

/** A model on a device, with its pool. */
export interface ModelRunner {
  readonly config: ModelConfig;
  /** SHA-256 over configuration, weights and weight encoding, hex; part of what names stored bytes. */
  readonly fingerprint: string;
  readonly pool: KvPool;
  /** Largest total row count of one step. */
  readonly rowsMax: number;
  /** Most rows that are sampled in one step, all sequences together. */
  readonly sampledMax: number;
  /** One step: all sequences advance by their slices. Results in the order given. One call at a time. */
  step(sequences: readonly SequenceStep[]): Promise<SequenceResult[]>;
  /** Frees a checkpoint that will not be resumed (an aborted sequence). */
  discard(checkpoint: Checkpoint): void;
}
