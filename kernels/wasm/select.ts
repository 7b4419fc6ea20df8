/** Selection of one layer: scores, choices and counts run as ops over a batch's records; the host adds up what they counted. */

import { choiceRow, choiceShape, type StepChoices } from "../choice.ts";
import { coarsePass, passedOverCount } from "../coarse.ts";
import {
  BLOCK_TOKENS,
  NOT_RESIDENT,
  PAGE_TOKENS,
  PAGES_PER_BLOCK,
  type SelectionView,
  type SliceTraffic,
} from "../contract.ts";
import { summaryHeadBytes } from "../layout.ts";
import { massCount, type SelectingPlan, withForcedPages } from "../page-range.ts";
import { type ChosenBlocks, type MissSet, openKvBytes, scoringBytes, sealedKvBytes } from "../traffic.ts";
import type { Arena } from "./heap.ts";
import type { Machine } from "./machine.ts";
import { OP } from "./ops.ts";
import { chooseItems, scoreTable } from "./rank-units.ts";
import {
  candidatePages,
  type GroupSelection,
  type LayerBatch,
  type PageChoice,
  rangeIn,
  roleOf,
  type ScoredUnits,
  type StepGroups,
  scoresIn,
} from "./selection-batch.ts";
import { chooseTokens } from "./token-stage.ts";
import { scoresOf, setTake, type UnitTable } from "./unit-records.ts";

/** What is selected, and `arena`, which lasts until the next select. */
export interface SelectArgs {
  layer: number;
  /** Address of f32 `[rows, headCount, headDim]`, post-RoPE. */
  q: number;
  arena: Arena;
}

/** What a step gathers as its layers select: what was wanted and is not resident, which blocks were chosen, and per slice what was read. */
export interface SelectCounters {
  misses: MissSet;
  chosenBlocks: ChosenBlocks;
  choices: StepChoices;
  traffic: readonly SliceTraffic[];
}

/** A scoring task takes at least so many blocks, and at most so many bytes of summaries: all its queries find them in a core's second cache. */
const CHUNK_BLOCKS_MIN = 32;
const CHUNK_BYTES_MAX = 256 * 1024;
/**
 * Scoring tasks for each thread. Summaries come in order, and every task has to get that stream going anew: in tasks of 32 blocks two threads
 * were no faster than one.
 */
const TASKS_PER_THREAD = 4;
/** Vectors of one task of quantization. */
const VECTORS_PER_TASK = 64;

/**
 * Selects for every group of the step; choices are where the groups say. Where nothing asks for the host, its ops only wait in the queue.
 * {@link countLayer} adds up what was chosen.
 */
export function select(
  machine: Machine,
  step: StepGroups,
  batch: LayerBatch,
  args: SelectArgs,
  counters: SelectCounters,
): void {
  const { unitsAt, unitCount, itemMax, coarse } = batch;
  const { headDim } = step.pool.spec;
  const isAtOnce = [...coarse.scored, ...batch.scored].every(({ table }) => table.tile >= table.queryMax);
  const isUnattended = step.isUnattended && isAtOnce;
  if (!isUnattended) machine.threads.finish();
  if (unitCount > 0) {
    if (batch.scored.length > 0) quantizeQueries(machine, step, batch, args.q);
    const score = (table: UnitTable, work: number): void => scorePages(machine, step, batch, args.layer, table, work);
    for (const scored of coarse.scored) scoreTable(machine, scored, headDim, score);
    chooseItems(machine, { ...coarse, layer: args.layer });
    for (const scored of batch.scored) {
      scoreTable(machine, scored, headDim, score);
      limitByMass(machine, scored, headDim);
    }
    const chosen = step.groups.filter((selection) => roleOf(selection, batch) !== "everything");
    for (const selection of chosen) readGiven(machine, step, args.layer, selection);
    chooseItems(machine, { unitsAt, unitCount, itemMax, layer: args.layer });
    if (isUnattended) return;
    machine.threads.finish();
    for (const selection of chosen) reportMasks(machine, args.layer, selection, counters.choices);
  }
  chooseTokens(machine, step, batch, args, counters);
}

/** Adds to `counters` what the groups read and miss at a layer that has selected; not after the next one's ops have run, if any is missing. */
export function countLayer(
  machine: Machine,
  step: StepGroups,
  batch: LayerBatch,
  layer: number,
  counters: SelectCounters,
): void {
  for (const selection of step.groups) countGroup(machine, step, batch, layer, selection, counters);
}

/** As {@link countLayer}, where it was called and blocks have come since: what is missing still, and what attention will read. */
export function recountLayer(
  machine: Machine,
  step: StepGroups,
  batch: LayerBatch,
  layer: number,
  { misses }: SelectCounters,
): void {
  for (const selection of step.groups) {
    if (roleOf(selection, batch) === "everything") {
      countEverything(step, layer, selection, misses);
      continue;
    }
    for (const choice of selection.choices) recountChoice(machine, layer, selection, choice);
    countChoices(machine, step, layer, selection, misses);
  }
}

