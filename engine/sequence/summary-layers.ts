/** Up to which layer a sequence's blocks can be scored, while their summaries come in layer by layer. */
import { BLOCK_TOKENS } from "../../kernels/contract.ts";
import { scoringLayers } from "../../kernels/page-range.ts";
import type { LayeredSummaries } from "../kv/layered-summaries.ts";
import type { PlannedPart } from "../schedule/step-planner.ts";
import type { PlannedSlice } from "./planned-slice.ts";
import type { Sequence, SuspendedStep } from "./sequence.ts";
import { discardSlice, fillTables, rowNeeds, scoredKind } from "./slice-planner.ts";

/** First layer that a slice's rows score and whose summaries some block before them lacks as yet; undefined: they have those of all that are scored. */
export function summaryLayerEnd(
  sequence: Sequence,
  { slice, to }: Pick<PlannedSlice, "slice" | "to">,
): number | undefined {
  const kind = scoredKind(slice.plan);
  if (kind === undefined) return undefined;
  const incoming = new Set<LayeredSummaries>();
  for (const block of sequence.blocks.slice(0, Math.ceil(to / BLOCK_TOKENS)))
    if (block?.incoming?.kind === kind) incoming.add(block.incoming);
  if (incoming.size === 0) return undefined;
  const scored = scoringLayers(slice.plan, slice.blockIds.length / slice.blockCapacity);
  const lacking = Array.from(incoming, (summaries) => summaries.firstLacking(scored) ?? Number.POSITIVE_INFINITY);
  const end = Math.min(...lacking);
  return end === Number.POSITIVE_INFINITY ? undefined : end;
}

/** A suspended step cannot go on: what was on its way to its blocks did not come. */
export function lacksSummaries(sequence: Sequence, { planned, checkpoint }: SuspendedStep): boolean {
  const { slice, to } = planned;
  if (scoredKind(slice.plan) === undefined) return false;
  const layerEnd = summaryLayerEnd(sequence, planned) ?? Number.POSITIVE_INFINITY;
  return rowNeeds(sequence, { plan: slice.plan, to }).length > 0 || checkpoint.layer >= layerEnd;
}

/** What is on its way to a sequence's blocks. */
export function incomingSummaries(sequence: Sequence): LayeredSummaries[] {
  const all = new Set<LayeredSummaries>();
  for (const block of sequence.blocks) if (block?.incoming) all.add(block.incoming);
  return [...all];
}

/** Where the memory of slices goes back to. */
type SliceOwners = Parameters<typeof discardSlice>[1];

/**
 * Runs the parts of a step, in batches where it must be, by `run`. The memory of those that a batch before them has made impossible is given back; where a
 * batch fails, that of all behind it.
 */
export async function runInBatches(
  parts: readonly PlannedPart[],
  owners: SliceOwners,
  run: (batch: readonly PlannedPart[]) => Promise<void>,
): Promise<void> {
  const batches = batchesOf(parts);
  for (const [at, batch] of batches.entries()) {
    try {
      const ready = stillReady(batch, owners, at === 0);
      if (ready.length > 0) await run(ready);
    } catch (error) {
      for (const { slice } of batches.slice(at + 1).flat()) discardSlice(slice, owners);
      throw error;
    }
  }
}

/**
 * What of a batch can still run, with its tables as they must be now: since it was planned, another may have been given memory that was its own, if its context
 * is larger than the pool; a batch before it may have moved summaries; and summaries on their way may not have come. The others are given back, to be planned anew.
 */
function stillReady(parts: readonly PlannedPart[], owners: SliceOwners, isFirst: boolean): PlannedPart[] {
  const ready: PlannedPart[] = [];
  for (const part of parts) {
    const { sequence, slice } = part;
    if (rowNeeds(sequence, { plan: slice.slice.plan, to: slice.to }).length > 0) discardSlice(slice, owners);
    else ready.push(part);
  }
  for (const { sequence, slice } of ready) if (sequence.workingSet || !isFirst) fillTables(sequence, slice);
  return ready;
}

/** Parts of a step that may run together: one whose blocks have not all of their summaries ends early, and is alone. */
function batchesOf(parts: readonly PlannedPart[]): (readonly PlannedPart[])[] {
  const alone = parts.filter(({ sequence, slice }) => summaryLayerEnd(sequence, slice) !== undefined);
  const together = parts.filter((part) => !alone.includes(part));
  return [together, ...alone.map((part) => [part])].filter(({ length }) => length > 0);
}
