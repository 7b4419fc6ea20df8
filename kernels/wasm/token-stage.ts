/** The second stage of token plans: the best tokens of those kept pages that are resident. One choice serves every KV head. */
import { assert } from "../../protocol/assert.ts";
import { NOT_RESIDENT, PAGE_TOKENS, PAGES_PER_BLOCK, type SliceTraffic } from "../contract.ts";
import { needsPageScores, withForcedPages } from "../page-range.ts";
import { groupKvBytes, keyReadBytes, summaryReadBytes } from "../traffic.ts";
import type { Machine } from "./machine.ts";
import { OP } from "./ops.ts";
import { chooseItems, scoreTable } from "./rank-units.ts";
import type { SelectArgs, SelectCounters } from "./select.ts";
import {
  candidatePages,
  type GroupSelection,
  type LayerBatch,
  type PageChoice,
  putWords,
  roleOf,
  type StepGroups,
} from "./selection-batch.ts";
import { UNIT_BYTES, type Unit, type UnitTable, writeUnits } from "./unit-records.ts";

/** Kept pages of one scoring task. */
const CHUNK_PAGES = 4;

/** A group's kept pages that are resident, and the mask of each. */
interface Vote {
  selection: GroupSelection;
  kept: number[];
  masks: number[];
}

/** Chooses tokens for every group with a token plan, and writes the masks that attention reads; or counts a choice that is taken over. */
export function chooseTokens(
  machine: Machine,
  step: StepGroups,
  batch: LayerBatch,
  args: SelectArgs,
  counters: SelectCounters,
): void {
  const withTokens = step.groups.filter(({ tokenMasksAt }) => tokenMasksAt !== 0);
  for (const selection of withTokens) {
    if (roleOf(selection, batch) === "takes-over") countTokens(step, args.layer, selection, counters);
  }
  const selections = withTokens.filter((selection) => roleOf(selection, batch) === "chooses");
  if (selections.length === 0) return;
  args.arena.clear();
  const votes = selections.map((selection): Vote => {
    const kept = keptPages(machine, step, args.layer, selection, counters);
    return { selection, kept, masks: kept.map(() => 0xffff) };
  });
  const ranked = votes.filter(({ selection, kept }) => selection.range.takePages < kept.length);
  if (ranked.length > 0) rankTokens(machine, step, args, ranked, counters.traffic);
  for (const vote of votes) finish(machine, step, args.layer, vote, counters);
}

/** Kept pages that are on the device; the others are misses. */
function keptPages(
  { heap }: Machine,
  { pool: { spec } }: StepGroups,
  layer: number,
  { slice, sliceIndex, range, choices, blockEnd }: GroupSelection,
  { misses, chosenBlocks, traffic }: SelectCounters,
): number[] {
  const choice = choices[0] as PageChoice;
  const pages = candidatePages(heap.bytes, range, choice);
  if (needsPageScores(slice.plan, range)) {
    const bytes = summaryReadBytes(spec.headDim, range.candidateCount) * spec.kvHeadCount;
    (traffic[sliceIndex] as SliceTraffic).metadataBytes += bytes;
  }
  for (const page of withForcedPages(range, pages)) {
    const block = Math.floor(page / PAGES_PER_BLOCK);
    if (block >= blockEnd || isResident(slice, layer, block)) continue;
    misses.add({ sliceIndex, layer, block });
    if (page >= range.sinkEnd && page < range.recentStart) chosenBlocks.add({ sliceIndex, layer, block });
  }
  return pages.filter((page) => isResident(slice, layer, Math.floor(page / PAGES_PER_BLOCK)));
}

function isResident(slice: GroupSelection["slice"], layer: number, block: number): boolean {
  return slice.blockIds[layer * slice.blockCapacity + block] !== NOT_RESIDENT;
}