/** Blocks that hold a page which a choice attends to, and the tokens of those that are there. */
function recountChoice(
  { heap }: Machine,
  layer: number,
  { slice, blockEnd }: GroupSelection,
  { masksAt, countsAt }: PageChoice,
): void {
  const counts = { absent: 0, blocks: 0, tokens: 0 };
  for (let block = 0; block < blockEnd; block++) {
    const mask = heap.bytes[masksAt + block] as number;
    if (mask === 0) continue;
    if (slice.blockIds[layer * slice.blockCapacity + block] === NOT_RESIDENT) counts.absent += 1;
    else {
      counts.blocks += 1;
      for (let page = 0; page < PAGES_PER_BLOCK; page++) counts.tokens += ((mask >> page) & 1) * PAGE_TOKENS;
    }
  }
  heap.words.set([counts.absent, counts.blocks, counts.tokens], countsAt / 4 + layer * 3);
}

/** Query vectors in 16 bits. */
function quantizeQueries(machine: Machine, { pool }: StepGroups, batch: LayerBatch, q: number): void {
  const { vectorFirst, vectorEnd, codesAt, scalesAt, turned } = batch;
  const { headDim } = pool.spec;
  const count = vectorEnd - vectorFirst;
  machine.threads.queue(OP.quantizeQueries, {
    taskCount: Math.ceil(count / VECTORS_PER_TASK),
    work: count * headDim * 4,
    args: [q, codesAt, scalesAt, vectorFirst, vectorEnd, headDim, VECTORS_PER_TASK, turned?.at ?? 0, turned ? 1 : 0],
  });
}

function scorePages(
  machine: Machine,
  { pool, headCount }: StepGroups,
  { codesAt, scalesAt, turned }: LayerBatch,
  layer: number,
  { at, count, itemMax, tile, queryMax }: UnitTable,
  work: number,
): void {
  const { kvHeadCount, headDim } = pool.spec;
  const blockCount = Math.ceil(itemMax / PAGES_PER_BLOCK);
  const chunkBlocks = blocksPerTask(blockCount, { unitCount: count, threads: machine.threads.threads, headDim });
  const chunks = Math.ceil(blockCount / chunkBlocks);
  const launch = {
    taskCount: count * chunks,
    work,
    args: [
      ...[at, chunks, chunkBlocks, headCount, headCount / kvHeadCount, headDim, codesAt, scalesAt],
      ...[layer, kvHeadCount, pool.summaryHeadStride, pool.centreHeadStride, turned?.at ?? 0],
    ],
  };
  // The host writes to the records between two tiles.
  if (tile < queryMax) machine.threads.run(OP.scorePages, launch);
  else machine.threads.queue(OP.scorePages, launch);
}

/** How many of a unit's blocks one task scores; results do not depend on it. */
function blocksPerTask(
  blockCount: number,
  { unitCount, threads, headDim }: { unitCount: number; threads: number; headDim: number },
): number {
  const tasksPerUnit = Math.ceil((threads * TASKS_PER_THREAD) / unitCount);
  const most = Math.floor(CHUNK_BYTES_MAX / summaryHeadBytes(headDim));
  return Math.max(CHUNK_BLOCKS_MIN, Math.min(Math.ceil(blockCount / tasksPerUnit), most));
}

/** Units whose plan asks for a share of the weight take no more than reach it. */
function limitByMass(machine: Machine, { table, units }: ScoredUnits, headDim: number): void {
  for (const [index, { mass, take, combine }] of units.entries()) {
    if (mass === undefined) continue;
    machine.threads.finish();
    const scores = scoresOf(machine, table, units, index);
    mass.choice.taken = massCount(scores, { combine, headDim, massShare: mass.share, countMax: take });
    setTake(machine, table, index, mass.choice.taken);
  }
}

/** Lets a group attend to what an earlier step chose for it, if it was given that. */
function readGiven({ heap }: Machine, { pool }: StepGroups, layer: number, selection: GroupSelection): void {
  const { slice, group, range, given, choices } = selection;
  if (given === undefined) return;
  const plan = slice.plan as SelectingPlan;
  const shape = choiceShape(pool.spec, plan, group.positionLast);
  for (const [index, choice] of choices.entries()) {
    heap.bytes.set(choiceRow(given, shape, layer, index), choice.masksAt);
    if (plan.kind === "pages" && plan.massShare !== undefined) {
      choice.taken = candidatePages(heap.bytes, range, choice).length;
    }
  }
}

/** Tells what a group attends to before its own block, if that is asked for. */
function reportMasks({ heap }: Machine, layer: number, selection: GroupSelection, reported: StepChoices): void {
  const { sliceIndex, isReported, blockEnd, choices } = selection;
  if (!isReported) return;
  for (const [index, { masksAt }] of choices.entries()) {
    reported.row(sliceIndex, layer, index).set(heap.bytes.subarray(masksAt, masksAt + blockEnd));
  }
}

