/** Keeps the inputs of layers in which an exact sequence may find a block missing. */
import {
  BLOCK_TOKENS,
  type Device,
  type DeviceBuffer,
  NOT_RESIDENT,
  type StepRecorder,
  type StepSlice,
} from "../kernels/contract.ts";
import { choosingLayer } from "../kernels/page-range.ts";
import { assert } from "../protocol/assert.ts";
import type { Checkpoint } from "./contract.ts";

/** A sequence of a step, as the keeper sees it. */
export interface KeptSequence {
  slice: StepSlice;
  exact: boolean;
  /** It is alone, and pauses between layers. */
  pauses?: boolean;
  /** It is alone, and ends before this layer. */
  layerEnd?: number | undefined;
}

interface Kept {
  layer: number;
  buffer: DeviceBuffer;
}

/**
 * One per step. On a device that tells at once whether a slice has missed, rows are copied only then, while they still are the
 * layer's input; on others they are copied at every layer that has a sealed block which is not resident. Where layers take over the choice
 * of an earlier one, a step goes on from the one that chose: its input is copied if any of them may miss.
 */
export class CheckpointKeeper {
  readonly #device: Device;
  readonly #width: number;
  #sequences: readonly KeptSequence[] = [];
  /** Per sequence: which layers may miss; undefined where none may, or nobody asked. */
  #mayMiss: (boolean[] | undefined)[] = [];
  readonly #kept: Kept[][];
  /** Sequences known to have missed: what they go on from is kept. */
  readonly #missed = new Set<number>();
  #paused: Kept | undefined;

  constructor(device: Device, width: number, sequences: readonly KeptSequence[]) {
    this.#device = device;
    this.#width = width;
    this.#kept = sequences.map(() => []);
    this.#follow(sequences);
  }

  /** The step, of one sequence, goes on where it ended early; what it was to go on from is the keeper's again. */
  goOn(sequence: KeptSequence, { layer, buffer }: Checkpoint): void {
    this.#missed.clear();
    this.#kept[0]!.push({ layer, buffer });
    this.#follow([sequence]);
  }

  #follow(sequences: readonly KeptSequence[]): void {
    this.#sequences = sequences;
    this.#mayMiss = sequences.map(({ slice, exact }) => (exact ? layersThatMayMiss(slice) : undefined));
  }

  /** Call between `select` of a layer and the first op that changes `x`, which holds the layer's input, slices in order. */
  afterSelect(recorder: StepRecorder, layer: number, x: DeviceBuffer): void {
    let row = 0;
    this.#sequences.forEach(({ slice }, index) => {
      const firstRow = row;
      row += slice.rowCount;
      if (this.#mayMiss[index]?.[layer] !== true) return;
      const missed = recorder.hasMissed(index);
      const kept = this.#kept[index]!;
      if (missed === false) {
        if (startLayer(slice, layer) !== layer) return;
        // Nothing was missed up to here: what an earlier layer kept is not needed any more.
        for (const { buffer } of kept.splice(0)) this.#device.release(buffer);
        if (!servesOthers(slice, layer)) return;
      } else if (missed === true) {
        const isFirst = !this.#missed.has(index);
        this.#missed.add(index);
        if (!isFirst || kept[0]?.layer === startLayer(slice, layer)) return;
      }
      const buffer = this.#device.buffer(`checkpoint.${layer}`, slice.rowCount * this.#width * 4);
      kept.push({ layer, buffer });
      recorder.copyRows({ out: buffer, outRow: 0, x, xRow: firstRow, rows: slice.rowCount, width: this.#width });
    });
  }

  /**
   * Whether the step ends before this layer, whose input `x` holds, to go on with what has come meanwhile: it must not go further, or it asked for that, the layer may
   * miss a block, and it is known that nothing was missed so far. Not between a layer and one that takes over its choice.
   */
  pauses(recorder: StepRecorder, layer: number, x: DeviceBuffer): boolean {
    const [only] = this.#sequences;
    if (only === undefined || startLayer(only.slice, layer) !== layer) return false;
    const mustEnd = only.layerEnd !== undefined && layer >= only.layerEnd;
    const mayPause = only.pauses === true && this.#mayMiss[0]?.[layer] === true;
    if (!mustEnd && !(mayPause && recorder.hasMissed(0) === false)) return false;
    const rows = only.slice.rowCount;
    const buffer = this.#device.buffer(`checkpoint.${layer}`, rows * this.#width * 4);
    this.#paused = { layer, buffer };
    recorder.copyRows({ out: buffer, outRow: 0, x, xRow: 0, rows, width: this.#width });
    return true;
  }

  /** Hands over where the step paused, if it did. */
  takePaused(): Checkpoint | undefined {
    const paused = this.#paused;
    this.#paused = undefined;
    return paused && { ...paused, rowCount: this.#sequences[0]!.slice.rowCount };
  }

  /** True where going on would compute nothing that anybody uses: every sequence is exact and is known to have missed. */
  allVoid(recorder: StepRecorder): boolean {
    return this.#sequences.every(({ exact }, index) => exact && recorder.hasMissed(index) === true);
  }

  /**
   * Hands over what the step goes on from, the input of the layer that chose for `missedLayer`, the first at which this sequence missed; the
   * rest of its rows go with {@link release}.
   */
  take(index: number, missedLayer: number): Checkpoint {
    const kept = this.#kept[index]!;
    const layer = startLayer(this.#sequences[index]!.slice, missedLayer);
    const position = kept.findIndex((entry) => entry.layer === layer);
    assert(position >= 0, `layer ${layer} missed a block and its input was not kept`);
    const [entry] = kept.splice(position, 1);
    return { layer, rowCount: this.#sequences[index]!.slice.rowCount, buffer: entry!.buffer };
  }

  /** Frees every buffer that was not taken. Call once the step has been submitted, or has failed. */
  release(): void {
    if (this.#paused !== undefined) this.#device.release(this.#paused.buffer);
    for (const kept of this.#kept) for (const { buffer } of kept.splice(0)) this.#device.release(buffer);
  }
}

/** Only blocks before the slice's first row can be missing: later ones are sealed by the step itself. */
function layersThatMayMiss(slice: StepSlice): boolean[] | undefined {
  const sealedCount = Math.floor(slice.position / BLOCK_TOKENS);
  if (sealedCount === 0) return undefined;
  const layerCount = slice.blockIds.length / slice.blockCapacity;
  const mayMiss = Array.from({ length: layerCount }, (_, layer) => {
    const start = layer * slice.blockCapacity;
    return slice.blockIds.subarray(start, start + sealedCount).includes(NOT_RESIDENT);
  });
  for (const [layer, may] of mayMiss.entries()) if (may) mayMiss[startLayer(slice, layer)] = true;
  return mayMiss.includes(true) ? mayMiss : undefined;
}

/** From which layer a step goes on that missed at `layer`. */
function startLayer({ plan }: StepSlice, layer: number): number {
  return choosingLayer(plan, layer) ?? layer;
}

/** Whether other layers take over what this one chooses. */
function servesOthers({ plan }: StepSlice, layer: number): boolean {
  return choosingLayer(plan, layer) === layer && choosingLayer(plan, layer + 1) === layer;
}
