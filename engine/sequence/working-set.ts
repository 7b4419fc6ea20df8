/**
 * A context that is larger than the pool: what of it must be on the device at once, so that every step can be computed, and what a step attends to.
 * A step goes layer by layer: it waits for what a layer chose, which is pinned until it has passed the layer, and everything else may leave meanwhile.
 */
import { BLOCK_TOKENS, PAGE_TOKENS, PAGES_PER_BLOCK, type StepSlice } from "../../kernels/contract.ts";
import { pageRange, type SelectingPlan, selectsPerLayer } from "../../kernels/page-range.ts";
import type { SequenceResult } from "../../models/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { QuireError } from "../../protocol/errors.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { BlockCache } from "../kv/block-cache.ts";
import { type How, parseHow } from "../kv/provenance.ts";
import type { Reservation, WorkingSet } from "../kv/reservations.ts";
import type { PlannedSlice } from "./planned-slice.ts";
import type { Sequence } from "./sequence.ts";
import { firstLayer, missedBlocks } from "./traffic.ts";

/** Query groups of a step, tried in this order: fewer fit into a smaller pool. */
const GROUP_COUNTS = [LIMITS.looseRowsMax, LIMITS.looseRowsMax / 16, 1] as const;
/** More groups than one must leave this share of the pool to other sequences. */
const LEFT_SHARE = 1 / 2;

/** What the sizes of a working set follow from. */
export interface PoolShape {
  layerCount: number;
  kvHeadCount: number;
  /** Of one object in the store. */
  segmentTokens: number;
}

/** Of an empty engine. */
interface PoolCapacity extends Reservation {
  /** What a layer of a block takes in host memory. */
  hostBlockBytes: number;
}

/** Sets out what a sequence needs whose context the pool cannot hold; nothing for others. @throws {QuireError} as {@link workingSetOf}. */
export function confine(sequence: Sequence, shape: PoolShape, cache: BlockCache): void {
  if (sequence.blocksMax <= cache.reservations.capacity) return;
  sequence.confine(workingSetOf(sequence, shape, cache.reservations.capacityParts), shape.layerCount);
}

/**
 * The working set of a request whose context is larger than the pool: what its widest layer may attend to, and a block to be sealed in all layers. In
 * host memory, room for all that this turn computes, or finds in no segment of the store (of a tail blocks cannot be read one by one).
 * @throws {QuireError} `context_length_exceeded`, one line that says what there is too little of.
 */
function workingSetOf(sequence: Sequence, shape: PoolShape, capacity: PoolCapacity): WorkingSet {
  const { blocksMax, request } = sequence;
  const segments = request.session === undefined ? 0 : Math.floor(request.turnStart / shape.segmentTokens);
  const storedBlocks = (segments * shape.segmentTokens) / BLOCK_TOKENS;
  const hostBytes = (blocksMax - storedBlocks) * shape.layerCount * capacity.hostBlockBytes;
  const tokens = blocksMax * BLOCK_TOKENS;
  if (blocksMax > capacity.summarySlots) {
    const most = capacity.summarySlots * BLOCK_TOKENS;
    throw tooLong(`The request may grow to ${tokens} tokens; the KV pool holds summaries of ${most}.`);
  }
  const sets = GROUP_COUNTS.map((groupsMax): WorkingSet => {
    const deviceBlocks = widestLayer(sequence, shape, groupsMax) + shape.layerCount;
    return { deviceBlocks, summarySlots: blocksMax, hostBytes, groupsMax };
  });
  const roomy = sets.find(({ deviceBlocks }) => deviceBlocks <= capacity.deviceBlocks * (1 - LEFT_SHARE));
  const chosen = roomy ?? (sets.at(-1) as WorkingSet);
  if (chosen.deviceBlocks > capacity.deviceBlocks) {
    throw tooLong(
      `The request may grow to ${tokens} tokens, of which a step may need ${chosen.deviceBlocks} blocks of a layer on the device; ` +
        `the KV pool holds ${capacity.deviceBlocks}.`,
    );
  }
  if (hostBytes > capacity.hostBytes) {
    throw tooLong(
      `The request may grow to ${tokens} tokens, more than the KV pool holds; what it computes needs ${mebibytes(hostBytes)} of host memory, ` +
        `and there are ${mebibytes(capacity.hostBytes)}.`,
    );
  }
  return chosen;
}

/** Most blocks that a layer of any step attends to before its own rows, layers that share a choice counted together. */
function widestLayer(sequence: Sequence, shape: PoolShape, groupsMax: number): number {
  const { spans, tokenCount, blocksMax, selection } = sequence;
  const { policy, version, budgetTokens } = selection;
  const reply = policy === "dense" ? undefined : { policy, version, budgetTokens, groupTokens: 1 };
  const whole = { blockCount: blocksMax, shape, groupsMax };
  return spans
    .until(tokenCount)
    .map(({ end, how }) => blocksOfSpan(parseHow(how), { ...whole, blockCount: Math.ceil(end / BLOCK_TOKENS) }))
    .reduce((most, count) => Math.max(most, count), blocksOfSpan(reply, whole));
}

