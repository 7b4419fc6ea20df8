/** Selection on the host's side: which units there are, what they chose, what is missing, and the masks that attention reads. */
import { assert } from "../../protocol/assert.ts";
import {
  BLOCK_TOKENS,
  NOT_RESIDENT,
  PAGE_TOKENS,
  PAGES_PER_BLOCK,
  type SelectionPlan,
  type SliceTraffic,
  type StepSlice,
} from "../contract.ts";
import { summaryHeadAt, summaryKindIndex } from "../layout.ts";
import {
  choosingLayer,
  keepPages,
  needsPageScores,
  type PageRange,
  pageCombine,
  pageRange,
  type QueryGroup,
  queryGroups,
  selectsPerLayer,
  withForcedPages,
} from "../page-range.ts";
import { type ChosenBlocks, keyReadBytes, type MissSet, summaryReadBytes } from "../traffic.ts";
import type { Arena } from "./heap.ts";
import type { Machine } from "./machine.ts";
import type { WasmPool } from "./memory.ts";
import { OP } from "./ops.ts";
import { CHUNK_ITEMS, rankUnits, type Unit } from "./rank-units.ts";

/** Where a `select` works: `arena` lasts until the next select. */
export interface SelectArgs {
  pool: WasmPool;
  layer: number;
  headCount: number;
  q: number;
  arena: Arena;
}

/** What a query group attends to in one KV head: ascending pages, and masks of their tokens; undefined: everything. */
export interface Chosen {
  pages?: number[];
  tokenMasks?: number[];
}

/** One query group of one slice, and where attention finds what it chose. */
export interface GroupSelection {
  slice: StepSlice;
  sliceIndex: number;
  groupIndex: number;
  group: QueryGroup;
  range: PageRange;
  /** Row of the step. */
  firstRow: number;
  /** Block ids of the layer, i32 per logical block before the group's last. */
  blockIdsAt: number;
  summarySlotsAt: number;
  /** One per KV head. */
  chosen: Chosen[];
  /** u8 per block: bit i is page i; 0 for everything. */
  pageMasksAt: number;
  /** Bytes from one KV head's masks to the next one's; 0: all share. */
  pageMaskStride: number;
  /** u64 per block: bit t is token t; 0 for all tokens of the pages. */
  tokenMasksAt: number;
}

type Plan = Exclude<SelectionPlan, { kind: "dense" }>;

/** One choice to make: a group, and the KV heads that share it. */
interface Draft {
  selection: GroupSelection;
  plan: Plan;
  kvHeadFirst: number;
  kvHeadCount: number;
  /** Candidate pages, once chosen. */
  candidates: number[];
  tokenMasks: Map<number, number> | undefined;
}

/** What a step gathers as its layers select: what was wanted and is not resident, which blocks were chosen, and per slice what was read. */
export interface SelectCounters {
  misses: MissSet;
  chosenBlocks: ChosenBlocks;
  traffic: readonly SliceTraffic[];
}

/**
 * Selections of every query group, ascending by (slice, group). Adds to `counters`. `previous`: those of the layer before, where there
 * was one.
 */
export function select(
  machine: Machine,
  args: SelectArgs,
  slices: readonly StepSlice[],
  counters: SelectCounters,
  previous: readonly GroupSelection[] | undefined,
): GroupSelection[] {
  const { misses, traffic } = counters;
  args.arena.clear();
  const selections = listGroups(machine, args, slices);
  const choosing: GroupSelection[] = [];
  for (const [index, selection] of selections.entries()) {
    const { slice, range } = selection;
    if (range.everything || choosingLayer(slice.plan, args.layer) === args.layer) choosing.push(selection);
    else takeOver(args, selection, previous?.[index], counters);
  }
  const drafts = choosing.flatMap((selection) => draftsOf(args, selection));
  choosePages(machine, args, drafts, traffic);
  chooseTokens(machine, args, drafts, counters);
  for (const draft of drafts) {
    finishDraft(draft);
    noteChosen(
      args.layer,
      draft.selection,
      draft.candidates.filter((page) => draft.tokenMasks?.has(page) ?? true),
      counters,
    );
  }
  for (const selection of selections) {
    noteMisses(args.layer, selection, misses);
    if (selection.range.everything) continue;
    const sliceTraffic = traffic[selection.sliceIndex] as SliceTraffic;
    for (const { pages } of selection.chosen) {
      sliceTraffic.pagesSelected += pages?.length ?? 0;
      sliceTraffic.pagesInContext += selection.range.pageEnd;
    }
    writeMasks(machine, args.arena, selection);
  }
  return selections;
}

