/**
 * The Llama-family forward pass over any device: RMSNorm, grouped-query attention with RoPE over paged KV (append, select, attend), with
 * biases (Qwen2) or norms per head (Qwen3) where the model has them, gated SiLU FFN. One step runs a batch of slices, prefill chunks and decode rows alike.
 */
import type { DeviceBuffer, KvPool, RopeTable, SampleRow, StepRecorder } from "../kernels/contract.ts";
import type { Activations } from "./activations.ts";
import type { CheckpointKeeper } from "./checkpoints.ts";
import type { Checkpoint, ModelConfig, SequenceStep } from "./contract.ts";
import type { LayerWeights, LlamaWeights, Projection } from "./llama-weights.ts";
import type { Observer } from "./observer.ts";

/** What a runner keeps from step to step. */
export interface StepParts {
  config: ModelConfig;
  pool: KvPool;
  weights: LlamaWeights;
  buffers: Activations;
  rope: RopeTable;
  observer: Observer | undefined;
}

/** A row to be sampled: of which sequence, which row of the step, and how. */
interface SampledRow {
  sequence: number;
  row: number;
  params: Omit<SampleRow, "row">;
}

/** What belongs to one step. */
export interface StepContext {
  recorder: StepRecorder;
  keeper: CheckpointKeeper;
  sequences: readonly SequenceStep[];
}

/** Records one step. */
export class LlamaStep {
  readonly #parts: StepParts;
  readonly #recorder: StepRecorder;
  readonly #keeper: CheckpointKeeper;
  readonly #sequences: readonly SequenceStep[];
  /** Where the step ended early: before a layer, or behind its choice, which missed something. */
  #ended: { layer: number; hasChosen: boolean } | undefined;
  readonly #rows: number;
  readonly #sampled: readonly SampledRow[];
  /** Where a guess ends. */
  readonly #guessLayer: number | undefined;

  constructor(parts: StepParts, step: StepContext) {
    const { recorder, keeper, sequences } = step;
    this.#parts = parts;
    this.#recorder = recorder;
    this.#keeper = keeper;
    this.#sequences = sequences;
    this.#guessLayer = sequences[0]?.guessLayer;
    let rows = 0;
    const sampled: SampledRow[] = [];
    sequences.forEach(({ slice, sample, draftSamples = [] }, sequence) => {
      rows += slice.rowCount;
      if (sample === undefined) return;
      const all = [...draftSamples, sample];
      for (const [i, params] of all.entries()) sampled.push({ sequence, row: rows - all.length + i, params });
    });
    this.#rows = rows;
    this.#sampled = sampled;
  }

  /** Returns the sequences whose samples will come back, in that order; one that has several is there as often. */
  record(resumed: Checkpoint | undefined): number[] {
    this.#begin(resumed);
    return this.#run(resumed?.layer ?? 0, false);
  }

  /** It ended before its last layer. */
  get hasEndedEarly(): boolean {
    return this.#ended !== undefined;
  }

  /** Goes on where the step ended early, with what has come since; returns as {@link record} does. Nothing else may have run on the device meanwhile. */
  goOn(): number[] {
    const { layer, hasChosen } = this.#ended!;
    this.#ended = undefined;
    this.#recorder.recheck();
    return this.#run(layer, hasChosen);
  }

