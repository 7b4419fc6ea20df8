/**
 * Decides which rows of a sequence the next step computes, and gathers what the device must know about them. A slice never crosses the
 * border of a span, of a gap, of the budget (below it everything is dense), or the middle of a query group.
 */
import {
  BLOCK_TOKENS,
  NOT_RESIDENT,
  type SelectionPlan,
  type StepSlice,
  type SummaryKind,
} from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { BlockCache } from "../kv/block-cache.ts";
import { isScoredBy, type LogicalBlock } from "../kv/logical-block.ts";
import type { OpenBlocks } from "../kv/open-blocks.ts";
import { groupStarts } from "../kv/provenance.ts";
import type { PendingChoice, PlannedSlice } from "./planned-slice.ts";
import { firstRow, keepChoice, runStart } from "./runs.ts";
import type { Sequence } from "./sequence.ts";

const NO_DRAFT = new Uint32Array(0);

/** The rows that would come next: a span piece with one plan. */
export interface RowRange {
  from: number;
  to: number;
  plan: SelectionPlan;
  /** Rows of a query group, or of a run. */
  groupTokens: number;
  /** Rows share choices as runs do (runs.ts): the first of each group chooses. */
  inRuns: boolean;
  /** Guesses behind the last known token; `to` counts them. They lie in the block that is being filled and do not fill it. */
  draft?: Uint32Array;
  /** Tokens of an earlier turn, computed again. */
  replay: boolean;
}

/**
 * The next rows of a sequence, at most `rowsMax` and no more than fit into `slotsMax` further open slots; undefined when nothing is
 * left or a whole query group does not fit. Where the choice that the first of them follows is not at hand, they begin at the row that makes it.
 */
export function nextRows(
  sequence: Sequence,
  rowsMax: number,
  slotsMax: number = Number.POSITIVE_INFINITY,
): RowRange | undefined {
  const from = firstRow(sequence);
  if (from === undefined || rowsMax < 1) return undefined;
  const how = sequence.wayAt(from);
  const selected = how !== undefined && from >= how.budgetTokens;
  const run = selected ? how.runTokens : 1;
  const inRuns = run > 1;
  const span = inRuns ? sequence.spans.stretch(from) : sequence.spans.at(from);
  const groupTokens = inRuns ? run : (how?.groupTokens ?? 1);
  let to = Math.min(span.end, gapEnd(sequence, from), from + rowsMax);
  to = Math.min(to, slotsEnd(sequence, { from, to }, slotsMax));
  if (sequence.workingSet) {
    const groupEnd = (Math.floor(from / groupTokens) + sequence.workingSet.groupsMax) * groupTokens;
    to = Math.min(to, from + LIMITS.looseRowsMax, selected ? groupEnd : to);
  }
  if (how && !selected) to = Math.min(to, how.budgetTokens);
  if (selected && groupTokens > 1 && to < span.end && to % groupTokens !== 0) to -= to % groupTokens;
  if (to <= from) return undefined;
  return {
    from,
    to,
    plan: selected ? how.plan : { kind: "dense" },
    groupTokens: selected ? groupTokens : BLOCK_TOKENS,
    inRuns,
    replay: from < sequence.request.turnStart,
  };
}

function gapEnd(sequence: Sequence, from: number): number {
  let index = Math.floor(from / BLOCK_TOKENS) + 1;
  while (index * BLOCK_TOKENS < sequence.tokenCount && !sequence.blocks[index] && !sequence.opens.has(index))
    index += 1;
  return Math.min(index * BLOCK_TOKENS, sequence.tokenCount);
}

/** First token that `slotsMax` open slots beside the sequence's own do not reach. */
function slotsEnd(sequence: Sequence, rows: { from: number; to: number }, slotsMax: number): number {
  let slotsLeft = slotsMax;
  let index = Math.floor(rows.from / BLOCK_TOKENS);
  for (; index * BLOCK_TOKENS < rows.to; index++) {
    if (sequence.opens.has(index)) continue;
    if (slotsLeft === 0) break;
    slotsLeft -= 1;
  }
  return index * BLOCK_TOKENS;
}

/** What a slice writes to. */
type SliceMemory = Pick<PlannedSlice, "sealing" | "slots" | "borrowed">;

/** Where slices take their memory from, and what the pool writes into it. */
export interface PlanMemory {
  cache: BlockCache;
  opens: OpenBlocks;
  layerCount: number;
  /** Kinds that sealing a block writes. */
  summaryKinds: readonly SummaryKind[];
}

function takeMemory(sequence: Sequence, rows: RowRange, memory: PlanMemory): SliceMemory {
  const taken: SliceMemory = { sealing: new Map(), slots: new Map(), borrowed: new Set() };
  try {
    for (let index = Math.floor(rows.from / BLOCK_TOKENS); index * BLOCK_TOKENS < rows.to; index++) {
      const open = sequence.opens.get(index);
      taken.slots.set(index, open?.slot ?? memory.opens.take());
      if (!open) taken.borrowed.add(index);
      if ((index + 1) * BLOCK_TOKENS > rows.to) continue;
      const block = memory.cache.create(index);
      taken.sealing.set(index, block);
      for (const kind of memory.summaryKinds) block.summaries.add(kind);
      memory.cache.allocateAll(block);
    }
  } catch (error) {
    discardSlice(taken, memory);
    throw error;
  }
  return taken;
}