function listGroups(machine: Machine, args: SelectArgs, slices: readonly StepSlice[]): GroupSelection[] {
  const selections: GroupSelection[] = [];
  const { kvHeadCount } = args.pool.spec;
  let sliceRow = 0;
  slices.forEach((slice, sliceIndex) => {
    const blockEnd = Math.floor((slice.position + slice.rowCount - 1) / BLOCK_TOKENS);
    const idsFrom = args.layer * slice.blockCapacity;
    const blockIdsAt = putWords(machine, args.arena, slice.blockIds.subarray(idsFrom, idsFrom + blockEnd));
    const isDense = slice.plan.kind === "dense";
    const summarySlotsAt = isDense ? 0 : putWords(machine, args.arena, slice.summarySlots.subarray(0, blockEnd));
    queryGroups(slice).forEach((group, groupIndex) => {
      const range = pageRange(slice.plan, group, args.layer);
      const chosen = Array.from({ length: kvHeadCount }, (): Chosen => ({}));
      const place = { blockIdsAt, summarySlotsAt, pageMasksAt: 0, pageMaskStride: 0, tokenMasksAt: 0 };
      const firstRow = sliceRow + group.firstRow;
      selections.push({ slice, sliceIndex, groupIndex, group, range, firstRow, chosen, ...place });
    });
    sliceRow += slice.rowCount;
  });
  return selections;
}

/** Attends to what the layer before attends to. */
function takeOver(
  { layer }: SelectArgs,
  selection: GroupSelection,
  previous: GroupSelection | undefined,
  counters: SelectCounters,
): void {
  assert(previous !== undefined, "a layer that takes over a choice comes right behind the one that made it");
  selection.chosen = previous.chosen;
  const { sinkEnd, recentStart } = selection.range;
  for (const pages of new Set(selection.chosen.map((chosen) => chosen.pages ?? []))) {
    const candidates = pages.filter((page) => page >= sinkEnd && page < recentStart);
    noteChosen(layer, selection, candidates, counters);
  }
}

function draftsOf({ pool }: SelectArgs, selection: GroupSelection): Draft[] {
  const { plan } = selection.slice;
  if (plan.kind === "dense" || selection.range.everything) return [];
  const { kvHeadCount } = pool.spec;
  const shared = { selection, plan, candidates: [], tokenMasks: undefined };
  if (selectsPerLayer(plan)) return [{ ...shared, kvHeadFirst: 0, kvHeadCount }];
  return Array.from({ length: kvHeadCount }, (_, kvHeadFirst) => ({ ...shared, kvHeadFirst, kvHeadCount: 1 }));
}