function blocksOfSpan(
  how: How | undefined,
  { blockCount, shape, groupsMax }: { blockCount: number; shape: PoolShape; groupsMax: number },
): number {
  const plan = how && policyNamed(how.policy).plan(how.budgetTokens);
  if (plan === undefined || plan.kind === "dense" || (plan.denseLayers ?? 0) > 0) return blockCount;
  const { budgetPages, sinkPages, recentPages, layersPerChoice = 1 } = plan;
  const share = widestShare(plan, shape);
  const paid = plan.scorer === undefined ? 0 : Math.max(0, budgetPages - sinkPages - recentPages);
  // A layer that takes everything does so without a scorer, too.
  const shared = share === Number.POSITIVE_INFINITY ? share : Math.ceil(paid * share);
  const chosenPages = plan.kind === "tokens" ? Math.max(paid, plan.candidatePages) : shared;
  // Of recent pages, those before the rows' own block; rows that begin within one seal it and go on in the next.
  const forced = Math.ceil(sinkPages / PAGES_PER_BLOCK) + Math.ceil((recentPages - 1) / PAGES_PER_BLOCK);
  const belowBudget = Math.ceil((budgetPages * PAGE_TOKENS) / BLOCK_TOKENS);
  return layersPerChoice * Math.min(blockCount, Math.max(groupsMax * chosenPages + forced, belowBudget));
}

/** What the choices of a layer take together at most, in choices of the usual size. */
function widestShare(plan: SelectingPlan, { layerCount, kvHeadCount }: PoolShape): number {
  const { layerShares = [], headShares } = plan.kind === "pages" ? plan : {};
  if (headShares === undefined) return (selectsPerLayer(plan) ? 1 : kvHeadCount) * Math.max(1, ...layerShares);
  let widest = 0;
  for (let layer = 0; layer < layerCount; layer++) {
    let share = 0;
    for (let head = layer * kvHeadCount; head < (layer + 1) * kvHeadCount; head++) {
      share += headShares[Math.min(head, headShares.length - 1)] as number;
    }
    widest = Math.max(widest, share);
  }
  return widest;
}

/**
 * Calls back with every block that a slice attends to in layers `layerFirst` to `layerLast`, before its own, as far as a step has told: those that its
 * queries chose, and those that they attend to whatever they are.
 */
function forAttended(
  { position, rowCount, blockCapacity, plan }: StepSlice,
  chosenBlocks: Uint32Array | undefined,
  { layerFirst, layerLast }: { layerFirst: number; layerLast: number },
  see: (block: number, layer: number) => void,
): void {
  const words = Math.ceil(blockCapacity / 32);
  const positionLast = position + rowCount - 1;
  const blockEnd = Math.min(blockCapacity, Math.floor(positionLast / BLOCK_TOKENS));
  for (let layer = layerFirst; layer <= layerLast; layer++) {
    const first = pageRange(plan, { positionFirst: position, positionLast: position }, layer);
    const last = pageRange(plan, { positionFirst: positionLast, positionLast }, layer);
    const sinkBlocks = first.everything ? blockEnd : Math.ceil(last.sinkEnd / PAGES_PER_BLOCK);
    const recentFrom = Math.floor(first.recentStart / PAGES_PER_BLOCK);
    for (let block = 0; block < blockEnd; block++) {
      const word = chosenBlocks?.[layer * words + (block >>> 5)] ?? 0;
      if (word === 0 && block % 32 === 0 && block >= sinkBlocks && block + 32 <= recentFrom) {
        block += 31;
        continue;
      }
      const isForced = block < sinkBlocks || block >= recentFrom;
      if (isForced || ((word >>> (block & 31)) & 1) === 1) see(block, layer);
    }
  }
}

/**
 * After a step, or what ran of it, and before whoever has waited for its end takes room: a suspended one will find again what the layers attend to that it goes
 * on with, and of one that is done everything that it attended to is the last to leave. Nothing for sequences whose context the pool holds.
 */
export function noteAttended(
  parts: readonly { sequence: Sequence; slice: PlannedSlice }[],
  results: readonly SequenceResult[],
  cache: BlockCache,
): void {
  for (const [at, { sequence, slice }] of parts.entries())
    if (sequence.workingSet) noteOne(sequence, slice, results[at] as SequenceResult, cache);
}

function noteOne(sequence: Sequence, planned: PlannedSlice, result: SequenceResult, cache: BlockCache): void {
  const { checkpoint, chosenBlocks } = result;
  const { wanted: missed } = missedBlocks(sequence, result);
  const layerCount = planned.slice.blockIds.length / planned.slice.blockCapacity;
  const missedLayer = firstLayer(missed, layerCount - 1);
  const layerLast = missed.length > 0 ? missedLayer : (checkpoint?.layer ?? layerCount) - 1;
  const wanted = missed.filter(({ layer }) => layer === missedLayer);
  forAttended(planned.slice, chosenBlocks, { layerFirst: 0, layerLast }, (index, layer) => {
    const block = sequence.blocks[index];
    if (!block) return;
    cache.use(block, layer);
    if (missed.length > 0 && checkpoint !== undefined && layer >= checkpoint.layer) wanted.push({ block, layer });
  });
  if (checkpoint === undefined) {
    sequence.unpin(cache);
    return;
  }
  // A step that only paused may have begun with every block, and would not look again whether they are there: it goes on as another one.
  if (missed.length === 0) planned.slice = { ...planned.slice };
  sequence.pin(cache, wanted, checkpoint.layer);
}

function tooLong(message: string): QuireError {
  return new QuireError("context_length_exceeded", message);
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
