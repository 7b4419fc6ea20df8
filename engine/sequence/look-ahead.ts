/**
 * While a resumed sequence waits for the blocks that a layer chose, the device has nothing to do: it goes on with what is there, to guess what the
 * next layers will choose, and those blocks are read along with what is waited for (after InfiniGen, arXiv 2406.19707, but with the next
 * layers' own queries as they come out around the missing pages). The real step corrects the guess: nothing of it is kept but the blocks that came.
 */
import { NOT_RESIDENT } from "../../kernels/contract.ts";
import { DeviceLostError } from "../../kernels/device-lost.ts";
import { choosingLayer } from "../../kernels/page-range.ts";
import type { Checkpoint, ModelRunner, SequenceResult, SequenceStep } from "../../models/contract.ts";
import type { BlockCache } from "../kv/block-cache.ts";
import type { BlockLayer } from "../kv/block-fetcher.ts";
import type { Clock } from "../settings.ts";
import type { Residency } from "./residency.ts";
import type { Sequence, SuspendedStep } from "./sequence.ts";
import { fillTables } from "./slice-planner.ts";
import { lacksSummaries, summaryLayerEnd } from "./summary-layers.ts";

/**
 * Layers of one guess: at most so many, since each is guessed from the guesses before it; and at least so many. A step that nobody guessed for goes on in place
 * (llama.ts) and does not choose again, which is worth about what is gained by knowing the next layer only.
 */
const LAYERS_MAX = 8;
const LAYERS_MIN = 2;
/** Of a layer's time: projections and choice. */
const CHOICE_SHARE = 0.5;
/** A guess may take this share of the store's latency: what it delays must be less than what it saves. */
const LATENCY_SHARE = 0.75;

/** What it works with; all of it stays the engine's. */
export interface LookAheadOptions {
  runner: Pick<ModelRunner, "step">;
  cache: Pick<BlockCache, "during">;
  residency: Pick<Residency, "fetch">;
  clock: Pick<Clock, "nowMs">;
  /** What a read takes at least; undefined: not known yet. */
  latencyMs(): number | undefined;
  /** Told of every guess: up to which layer, and how many blocks were asked for. */
  onGuess(sequence: Sequence, layer: number, blockCount: number): void;
  /** Ends one sequence with an error; the others go on. */
  fail(sequence: Sequence, error: unknown): void;
}

/** A step that waits, and how far is to be guessed. */
interface Guess {
  sequence: Sequence;
  suspended: SuspendedStep;
  toLayer: number;
}

/** Guesses for all sequences of an engine. */
export class LookAhead {
  readonly #options: LookAheadOptions;
  /** What a layer took in the last step that ended within the model. */
  #layerMs: number | undefined;

  constructor(options: LookAheadOptions) {
    this.#options = options;
  }

  /** Runs a step, of which the caller holds the memory, and takes its time. */
  async step(steps: readonly SequenceStep[]): Promise<SequenceResult[]> {
    const { runner, clock } = this.#options;
    const startMs = clock.nowMs();
    const results = await runner.step(steps);
    const [step, result] = [steps[0], results[0]];
    if (steps.length === 1 && result?.checkpoint)
      this.#note(step?.resumeFrom, result.checkpoint, clock.nowMs() - startMs);
    return results;
  }

  /** Each step says it anew: a slow one is forgotten with the next. */
  #note(from: Checkpoint | undefined, to: Checkpoint, ms: number): void {
    const layers = from === undefined ? to.layer + CHOICE_SHARE : to.layer - from.layer;
    if (layers > 0) this.#layerMs = ms / layers;
  }

  /**
   * One guess for one of the sequences that wait in the middle of a step; false where there is none to make, or a guess would take too long. To be
   * called between steps, when no sequence could run.
   * @throws {DeviceLostError}
   */
  async guess(active: Iterable<Sequence>): Promise<boolean> {
    const layersMax = this.#layersMax();
    for (const sequence of layersMax === 0 ? [] : active) {
      const { suspended } = sequence;
      if (suspended === undefined || sequence.phase !== "waiting" || sequence.workingSet) continue;
      const toLayer = lacksSummaries(sequence, suspended) ? undefined : lastToGuess(sequence, suspended, layersMax);
      if (toLayer === undefined) continue;
      try {
        await this.#guess({ sequence, suspended, toLayer });
      } catch (error) {
        if (error instanceof DeviceLostError) throw error;
        this.#options.fail(sequence, error);
      }
      return true;
    }
    return false;
  }

  /** As many as fit into the latency. Of a store or a device of which nothing is known yet, one layer is guessed. */
  #layersMax(): number {
    const latencyMs = this.#options.latencyMs();
    if (latencyMs === undefined || this.#layerMs === undefined) return 1;
    const layers = Math.min(LAYERS_MAX, Math.floor((LATENCY_SHARE * latencyMs) / this.#layerMs));
    return layers < LAYERS_MIN ? 0 : layers;
  }

  async #guess({ sequence, suspended, toLayer }: Guess): Promise<void> {
    const { cache, runner, residency, onGuess } = this.#options;
    const { planned, checkpoint } = suspended;
    const knownLayer = suspended.guessedLayer;
    suspended.guessedLayer = Number.POSITIVE_INFINITY;
    fillTables(sequence, planned);
    const { reportBlocks: _blocks, reportChoice: _choice, ...slice } = planned.slice;
    const [result] = await cache.during(() =>
      runner.step([{ slice, tokens: planned.tokens, exact: false, resumeFrom: checkpoint, guessLayer: toLayer }]),
    );
    const wanted = (result?.misses ?? []).flatMap(({ block: index, layer }): BlockLayer[] => {
      const block = sequence.blocks[index];
      return block && layer > knownLayer && block.deviceBlocks[layer] === NOT_RESIDENT ? [{ block, layer }] : [];
    });
    onGuess(sequence, toLayer, wanted.length);
    void residency.fetch(sequence, wanted, "demand");
  }
}

/** Up to where a step is guessed that has not been yet. The last layer chooses nothing for rows of which none is sampled. */
function lastToGuess(sequence: Sequence, suspended: SuspendedStep, layersMax: number): number | undefined {
  const { planned, guessedLayer } = suspended;
  const { plan, blockIds, blockCapacity } = planned.slice;
  const samples = planned.to - planned.draft.length === sequence.tokenCount && sequence.finishReason === undefined;
  const layerEnd = summaryLayerEnd(sequence, planned) ?? Number.POSITIVE_INFINITY;
  const choosingEnd = Math.min(layerEnd, blockIds.length / blockCapacity - (samples ? 0 : 1));
  let last: number | undefined;
  for (let layer = guessedLayer + 1; layer < Math.min(choosingEnd, guessedLayer + 1 + layersMax); layer++)
    if (choosingLayer(plan, layer) === layer) last = layer;
  return last;
}