/** First stage: the candidates that each draft keeps, scored where the budget takes some but not all. */
function choosePages(
  machine: Machine,
  args: SelectArgs,
  drafts: readonly Draft[],
  traffic: readonly SliceTraffic[],
): void {
  const { pool, layer } = args;
  const { headDim } = pool.spec;
  const group = args.headCount / pool.spec.kvHeadCount;
  const scored = drafts.filter(({ plan, selection }) => needsPageScores(plan, selection.range));
  const units = scored.map((draft): Unit => {
    const { plan, selection } = draft;
    assert(plan.scorer !== undefined, "a plan without a scorer takes no candidates");
    return {
      ...queriesOf(args, draft),
      itemCount: selection.range.candidateCount,
      take: keepPages(plan, selection.range),
      combine: pageCombine(plan),
      candidateFirst: selection.range.sinkEnd,
      summarySlotsAt: selection.summarySlotsAt,
      summariesAt:
        (pool.summariesAt[summaryKindIndex(pool.spec, plan.scorer.summary)] as number) +
        summaryHeadAt(pool.spec, layer, 0),
      queryVector: selection.firstRow * args.headCount + draft.kvHeadFirst * group,
      radiusWeight: plan.scorer.radiusWeight,
    };
  });
  machine.opArena.clear();
  const codes = quantizeQueries(machine, args, scored);
  const ranked = rankUnits(machine, units, headDim, ({ unitsAt, unitCount, itemMax, work }) => {
    // The first block may hold three pages before the first candidate.
    const chunks = Math.ceil((itemMax + PAGES_PER_BLOCK - 1) / CHUNK_ITEMS);
    const blocks = CHUNK_ITEMS / PAGES_PER_BLOCK;
    machine.threads.run(OP.scorePages, {
      taskCount: Math.ceil(unitCount / pool.spec.kvHeadCount) * chunks,
      work,
      args: [
        ...[unitsAt, chunks, blocks, args.headCount, group, headDim, codes.codesAt, codes.scalesAt],
        ...[pool.spec.kvHeadCount, unitCount, pool.summaryBytes],
      ],
    });
  });
  const chosen = new Map(scored.map((draft, index) => [draft, ranked[index] as number[]]));
  for (const draft of drafts) {
    const { range, sliceIndex } = draft.selection;
    const all = (): number[] => Array.from({ length: keepPages(draft.plan, range) }, (_, index) => index);
    const indices = chosen.get(draft) ?? all();
    draft.candidates = indices.map((index) => range.sinkEnd + index);
    if (!chosen.has(draft)) continue;
    const bytes = draft.kvHeadCount * summaryReadBytes(headDim, range.candidateCount);
    (traffic[sliceIndex] as SliceTraffic).metadataBytes += bytes;
  }
}

/** Vectors of one task of quantization. */
const QUERIES_PER_TASK = 64;

/** Every query vector of the step up to the last row that scores, in 16 bits. Takes from the op arena. */
function quantizeQueries(
  machine: Machine,
  { pool, headCount, q }: SelectArgs,
  scored: readonly Draft[],
): { codesAt: number; scalesAt: number } {
  const { headDim } = pool.spec;
  const rowEnd = Math.max(0, ...scored.map(({ selection }) => selection.firstRow + selection.group.rowCount));
  const vectors = rowEnd * headCount;
  const codesAt = machine.opArena.take(vectors * Math.ceil(headDim / 8) * 16);
  const scalesAt = machine.opArena.take(vectors * 4);
  machine.threads.run(OP.quantizeQueries, {
    taskCount: Math.ceil(vectors / QUERIES_PER_TASK),
    work: vectors * headDim * 4,
    args: [q, codesAt, scalesAt, vectors, headDim, QUERIES_PER_TASK],
  });
  return { codesAt, scalesAt };
}