/** Scores the tokens of kept pages and replaces their masks by those of the best. */
function rankTokens(
  machine: Machine,
  step: StepGroups,
  { layer, q, arena }: SelectArgs,
  votes: readonly Vote[],
  traffic: readonly SliceTraffic[],
): void {
  const { pool, headCount } = step;
  const choices = votes.map(({ kept }) => arena.take(kept.length * 4));
  const units = votes.map(({ selection, kept }, index): Unit => {
    const { slice, group, firstRow, range } = selection;
    return {
      ...{ firstVector: firstRow * headCount, queryCount: group.rowCount * headCount, headCount, kvHeadFirst: 0 },
      ...{ itemFirst: 0, itemEnd: kept.length * PAGE_TOKENS, take: range.takePages * PAGE_TOKENS },
      ...{ combine: "softmax-sum", choiceAt: choices[index] as number, blockIdsAt: selection.blockIdsAt },
      ...{ blockCapacity: slice.blockCapacity, keptPagesAt: putWords(machine, arena, kept) },
    };
  });
  const unitsAt = arena.take(units.length * UNIT_BYTES);
  const table = writeUnits(machine, arena, unitsAt, units);
  scoreTable(machine, { table, units }, pool.spec.headDim, (each, work) =>
    scoreTokens(machine, step, { layer, q }, each, work),
  );
  chooseItems(machine, { unitsAt, unitCount: units.length, itemMax: table.itemMax, layer });
  machine.threads.finish();
  votes.forEach(({ selection, kept, masks }, index) => {
    const bytes = pool.spec.kvHeadCount * keyReadBytes(pool.spec, kept);
    (traffic[selection.sliceIndex] as SliceTraffic).metadataBytes += bytes;
    const at = choices[index] as number;
    for (let page = 0; page < kept.length; page++) masks[page] = fourNibbles(machine.heap.bytes, at + page * 4);
  });
}

/** The 16 bits that four bytes of four items say. */
function fourNibbles(bytes: Uint8Array, at: number): number {
  let mask = 0;
  for (let index = 0; index < 4; index++) mask |= (bytes[at + index] as number) << (index * 4);
  return mask;
}

function scoreTokens(
  machine: Machine,
  { pool, headCount }: StepGroups,
  { layer, q }: Pick<SelectArgs, "layer" | "q">,
  { at, count, itemMax }: UnitTable,
  work: number,
): void {
  const chunks = Math.ceil(itemMax / (CHUNK_PAGES * PAGE_TOKENS));
  const { kvHeadCount, headDim, encoding } = pool.spec;
  machine.threads.ensureScratch(PAGES_PER_BLOCK * PAGE_TOKENS * headDim * 4);
  machine.threads.run(OP.scoreTokens, {
    taskCount: count * chunks,
    work,
    args: [
      ...[at, chunks, CHUNK_PAGES, headCount, headCount / kvHeadCount, headDim, pool.blocksAt, pool.blockBytes],
      ...[encoding === "int8" ? 1 : 0, pool.layout.keyScalesAt, kvHeadCount, q, layer],
    ],
  });
}

/** Writes page and token masks, and counts. */
function finish({ heap }: Machine, step: StepGroups, layer: number, vote: Vote, counters: SelectCounters): void {
  const { selection, kept, masks } = vote;
  const { range, blockEnd, tokenMasksAt, pageMasksAt } = selection;
  const maskOf = new Map(kept.map((page, index) => [page, masks[index] as number]));
  const pages = withForcedPages(
    range,
    kept.filter((page) => maskOf.get(page) !== 0),
  );
  const tokenMasks = pages.map((page) => maskOf.get(page) ?? 0xffff);
  selection.tokens = { pages, tokenMasks };
  heap.bytes.fill(0, pageMasksAt, pageMasksAt + blockEnd);
  heap.bytes.fill(0, tokenMasksAt, tokenMasksAt + blockEnd * 8);
  pages.forEach((page, index) => {
    const block = Math.floor(page / PAGES_PER_BLOCK);
    if (block >= blockEnd) return;
    heap.bytes[pageMasksAt + block] = (heap.bytes[pageMasksAt + block] as number) | (1 << (page % PAGES_PER_BLOCK));
    const mask = tokenMasks[index] as number;
    heap.bytes[tokenMasksAt + page * 2] = mask & 255;
    heap.bytes[tokenMasksAt + page * 2 + 1] = mask >> 8;
  });
  countTokens(step, layer, selection, counters);
}

/** What attention will read of the chosen tokens in this layer, which of their blocks are missing, and which were chosen. */
function countTokens(
  { pool: { spec } }: StepGroups,
  layer: number,
  selection: GroupSelection,
  { misses, chosenBlocks }: SelectCounters,
): void {
  const { slice, sliceIndex, group, range, blockEnd, tokens } = selection;
  assert(tokens !== undefined, "a token plan takes over a choice that was not made");
  for (const page of tokens.pages) {
    const block = Math.floor(page / PAGES_PER_BLOCK);
    if (page >= range.sinkEnd && page < range.recentStart) chosenBlocks.add({ sliceIndex, layer, block });
    if (block < blockEnd && !isResident(slice, layer, block)) misses.add({ sliceIndex, layer, block });
  }
  const isHere = (block: number): boolean => isResident(slice, layer, block);
  selection.kvBytes = groupKvBytes(spec, group, tokens, isHere) * spec.kvHeadCount;
}