/** Takes the memory for a range of rows and describes it for the device. Where it throws, it has taken nothing. */
export function planSlice(sequence: Sequence, rows: RowRange, memory: PlanMemory): PlannedSlice {
  const { from, to, draft = NO_DRAFT } = rows;
  const { sealing, slots, borrowed } = takeMemory(sequence, rows, memory);
  const blockCapacity = Math.ceil(to / BLOCK_TOKENS);
  const { run, pending } = planRuns(sequence, rows);
  const slice: StepSlice = {
    position: from,
    rowCount: to - from,
    blockIds: new Int32Array(memory.layerCount * blockCapacity),
    blockCapacity,
    summarySlots: new Int32Array(blockCapacity),
    openSlots: Int32Array.from(slots.values()),
    groupStarts: rows.plan.kind === "dense" ? Int32Array.of(0) : groupStarts(from, to, rows.groupTokens),
    plan: rows.plan,
    ...run,
    reportBlocks: rows.plan.kind !== "dense" && (sequence.request.session ?? sequence.workingSet) !== undefined,
  };
  const planned: PlannedSlice = {
    from,
    to,
    slice,
    tokens: Uint32Array.of(...sequence.ids.subarray(from, to), ...draft),
    draft,
    sealing,
    slots,
    borrowed,
    pending,
    passedBy: [],
    exact: sequence.selection.exact || rows.replay || rows.plan.kind === "dense",
  };
  fillTables(sequence, planned);
  return planned;
}

/** What a slice says of runs: the choice that its first rows follow, and whether that of its last run will be needed. */
function planRuns(
  sequence: Sequence,
  { from, to, groupTokens, inRuns, draft }: RowRange,
): { run: Pick<StepSlice, "voters" | "choice" | "reportChoice">; pending?: PendingChoice } {
  if (!inRuns) return { run: {} };
  const start = runStart(sequence, from, groupTokens);
  const choice = start < from ? sequence.choice : undefined;
  assert(start === from || choice?.position === start, "a row follows the choice of its own run");
  const last = Math.max(start, to - 1 - ((to - 1) % groupTokens));
  // Of guesses, only some may stay.
  const isNeeded = last >= from && (to % groupTokens !== 0 || draft !== undefined);
  return {
    run: {
      voters: "first",
      ...(choice === undefined ? {} : { choice: choice.bytes }),
      ...(isNeeded ? { reportChoice: true } : {}),
    },
    ...(isNeeded ? { pending: { position: last, bytes: undefined, layer: 0, isWhole: false } } : {}),
  };
}

/** Writes the block table and summary slots as they are now (again before a suspended step goes on). */
export function fillTables(sequence: Sequence, planned: PlannedSlice): void {
  const { blockIds, blockCapacity, summarySlots } = planned.slice;
  const layerCount = blockIds.length / blockCapacity;
  const kind = scoredKind(planned.slice.plan);
  for (let index = 0; index < blockCapacity; index++) {
    const block = sequence.blocks[index] ?? planned.sealing.get(index);
    const scorable = block !== undefined && (kind === undefined || isScoredBy(block, kind));
    summarySlots[index] = scorable ? block.summarySlot : NOT_RESIDENT;
    for (let layer = 0; layer < layerCount; layer++) {
      blockIds[layer * blockCapacity + index] = block?.deviceBlocks[layer] ?? NOT_RESIDENT;
    }
  }
}

/** The rows have KV now: their blocks become the sequence's, whole ones are published. Returns indices of newly sealed blocks. */
export function commitSlice(
  sequence: Sequence,
  planned: PlannedSlice,
  memory: { cache: BlockCache; opens: OpenBlocks },
): number[] {
  keepChoice(sequence, planned);
  const sealed: number[] = [];
  for (const [index, slot] of planned.slots) {
    const block = planned.sealing.get(index);
    if (!block) {
      sequence.opens.set(index, { slot, tokenCount: planned.to - index * BLOCK_TOKENS });
      continue;
    }
    sequence.opens.delete(index);
    memory.opens.give(slot);
    sequence.hold(memory.cache, memory.cache.publish(block, sequence.blockKey(index)));
    sealed.push(index);
  }
  return sealed;
}

/** The rows will not be computed: gives back what was taken for them. */
export function discardSlice(planned: SliceMemory, memory: { cache: BlockCache; opens: OpenBlocks }): void {
  for (const block of planned.sealing.values()) memory.cache.release(block);
  for (const index of planned.borrowed) memory.opens.give(planned.slots.get(index) as number);
}

/** The kind of summary by which a plan scores pages; undefined where it scores none. */
export function scoredKind(plan: SelectionPlan): SummaryKind | undefined {
  return plan.kind === "dense" ? undefined : plan.scorer?.summary;
}

/**
 * Blocks before the rows that are not ready for them: for a dense plan those that are not on the device in every layer (none where the pool cannot
 * hold them all: the step waits layer by layer), for one that scores pages those that lack its kind of summary, of which not even the first layer is there.
 */
export function rowNeeds(sequence: Sequence, rows: Pick<RowRange, "plan" | "to">): LogicalBlock[] {
  const kind = scoredKind(rows.plan);
  const isReady = (block: LogicalBlock): boolean => {
    if (kind !== undefined) return isScoredBy(block, kind);
    return rows.plan.kind !== "dense" || block.resident || sequence.workingSet !== undefined;
  };
  const before = sequence.blocks.slice(0, Math.ceil(rows.to / BLOCK_TOKENS));
  return before.filter((block): block is LogicalBlock => block !== undefined && !isReady(block));
}