/** Second stage of token plans: the best tokens of those kept pages that are resident. */
function chooseTokens(machine: Machine, args: SelectArgs, drafts: readonly Draft[], counters: SelectCounters): void {
  const { misses, traffic } = counters;
  const voting = drafts.filter(({ plan }) => plan.kind === "tokens");
  if (voting.length === 0) return;
  machine.opArena.clear();
  const units = new Map<Draft, Unit>();
  for (const draft of voting) {
    const { selection } = draft;
    for (const page of draft.candidates) noteMiss(args.layer, selection, Math.floor(page / PAGES_PER_BLOCK), misses);
    const isHere = (page: number): boolean =>
      isResident(args.layer, selection.slice, Math.floor(page / PAGES_PER_BLOCK));
    noteChosen(
      args.layer,
      selection,
      draft.candidates.filter((page) => !isHere(page)),
      counters,
    );
    draft.candidates = draft.candidates.filter(isHere);
    const take = selection.range.takePages * PAGE_TOKENS;
    if (take >= draft.candidates.length * PAGE_TOKENS) {
      draft.tokenMasks = new Map(draft.candidates.map((page) => [page, 0xffff]));
      continue;
    }
    units.set(draft, {
      ...queriesOf(args, draft),
      itemCount: draft.candidates.length * PAGE_TOKENS,
      take,
      combine: "softmax-sum",
      keptPagesAt: putWords(machine, args.arena, draft.candidates),
      blockIdsAt: selection.blockIdsAt,
    });
    const bytes = draft.kvHeadCount * keyReadBytes(args.pool.spec, draft.candidates);
    (traffic[selection.sliceIndex] as SliceTraffic).metadataBytes += bytes;
  }
  const ranked = rankUnits(machine, [...units.values()], args.pool.spec.headDim, (launch) =>
    scoreTokens(machine, args, launch),
  );
  [...units.keys()].forEach((draft, index) => {
    draft.tokenMasks = tokenMasksOf(draft.candidates, ranked[index] as number[]);
  });
}

function scoreTokens(
  machine: Machine,
  { pool, headCount }: SelectArgs,
  { unitsAt, unitCount, itemMax, work }: { unitsAt: number; unitCount: number; itemMax: number; work: number },
): void {
  const chunks = Math.ceil(itemMax / CHUNK_ITEMS);
  const { kvHeadCount, headDim, encoding } = pool.spec;
  machine.threads.ensureScratch(BLOCK_TOKENS * headDim * 4);
  machine.threads.run(OP.scoreTokens, {
    taskCount: unitCount * chunks,
    work,
    args: [
      ...[unitsAt, chunks, CHUNK_ITEMS / PAGE_TOKENS, headCount, headCount / kvHeadCount, headDim, pool.blocksAt],
      ...[pool.blockBytes, encoding === "int8" ? 1 : 0, pool.layout.keyScalesAt, kvHeadCount],
    ],
  });
}

/** Masks of the pages with at least one chosen token. `items` are kept index * 16 + token. */
function tokenMasksOf(kept: readonly number[], items: readonly number[]): Map<number, number> {
  const masks = new Map<number, number>();
  for (const item of items) {
    const page = kept[Math.floor(item / PAGE_TOKENS)] as number;
    masks.set(page, (masks.get(page) ?? 0) | (1 << (item % PAGE_TOKENS)));
  }
  return masks;
}

function queriesOf(
  { pool, headCount, q }: SelectArgs,
  { selection, kvHeadFirst, kvHeadCount }: Draft,
): Pick<Unit, "queryAt" | "queryCount" | "headCount" | "kvHeadFirst"> {
  const group = headCount / pool.spec.kvHeadCount;
  const heads = group * kvHeadCount;
  return {
    queryAt: q + (selection.firstRow * headCount + kvHeadFirst * group) * pool.spec.headDim * 4,
    queryCount: selection.group.rowCount * heads,
    headCount: heads,
    kvHeadFirst,
  };
}

/** Hands a draft's choice to the KV heads that share it. */
function finishDraft({ selection, kvHeadFirst, kvHeadCount, candidates, tokenMasks }: Draft): void {
  const taken = tokenMasks === undefined ? candidates : candidates.filter((page) => tokenMasks.has(page));
  const pages = withForcedPages(selection.range, taken);
  const chosen: Chosen = { pages };
  if (tokenMasks !== undefined) chosen.tokenMasks = pages.map((page) => tokenMasks.get(page) ?? 0xffff);
  for (let kvHead = kvHeadFirst; kvHead < kvHeadFirst + kvHeadCount; kvHead++) selection.chosen[kvHead] = chosen;
}

