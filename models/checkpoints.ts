/** Keeps the inputs of layers in which an exact sequence may find a block missing. */
import {
  BLOCK_TOKENS,
  type Device,
  type DeviceBuffer,
  NOT_RESIDENT,
  type StepRecorder,
  type StepSlice,
} from "../kernels/contract.ts";
import { assert } from "../protocol/assert.ts";
import type { Checkpoint } from "./contract.ts";

/** A sequence of a step, as the keeper sees it. */
export interface KeptSequence {
  slice: StepSlice;
  exact: boolean;
}

interface Kept {
  layer: number;
  buffer: DeviceBuffer;
}

/**
 * One per step. On a device that tells at once whether a slice has missed, rows are copied only then, while they still are the
 * layer's input; on others they are copied at every layer that has a sealed block which is not resident.
 */
export class CheckpointKeeper {
  readonly #device: Device;
  readonly #width: number;
  readonly #sequences: readonly KeptSequence[];
  /** Per sequence: which layers may miss; undefined where none may, or nobody asked. */
  readonly #mayMiss: (boolean[] | undefined)[];
  readonly #kept: Kept[][];

  constructor(device: Device, width: number, sequences: readonly KeptSequence[]) {
    this.#device = device;
    this.#width = width;
    this.#sequences = sequences;
    this.#mayMiss = sequences.map(({ slice, exact }) => (exact ? layersThatMayMiss(slice) : undefined));
    this.#kept = sequences.map(() => []);
  }

  /** Call between `select` of a layer and the first op that changes `x`, which holds the layer's input, slices in order. */
  afterSelect(recorder: StepRecorder, layer: number, x: DeviceBuffer): void {
    let row = 0;
    this.#sequences.forEach(({ slice }, index) => {
      const firstRow = row;
      row += slice.rowCount;
      if (this.#mayMiss[index]?.[layer] !== true) return;
      const missed = recorder.hasMissed(index);
      if (missed === false || (missed === true && this.#kept[index]!.length > 0)) return;
      const buffer = this.#device.buffer(`checkpoint.${layer}`, slice.rowCount * this.#width * 4);
      this.#kept[index]!.push({ layer, buffer });
      recorder.copyRows({ out: buffer, outRow: 0, x, xRow: firstRow, rows: slice.rowCount, width: this.#width });
    });
  }

  /** True where going on would compute nothing that anybody uses: every sequence is exact and is known to have missed. */
  allVoid(recorder: StepRecorder): boolean {
    return this.#sequences.every(({ exact }, index) => exact && recorder.hasMissed(index) === true);
  }

  /** Hands over the input of `layer`, the first at which this sequence missed; the rest of its rows go with {@link release}. */
  take(index: number, layer: number): Checkpoint {
    const kept = this.#kept[index]!;
    const position = kept.findIndex((entry) => entry.layer === layer);
    assert(position >= 0, `layer ${layer} missed a block and its input was not kept`);
    const [entry] = kept.splice(position, 1);
    return { layer, rowCount: this.#sequences[index]!.slice.rowCount, buffer: entry!.buffer };
  }

  /** Frees every buffer that was not taken. Call once the step has been submitted, or has failed. */
  release(): void {
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
  return mayMiss.includes(true) ? mayMiss : undefined;
}
