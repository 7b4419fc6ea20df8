/** What a query group attends to as bytes that go from one step to the next (`StepSlice.choice`, `StepReadback.choices`). */
import { assert } from "../protocol/assert.ts";
import { BLOCK_TOKENS, type KvPoolSpec, type StepReadback, type StepSlice } from "./contract.ts";
import { type SelectingPlan, selectsPerLayer } from "./page-range.ts";

/** Rows of bytes: one per layer and choice, a byte for every block before the own one of the rows that share it. */
export interface ChoiceShape {
  layerCount: number;
  /** 1 where one choice serves all KV heads. */
  choiceCount: number;
  blockCount: number;
  bytes: number;
}

type HeadShape = Pick<KvPoolSpec, "layerCount" | "kvHeadCount">;

/** The shape of the choice of rows at `position` and the other positions of its block. */
export function choiceShape(
  { layerCount, kvHeadCount }: HeadShape,
  plan: SelectingPlan,
  position: number,
): ChoiceShape {
  const choiceCount = selectsPerLayer(plan) ? 1 : kvHeadCount;
  const blockCount = Math.floor(position / BLOCK_TOKENS);
  return { layerCount, choiceCount, blockCount, bytes: layerCount * choiceCount * blockCount };
}

/** The bytes of one layer and choice; a view. */
export function choiceRow(choice: Uint8Array, shape: ChoiceShape, layer: number, index: number): Uint8Array {
  const from = (layer * shape.choiceCount + index) * shape.blockCount;
  return choice.subarray(from, from + shape.blockCount);
}

/** Position of a slice's last row. */
function lastPosition({ position, rowCount }: Pick<StepSlice, "position" | "rowCount">): number {
  return position + rowCount - 1;
}

/** The choices that the slices of a step ask for: see `StepReadback.choices`. */
export class StepChoices {
  readonly #slices: readonly StepSlice[];
  readonly #choices: ({ shape: ChoiceShape; bytes: Uint8Array } | undefined)[];

  constructor(slices: readonly StepSlice[]) {
    this.#slices = slices;
    this.#choices = slices.map(() => undefined);
  }

  /** A layer selects: from now on there is a choice for every slice that asked, nothing at first. */
  begin(spec: HeadShape): void {
    this.#slices.forEach((slice, index) => {
      if (slice.reportChoice !== true || slice.plan.kind === "dense") return;
      const shape = choiceShape(spec, slice.plan, lastPosition(slice));
      this.#choices[index] ??= { shape, bytes: new Uint8Array(shape.bytes) };
    });
  }

  /** Where to write what a slice that asked attends to in one layer. */
  row(sliceIndex: number, layer: number, index: number): Uint8Array {
    const choice = this.#choices[sliceIndex];
    assert(choice !== undefined, `slice ${sliceIndex} did not ask for its choice`);
    return choiceRow(choice.bytes, choice.shape, layer, index);
  }

  /** What a readback carries: nothing where no slice asked. */
  list(): Pick<StepReadback, "choices"> {
    const choices = this.#choices.map((choice) => choice?.bytes.slice());
    return choices.some((bytes) => bytes !== undefined) ? { choices } : {};
  }
}