/** Blocks of chosen candidates, for slices that ask. */
function noteChosen(
  layer: number,
  { sliceIndex }: GroupSelection,
  pages: readonly number[],
  { chosenBlocks }: SelectCounters,
): void {
  if (!chosenBlocks.wants(sliceIndex)) return;
  for (const page of pages) chosenBlocks.add({ sliceIndex, layer, block: Math.floor(page / PAGES_PER_BLOCK) });
}

/** Blocks before the last row's own that hold a chosen page and are not on the device. */
function noteMisses(layer: number, selection: GroupSelection, misses: MissSet): void {
  if (selection.range.everything) {
    const ownBlock = Math.floor(selection.group.positionLast / BLOCK_TOKENS);
    for (let block = 0; block < ownBlock; block++) noteMiss(layer, selection, block, misses);
    return;
  }
  let seen: number[] | undefined;
  for (const { pages } of selection.chosen) {
    // KV heads that share a choice share the array.
    if (pages === undefined || pages === seen) continue;
    seen = pages;
    for (const page of pages) noteMiss(layer, selection, Math.floor(page / PAGES_PER_BLOCK), misses);
  }
}

function noteMiss(layer: number, { slice, sliceIndex, group }: GroupSelection, block: number, misses: MissSet): void {
  const ownBlock = Math.floor(group.positionLast / BLOCK_TOKENS);
  if (block < ownBlock && !isResident(layer, slice, block)) misses.add({ sliceIndex, layer, block });
}

/** Whether a block of this layer is on the device. */
export function isResident(layer: number, slice: StepSlice, block: number): boolean {
  return slice.blockIds[layer * slice.blockCapacity + block] !== NOT_RESIDENT;
}

/** Writes what attention reads: page masks per KV head (or one for all), and token masks where a plan has them. */
function writeMasks({ heap }: Machine, arena: Arena, selection: GroupSelection): void {
  const blockEnd = Math.floor(selection.group.positionLast / BLOCK_TOKENS);
  const isShared = selection.chosen.every((chosen) => chosen === selection.chosen[0]);
  const listed = isShared ? selection.chosen.slice(0, 1) : selection.chosen;
  selection.pageMaskStride = isShared ? 0 : blockEnd;
  selection.pageMasksAt = arena.take(Math.max(1, blockEnd * listed.length));
  heap.bytes.fill(0, selection.pageMasksAt, selection.pageMasksAt + blockEnd * listed.length);
  listed.forEach(({ pages = [] }, index) => {
    const at = selection.pageMasksAt + index * blockEnd;
    for (const page of pages) {
      const block = Math.floor(page / PAGES_PER_BLOCK);
      if (block < blockEnd) heap.bytes[at + block] = (heap.bytes[at + block] ?? 0) | (1 << (page % PAGES_PER_BLOCK));
    }
  });
  const { pages = [], tokenMasks } = selection.chosen[0] as Chosen;
  if (tokenMasks !== undefined) selection.tokenMasksAt = writeTokenMasks(heap, arena, { pages, tokenMasks, blockEnd });
}

function writeTokenMasks(
  heap: Machine["heap"],
  arena: Arena,
  { pages, tokenMasks, blockEnd }: { pages: readonly number[]; tokenMasks: readonly number[]; blockEnd: number },
): number {
  const at = arena.take(Math.max(8, blockEnd * 8));
  heap.bytes.fill(0, at, at + blockEnd * 8);
  pages.forEach((page, index) => {
    if (page >= blockEnd * PAGES_PER_BLOCK) return;
    const mask = tokenMasks[index] ?? 0;
    heap.bytes[at + page * 2] = mask & 255;
    heap.bytes[at + page * 2 + 1] = mask >> 8;
  });
  return at;
}

function putWords({ heap }: Machine, arena: Arena, words: ArrayLike<number>): number {
  const at = arena.take(Math.max(4, words.length * 4));
  heap.words.set(words, at / 4);
  return at;
}