/** Adds up what a group reads and misses at this layer. */
function countGroup(
  machine: Machine,
  step: StepGroups,
  batch: LayerBatch,
  layer: number,
  selection: GroupSelection,
  { misses, traffic }: SelectCounters,
): void {
  const { pool } = step;
  const { sliceIndex, range, choices, given, slice } = selection;
  const { plan } = slice;
  const role = roleOf(selection, batch);
  const sliceTraffic = traffic[sliceIndex] as SliceTraffic;
  const { spec } = pool;
  if (role === "everything") {
    countEverything(step, layer, selection, misses);
    return;
  }
  sliceTraffic.pagesInContext += range.pageEnd * spec.kvHeadCount;
  if (selection.tokens !== undefined) {
    sliceTraffic.pagesSelected += selection.tokens.pages.length * spec.kvHeadCount;
    return;
  }
  countChoices(machine, step, layer, selection, misses);
  const forced = range.sinkEnd + range.pageEnd - range.recentStart;
  for (const choice of choices) {
    const isScored = role === "chooses" && scoresIn(selection, choice, layer, pool);
    // Shares of the weight are known once pages are scored, or by what was given; a layer that takes over keeps its chooser's.
    const isLimited = plan.kind === "pages" && plan.massShare !== undefined;
    const isKnown = isLimited && (isScored || given !== undefined || role === "takes-over");
    if (!isKnown) choice.taken = rangeIn(selection, choice, layer, pool).takePages;
    sliceTraffic.pagesSelected += (choice.taken + forced) * choice.kvHeadCount;
    if (!isScored) continue;
    const pass = coarsePass(plan, rangeIn(selection, choice, layer, pool));
    sliceTraffic.metadataBytes += scoringBytes(spec.headDim, range, pass) * choice.kvHeadCount;
    if (pass !== undefined) sliceTraffic.pagesPassedOver += passedOverCount(pass) * choice.kvHeadCount;
  }
}

/** What a group that attends to everything misses, and reads. */
function countEverything(
  { pool: { spec } }: StepGroups,
  layer: number,
  selection: GroupSelection,
  misses: MissSet,
): void {
  const { sliceIndex, slice, blockEnd, group } = selection;
  const absent = absentBlocks(slice.blockIds, layer, selection);
  for (const block of absent) misses.add({ sliceIndex, layer, block });
  const blocks = blockEnd - absent.length;
  const bytes = sealedKvBytes(spec, blocks, blocks * BLOCK_TOKENS) + openKvBytes(spec, group);
  selection.kvBytes = bytes * spec.kvHeadCount;
}

/** What a group that chose pages misses, and reads: as its choices were counted. */
function countChoices(
  { heap }: Machine,
  { pool: { spec } }: StepGroups,
  layer: number,
  selection: GroupSelection,
  misses: MissSet,
): void {
  selection.kvBytes = 0;
  for (const choice of selection.choices) {
    const counts = choice.countsAt / 4 + layer * 3;
    if ((heap.words[counts] as number) > 0) noteMisses(heap.bytes, layer, selection, choice, misses);
    const bytes = sealedKvBytes(spec, heap.words[counts + 1] as number, heap.words[counts + 2] as number);
    selection.kvBytes += (bytes + openKvBytes(spec, selection.group)) * choice.kvHeadCount;
  }
}

/** Logical blocks before the group's last row's own that are not on the device. */
function absentBlocks(blockIds: Int32Array, layer: number, { slice, blockEnd }: GroupSelection): number[] {
  const absent: number[] = [];
  const from = layer * slice.blockCapacity;
  for (let block = 0; block < blockEnd; block++) if (blockIds[from + block] === NOT_RESIDENT) absent.push(block);
  return absent;
}

/** Blocks with a chosen page that are not on the device. */
function noteMisses(
  bytes: Uint8Array,
  layer: number,
  { slice, sliceIndex, blockEnd }: GroupSelection,
  { masksAt }: PageChoice,
  misses: MissSet,
): void {
  for (let block = 0; block < blockEnd; block++) {
    if (bytes[masksAt + block] === 0) continue;
    if (slice.blockIds[layer * slice.blockCapacity + block] === NOT_RESIDENT) misses.add({ sliceIndex, layer, block });
  }
}

/** What the last select chose, ascending by (slice, group, KV head). */
export function viewsOf({ heap }: Machine, { groups, pool }: StepGroups, batch: LayerBatch): SelectionView[] {
  return groups.flatMap((selection) =>
    Array.from({ length: pool.spec.kvHeadCount }, (_, kvHead): SelectionView => {
      const { sliceIndex, groupIndex, range, choices, tokens } = selection;
      const view = { sliceIndex, group: groupIndex, kvHead };
      if (roleOf(selection, batch) === "everything") return view;
      if (tokens !== undefined) return { ...view, pages: [...tokens.pages], tokenMasks: [...tokens.tokenMasks] };
      const choice = choices[kvHead] ?? choices[0];
      if (choice === undefined) return view;
      return { ...view, pages: withForcedPages(range, candidatePages(heap.bytes, range, choice)) };
    }),
  );
}
