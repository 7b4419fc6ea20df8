import type { StepSlice } from "../../kernels/contract.ts";
import type { BlockLayer } from "../kv/block-fetcher.ts";
import type { LogicalBlock } from "../kv/logical-block.ts";

/** What the row at `position` chose for those behind it. */
export interface RunChoice {
  position: number;
  /** As `StepReadback.choices`. */
  bytes: Uint8Array;
}

/** Choices of a slice that is asked for its last run's, as they come in: a step that was void goes on from some layer. */
export interface PendingChoice {
  /** First row of the slice's last run. */
  position: number;
  bytes: Uint8Array | undefined;
  /** Layers before it are known. */
  layer: number;
  /** Every layer has chosen: where nothing is sampled, the last one does not. */
  isWhole: boolean;
}

/** Rows `[from, to)` of a sequence, with the memory they are written to. */
export interface PlannedSlice {
  from: number;
  to: number;
  slice: StepSlice;
  tokens: Uint32Array;
  /** Guesses among them, behind the last known token (drafting.ts). */
  draft: Uint32Array;
  /** Blocks this slice seals, by index; not yet the sequence's. */
  sealing: Map<number, LogicalBlock>;
  /** Slot of each touched block; those in `borrowed` were taken for this slice. */
  slots: Map<number, number>;
  borrowed: Set<number>;
  /** Where rows behind the slice will share its last choice. */
  pending: PendingChoice | undefined;
  /** What it attended around so far: a step that ends before its last layer goes on with these. */
  passedBy: BlockLayer[];
  /** A miss may be attended around (default mode, new tokens); otherwise it voids the step. */
  exact: boolean;
}