  #run(first: number, hasChosen: boolean): number[] {
    const { config, weights, buffers } = this.#parts;
    for (let layer = first; layer < config.layerCount; layer++) {
      const isFirst = layer === first;
      if (!isFirst && this.#keeper.pauses(this.#recorder, layer, buffers.x)) return this.#end(layer, false);
      const isChosen = (isFirst && hasChosen) || this.#choose(layer, weights.layers[layer]!);
      if (layer === this.#guessLayer) return [];
      if (isChosen) {
        this.#keeper.afterSelect(this.#recorder, layer, buffers.x);
        if (this.#keeper.allVoid(this.#recorder)) return this.#end(layer, true);
        this.#attend(layer, weights.layers[layer]!);
      }
      if (layer + 1 < config.layerCount) this.#ffn(weights.layers[layer]!, buffers.x, this.#rows);
    }
    if (this.#sampled.length === 0) return [];
    this.#finish(weights.layers[config.layerCount - 1]!);
    return this.#sampled.map(({ sequence }) => sequence);
  }

  #end(layer: number, hasChosen: boolean): number[] {
    this.#ended = { layer, hasChosen };
    return [];
  }

  #begin(resumed: Checkpoint | undefined): void {
    const { config, weights, buffers } = this.#parts;
    if (resumed !== undefined) {
      const rows = this.#rows;
      this.#recorder.copyRows({ out: buffers.x, outRow: 0, x: resumed.buffer, xRow: 0, rows, width: config.width });
      return;
    }
    const tokens = new Uint32Array(this.#rows);
    let row = 0;
    for (const sequence of this.#sequences) {
      tokens.set(sequence.tokens, row);
      row += sequence.tokens.length;
    }
    this.#recorder.embed({ out: buffers.x, table: weights.embeddings, tokens });
  }

  /** Up to the choice of what is attended to; `x` still is the layer's input. False where nothing of the layer is wanted but its KV. */
  #choose(layer: number, weights: LayerWeights): boolean {
    const { config, pool, buffers, rope, observer } = this.#parts;
    const { x, normed, query: q, key: k, value: v } = buffers;
    const { headCount } = config;
    const rows = this.#rows;
    const recorder = this.#recorder;
    observer?.hidden(recorder, { layer, x, rows });
    const projections = [[q, weights.query] as const, [k, weights.key] as const, [v, weights.value] as const];
    // Before the norm: a GPU makes one dispatch of products that follow each other, and one of the norm and their input's codes.
    for (const [out, projection] of projections) if (projection.norm === undefined) this.#bias(out, projection);
    recorder.rmsNorm({ out: normed, x, weight: weights.attentionNorm, rows, width: config.width, eps: config.normEps });
    for (const [out, projection] of projections) this.#project(out, projection);
    recorder.append({ pool, layer, headCount, q, k, v, rope });
    // Where no row is sampled, the last layer leaves nothing behind but its KV: it need not wait for blocks either.
    const last = layer + 1 === config.layerCount;
    if (last && this.#sampled.length === 0 && layer !== this.#guessLayer) return false;
    recorder.select({ pool, layer, headCount, q });
    return true;
  }

  /** Up to the heads' outputs in `attended`, which inner layers add to `x`. */
  #attend(layer: number, weights: LayerWeights): void {
    const { config, pool, buffers } = this.#parts;
    const { x, query: q, attended } = buffers;
    this.#recorder.attend({ pool, layer, headCount: config.headCount, q, out: attended });
    if (layer + 1 === config.layerCount) return;
    const rows = this.#rows;
    this.#recorder.matmul({ out: x, x: attended, matrix: weights.output, rows, accumulate: true });
  }

  /**
   * `out = normed . matrix^T + bias`, each head then normed where the model does that. Uses `attended`, which nobody needs yet. Where there is no norm
   * `out` holds the bias already.
   */
  #project(out: DeviceBuffer, projection: Projection): void {
    const { matrix, bias, norm } = projection;
    const { config, buffers } = this.#parts;
    const { headDim, normEps: eps } = config;
    const rows = this.#rows;
    const raw = norm === undefined ? out : buffers.attended;
    if (norm !== undefined) this.#bias(raw, projection);
    this.#recorder.matmul({ out: raw, x: buffers.normed, matrix, rows, accumulate: bias !== undefined });
    if (norm === undefined) return;
    const headRows = (rows * matrix.outWidth) / headDim;
    this.#recorder.rmsNorm({ out, x: raw, weight: norm, rows: headRows, width: headDim, eps });
  }

  /** Every row of a projection's result begins as its bias, where it has one. */
  #bias(out: DeviceBuffer, { matrix, bias }: Projection): void {
    if (bias === undefined) return;
    this.#recorder.gatherRows({ out, x: bias, indices: new Uint32Array(this.#rows), width: matrix.outWidth });
  }

  #ffn(weights: LayerWeights, x: Activations["x"], rows: number): void {
    const { config, buffers } = this.#parts;
    const { normed, gate, up } = buffers;
    const recorder = this.#recorder;
    recorder.rmsNorm({ out: normed, x, weight: weights.ffnNorm, rows, width: config.width, eps: config.normEps });
    recorder.matmul({ out: gate, x: normed, matrix: weights.gate, rows });
    recorder.matmul({ out: up, x: normed, matrix: weights.up, rows });
    recorder.siluMul({ out: gate, gate, up, rows, width: config.ffnWidth });
    recorder.matmul({ out: x, x: gate, matrix: weights.down, rows, accumulate: true });
  }

  /** The last layer after its attention, final norm, logits and samples, for the sampled rows only. */
  #finish(weights: LayerWeights): void {
    const { config, buffers, weights: model, observer } = this.#parts;
    const { sampledX: x, sampledAttended, normed, logits } = buffers;
    const { width } = config;
    const recorder = this.#recorder;
    const indices = Uint32Array.from(this.#sampled, ({ row }) => row);
    const rows = indices.length;
    recorder.gatherRows({ out: x, x: buffers.x, indices, width });
    recorder.gatherRows({
      out: sampledAttended,
      x: buffers.attended,
      indices,
      width: config.headCount * config.headDim,
    });
    recorder.matmul({ out: x, x: sampledAttended, matrix: weights.output, rows, accumulate: true });
    this.#ffn(weights, x, rows);
    recorder.rmsNorm({ out: normed, x, weight: model.finalNorm, rows, width, eps: config.normEps });
    observer?.hidden(recorder, { layer: config.layerCount, x: normed, rows });
    recorder.matmul({ out: logits, x: normed, matrix: model.head, rows });
    observer?.logits(recorder, { x: logits, rows });
    recorder.sample({ logits, width: config.vocabularySize, rows: this.#sampleRows() });
  }

  #sampleRows(): SampleRow[] {
    return this.#sampled.map(({ params }, row) => ({ ...params, row }));
  }
}
