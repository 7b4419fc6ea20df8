/**
 * Choices that several rows of a reply share (`reuse`). The rows of a run choose by its first; the choice lives here, on the host, from the step
 * that made it to those that follow, so that a device keeps nothing of a sequence between steps. A row whose choice is not at hand (the
 * sequence was resumed, or guessed too far) has its run computed again from the first row: the same rows give the same bytes.
 */
import type { SequenceResult } from "../../models/contract.ts";
import type { PlannedSlice } from "./planned-slice.ts";
import type { Sequence } from "./sequence.ts";

/** The row that chooses for `position`, which is selected under a policy with runs. */
export function runStart(sequence: Sequence, position: number, run: number): number {
  return Math.max(sequence.spans.stretch(position).start, position - (position % run));
}

/** The first row that must be computed next: the first without KV, or the one that chooses for it where that choice is not at hand. */
export function firstRow(sequence: Sequence): number | undefined {
  const position = sequence.nextPosition;
  if (position === undefined) return undefined;
  const way = sequence.wayAt(position);
  if (way === undefined || way.runTokens === 1 || position < way.budgetTokens) return position;
  const start = runStart(sequence, position, way.runTokens);
  return start === position || sequence.choice?.position === start ? position : start;
}

/** Most guesses behind the row at `position`: of the run that follows its own the choice comes back, of later ones it would be lost. */
export function draftEnd(sequence: Sequence, position: number): number {
  const { runTokens: run } = sequence.wayAt(position) ?? { runTokens: 1 };
  return run === 1 ? Number.POSITIVE_INFINITY : (Math.floor(position / run) + 2) * run;
}

/** Takes in what a step, or what ran of it, reported of a slice's last run. */
export function collectChoice({ pending, slice }: PlannedSlice, result: SequenceResult): void {
  const { choice, checkpoint, sample } = result;
  if (pending === undefined || choice === undefined) return;
  pending.bytes ??= new Uint8Array(choice.length);
  const layerBytes = (choice.length * slice.blockCapacity) / slice.blockIds.length;
  pending.bytes.set(choice.subarray(pending.layer * layerBytes), pending.layer * layerBytes);
  pending.layer = checkpoint?.layer ?? pending.layer;
  pending.isWhole = sample !== undefined;
}

/** Keeps the choice of a slice's last run for the rows that follow; not if the run's first row was a wrong guess. */
export function keepChoice(sequence: Sequence, { pending, to }: Pick<PlannedSlice, "pending" | "to">): void {
  if (!pending?.isWhole || pending.bytes === undefined || pending.position >= to) return;
  sequence.choice = { position: pending.position, bytes: pending.bytes };
}
