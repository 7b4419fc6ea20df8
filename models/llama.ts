/** The model runner of the Llama family: checks a step, has it recorded, and turns its readback into results. */
import type { Device, KvPool, Sample, SliceTraffic, StepReadback, StepRecorder } from "../kernels/contract.ts";
import { subtractTraffic } from "../kernels/traffic.ts";
import { assert } from "../protocol/assert.ts";
import { allocateActivations } from "./activations.ts";
import { CheckpointKeeper } from "./checkpoints.ts";
import type { Checkpoint, ModelConfig, ModelRunner, SequenceResult, SequenceStep } from "./contract.ts";
import { LlamaStep, type StepParts } from "./llama-step.ts";
import type { LlamaWeights } from "./llama-weights.ts";
import { type Observe, Observer } from "./observer.ts";
import { ropeFrequencies } from "./rope-frequencies.ts";
import { RopePositions } from "./rope-table.ts";

/** What a runner is made of; the pool must have the model's layers, KV heads and head width. */
export interface LlamaRunnerOptions {
  device: Device;
  config: ModelConfig;
  weights: LlamaWeights;
  fingerprint: string;
  pool: KvPool;
  /** Largest total row count of one step. */
  rowsMax: number;
  /** Most sequences that sample in one step. */
  sampledMax: number;
  /** Shows hidden states and logits of every step to tests and tools; costs copies and a readback of each. */
  observe?: Observe;
}

/** A step as it is recorded. */
interface Recording {
  recorder: StepRecorder;
  keeper: CheckpointKeeper;
  step: LlamaStep;
  /** The layer that the last call began with, and what earlier calls have told of traffic. */
  firstLayer: number;
  told: SliceTraffic | undefined;
}

/** One that ended early, and is held open: it goes on in place if the next call is for the same rows. */
interface OpenStep {
  recording: Recording;
  slice: SequenceStep["slice"];
  checkpoint: Checkpoint;
}

/** See {@link ModelRunner}. Its buffers live as long as the device. */
export class LlamaRunner implements ModelRunner {
  readonly config: ModelConfig;
  readonly fingerprint: string;
  readonly pool: KvPool;
  readonly rowsMax: number;
  readonly #device: Device;
  readonly sampledMax: number;
  readonly #rope: RopePositions;
  readonly #parts: StepParts;
  #running = false;
  #open: OpenStep | undefined;

  constructor(options: LlamaRunnerOptions) {
    const { device, config, pool, rowsMax, sampledMax, observe } = options;
    assert(pool.spec.layerCount === config.layerCount, "the pool has another layer count than the model");
    assert(pool.spec.kvHeadCount === config.kvHeadCount, "the pool has another KV head count than the model");
    assert(pool.spec.headDim === config.headDim, "the pool has another head width than the model");
    this.config = config;
    this.fingerprint = options.fingerprint;
    this.pool = pool;
    this.rowsMax = rowsMax;
    this.#device = device;
    this.sampledMax = sampledMax;
    this.#rope = new RopePositions(device, { ...ropeFrequencies(config), positionCount: config.contextTokensMax });
    this.#parts = {
      config,
      pool,
      weights: options.weights,
      buffers: allocateActivations(device, config, { rowsMax, sampledMax }),
      rope: this.#rope.table,
      observer: observe === undefined ? undefined : new Observer(device, config, { rowsMax, sampledMax }, observe),
    };
  }

  async step(sequences: readonly SequenceStep[]): Promise<SequenceResult[]> {
    assert(!this.#running, "a step is running");
    const resumed = this.#checkSequences(sequences);
    for (const { slice } of sequences) this.#rope.ensure(slice.position, slice.position + slice.rowCount - 1);
    this.#running = true;
    try {
      const open = this.#takeOpen(sequences);
      return open === undefined ? await this.#begin(sequences, resumed) : await this.#goOn(open, sequences);
    } finally {
      this.#running = false;
    }
  }

  discard(checkpoint: Checkpoint): void {
    if (this.#open?.checkpoint === checkpoint) this.#close();
    this.#device.release(checkpoint.buffer);
  }

  /** The step that is held open, if this is how it goes on; else it is closed, and goes on from its checkpoint. */
  #takeOpen(sequences: readonly SequenceStep[]): OpenStep | undefined {
    const [{ slice, resumeFrom, guessLayer }] = sequences as [SequenceStep];
    const open = this.#open;
    if (open?.slice === slice && open.checkpoint === resumeFrom && guessLayer === undefined) {
      this.#open = undefined;
      return open;
    }
    this.#close();
    return undefined;
  }

  #close(): void {
    const open = this.#open;
    this.#open = undefined;
    if (open === undefined) return;
    open.recording.keeper.release();
    // It is over when this returns; what it tells has been told.
    open.recording.recorder.submit().catch(() => {});
  }

  async #begin(sequences: readonly SequenceStep[], resumed: Checkpoint | undefined): Promise<SequenceResult[]> {
    const keeper = new CheckpointKeeper(this.#device, this.config.width, sequences);
    try {
      const recorder = this.#device.begin(sequences.map(({ slice }) => slice));
      const step = new LlamaStep(this.#parts, { recorder, keeper, sequences });
      const recording = { recorder, keeper, step, firstLayer: resumed?.layer ?? 0, told: undefined };
      return await this.#finish(recording, sequences, () => step.record(resumed));
    } finally {
      if (resumed !== undefined && sequences[0]!.guessLayer === undefined) this.#device.release(resumed.buffer);
    }
  }

  #goOn({ recording, checkpoint }: OpenStep, sequences: readonly SequenceStep[]): Promise<SequenceResult[]> {
    const { keeper, step } = recording;
    keeper.goOn(sequences[0]!, checkpoint);
    return this.#finish({ ...recording, firstLayer: checkpoint.layer }, sequences, () => step.goOn());
  }

  /** Runs the step to where it ends, and tells. One that ended early is held open, where the device can. */
  async #finish(
    recording: Recording,
    sequences: readonly SequenceStep[],
    run: () => number[],
  ): Promise<SequenceResult[]> {
    const { recorder, keeper, step } = recording;
    const { observer } = this.#parts;
    try {
      const sampled = run();
      const held = step.hasEndedEarly && observer === undefined && mayHold(sequences) ? recorder.report() : undefined;
      const readback = held ?? (await recorder.submit());
      await observer?.deliver();
      const all = results(sequences, sampled, readback, keeper);
      if (recording.told !== undefined) all[0] = this.#sinceLastCall(all[0]!, recording.told, recording.firstLayer);
      const { checkpoint } = all[0]!;
      if (held !== undefined && checkpoint !== undefined) {
        const { slice } = sequences[0]!;
        this.#open = { recording: { ...recording, told: readback.traffic[0] }, slice, checkpoint };
      }
      return all;
    } catch (error) {
      // A device takes no other step before this one has ended.
      await recorder.submit().catch(() => {});
      throw error;
    } finally {
      if (this.#open === undefined) keeper.release();
      observer?.reset();
    }
  }

  /** What a call adds to those before it that the same recording has told of. */
  #sinceLastCall(result: SequenceResult, told: SliceTraffic, firstLayer: number): SequenceResult {
    const { traffic, chosenBlocks } = result;
    chosenBlocks?.fill(0, 0, firstLayer * (chosenBlocks.length / this.config.layerCount));
    return { ...result, traffic: subtractTraffic(traffic, told) };
  }

  /** Returns the checkpoint of a step that goes on from one. */
  #checkSequences(sequences: readonly SequenceStep[]): Checkpoint | undefined {
    assert(sequences.length > 0, "a step needs a sequence");
    let rowCount = 0;
    let sampledCount = 0;
    for (const one of sequences) {
      const { slice, tokens, sample, draftSamples = [], resumeFrom, guessLayer, exact, pauses, layerEnd } = one;
      rowCount += slice.rowCount;
      if (sample !== undefined) sampledCount += 1 + draftSamples.length;
      assert(draftSamples.length < slice.rowCount, "a row is sampled once");
      assert(tokens.length === slice.rowCount, "a step needs one token per row");
      assert(
        tokens.every((id) => id < this.config.vocabularySize),
        "a token id is beyond the vocabulary",
      );
      assert(
        slice.position + slice.rowCount <= this.config.contextTokensMax,
        `position ${slice.position + slice.rowCount - 1} is beyond the model's context`,
      );
      assert(!pauses || (sequences.length === 1 && exact), "a step that pauses is exact, and alone in its batch");
      if (layerEnd !== undefined) {
        assert(sequences.length === 1, "a step that ends at a layer is alone in its batch");
        assert(layerEnd > (resumeFrom?.layer ?? 0), "a step ends behind the layer that it begins with");
      }
      const isGuess = guessLayer !== undefined;
      assert(
        !isGuess || (resumeFrom !== undefined && !exact && sample === undefined),
        "a guess goes on, and samples nothing",
      );
      if (resumeFrom === undefined) continue;
      assert(sequences.length === 1, "a step that goes on from a checkpoint is alone in its batch");
      assert(resumeFrom.rowCount === slice.rowCount, "the checkpoint is of another slice");
    }
    assert(rowCount <= this.rowsMax, `${rowCount} rows are more than ${this.rowsMax}`);
    assert(sampledCount <= this.sampledMax, `${sampledCount} sampled rows are more than ${this.sampledMax}`);
    return sequences[0]!.resumeFrom;
  }
}

/** Whether a step that ended early may go on in place: it is alone, nothing was attended around, and what it chose does not depend on what was there. */
function mayHold(sequences: readonly SequenceStep[]): boolean {
  const [first] = sequences;
  return sequences.length === 1 && first!.exact && first!.slice.plan.kind !== "tokens";
}

function results(
  sequences: readonly SequenceStep[],
  sampled: readonly number[],
  readback: StepReadback,
  keeper: CheckpointKeeper,
): SequenceResult[] {
  const samples = sequences.map((): Sample[] => []);
  for (const [i, sequence] of sampled.entries()) samples[sequence]!.push(readback.samples[i]!);
  return sequences.map(({ exact }, index) => {
    const misses = readback.misses.filter((miss) => miss.sliceIndex === index);
    const chosenBlocks = readback.chosenBlocks?.[index];
    const choice = readback.choices?.[index];
    const shared = {
      ...{ misses, traffic: readback.traffic[index]! },
      ...(chosenBlocks && { chosenBlocks }),
      ...(choice && { choice }),
    };
    if (exact && misses.length > 0) {
      const first = misses.reduce((a, b) => (b.layer < a.layer ? b : a)).layer;
      return { ...shared, checkpoint: keeper.take(index, first) };
    }
    const paused = keeper.takePaused();
    if (paused !== undefined) return { ...shared, checkpoint: paused };
    const sample = samples[index]!.pop();
    const draftSamples = samples[index]!;
    return {
      ...(sample === undefined ? {} : { sample }),
      ...(draftSamples.length === 0 ? {} : { draftSamples }),
      ...shared,
    };
  });
}
