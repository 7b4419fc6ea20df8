/**
 * What a step's selections have in common over its layers, laid out once: groups with their masks, and for every mix of roles that the
 * slices' plans give a layer (usually there is one) the units.
 */
import { assert } from "../../protocol/assert.ts";
import { type CoarsePass, coarsePass } from "../coarse.ts";
import {
  BLOCK_TOKENS,
  NOT_RESIDENT,
  PAGES_PER_BLOCK,
  type PageScorer,
  type StepSlice,
  type SummaryKind,
} from "../contract.ts";
import { summaryKindIndex } from "../layout.ts";
import {
  choiceRange,
  groupsOfStep,
  keepPages,
  type LayerRole,
  needsPageScores,
  type PageRange,
  pageCombine,
  pageRange,
  type SelectingPlan,
  type StepGroup,
  selectsPerLayer,
} from "../page-range.ts";
import { residualSignsLayout } from "../residual-signs.ts";
import { splitUnit } from "./coarse-units.ts";
import type { Arena } from "./heap.ts";
import type { Machine } from "./machine.ts";
import type { WasmPool } from "./memory.ts";
import {
  type PageUnit,
  RESIDUAL_SIGNS,
  UNIT_BYTES,
  type Unit,
  type UnitTable,
  writeUnits,
  writeUnscored,
} from "./unit-records.ts";

/** Pages (ascending) and masks of their tokens, as a token plan chose them. */
export interface ChosenTokens {
  pages: number[];
  tokenMasks: number[];
}

/** One choice of pages: for one KV head, or for all. */
export interface PageChoice {
  kvHeadFirst: number;
  kvHeadCount: number;
  /** Candidates that the last layer counted took. */
  taken: number;
  masksAt: number;
  /** {chosen blocks that are not resident, resident ones, their tokens} of every layer that has selected. */
  countsAt: number;
}

/** One query group, where attention finds what it chose, and what was counted. */
export interface GroupSelection extends StepGroup {
  /** As for the layers that choose. */
  range: PageRange;
  /** The last row's own block: those before have masks. */
  blockEnd: number;
  /** Block ids of the slice, `[layer][blockCapacity]`. */
  blockIdsAt: number;
  /** u8 per block: bit i is page i; 0 for everything. */
  pageMasksAt: number;
  /** Bytes from one KV head's masks to the next one's; 0: all share. */
  pageMaskStride: number;
  /** u64 per block: bit t is token t; 0 for all tokens of the pages. */
  tokenMasksAt: number;
  /** Empty where every layer attends to everything. */
  choices: PageChoice[];
  /** What the last choice of a token plan was. */
  tokens: ChosenTokens | undefined;
  /** Bytes of K and V that attention at the layer selected last will read, all KV heads. */
  kvBytes: number;
}

/** A table of units with the units that it was written from. */
export interface ScoredUnits {
  table: UnitTable;
  units: readonly Unit[];
}

/** All groups of a step. */
export interface StepGroups {
  pool: WasmPool;
  headCount: number;
  slices: readonly StepSlice[];
  groups: readonly GroupSelection[];
  /** Per slice. */
  places: readonly SlicePlace[];
  /** Whether the host has nothing to do between scores, choice and attention: all blocks are there, and plans need no second look. */
  isUnattended: boolean;
}

/** Units, scored ones by combine rule, then the others, in one run of records. */
export interface UnitRun {
  unitsAt: number;
  unitCount: number;
  scored: readonly ScoredUnits[];
  /** Largest number of items of a unit. */
  itemMax: number;
}

/** What a layer's roles make of the groups. */
export interface LayerBatch extends UnitRun {
  /** Per slice. */
  roles: readonly LayerRole[];
  /** What ranks blocks as wholes before the units of pages run; they may be none. */
  coarse: UnitRun;
  /** Codes and scales of the step's query vectors, of which `[vectorFirst, vectorEnd)` are needed; addresses are those of vector 0. */
  codesAt: number;
  scalesAt: number;
  /** As they are turned for residual signs; undefined where no unit scores by these. */
  turned: { at: number } | undefined;
  vectorFirst: number;
  vectorEnd: number;
}

/** What a group does in a layer. */
export function roleOf({ choices, sliceIndex }: GroupSelection, { roles }: Pick<LayerBatch, "roles">): LayerRole {
  return choices.length === 0 ? "everything" : (roles[sliceIndex] as LayerRole);
}

/** The chosen pages between the forced ones, ascending. */
export function candidatePages(
  bytes: Uint8Array,
  { sinkEnd, recentStart }: Pick<PageRange, "sinkEnd" | "recentStart">,
  { masksAt }: PageChoice,
): number[] {
  const pages: number[] = [];
  for (let page = sinkEnd; page < recentStart; page++) {
    const mask = bytes[masksAt + Math.floor(page / PAGES_PER_BLOCK)] as number;
    if ((mask >> (page % PAGES_PER_BLOCK)) & 1) pages.push(page);
  }
  return pages;
}

/** Lays out the groups of a step in `arena`, which must live as long as they. */
export function prepareGroups(
  machine: Machine,
  arena: Arena,
  { pool, headCount, slices }: Pick<StepGroups, "pool" | "headCount" | "slices">,
): StepGroups {
  const places = slices.map((slice) => placeSlice(machine, arena, pool, slice));
  const groups = groupsOfStep(slices).map((stepGroup): GroupSelection => {
    const { slice, sliceIndex, group } = stepGroup;
    const { blockIdsAt } = places[sliceIndex] as SlicePlace;
    const range = pageRange(slice.plan, group);
    const selection: GroupSelection = {
      ...{ ...stepGroup, range, blockIdsAt, blockEnd: Math.floor(group.positionLast / BLOCK_TOKENS) },
      ...{ pageMasksAt: 0, pageMaskStride: 0, tokenMasksAt: 0, choices: [], tokens: undefined, kvBytes: 0 },
    };
    if (slice.plan.kind !== "dense" && !range.everything) takeMasks(arena, pool, selection, slice.plan);
    return selection;
  });
  const isUnattended = groups.every(isPlain) && slices.every((slice) => isResident(slice, pool.spec.layerCount));
  return { pool, headCount, slices, groups, places, isUnattended };
}

/** Whether the host neither writes nor reads what a group chooses. */
function isPlain({ slice: { plan }, given, isReported }: GroupSelection): boolean {
  return given === undefined && !isReported && plan.kind !== "tokens" && (plan.kind === "dense" || !plan.massShare);
}

/** Whether every block before the last row's own is on the device, in every layer. */
function isResident(slice: StepSlice, layerCount: number): boolean {
  const blockEnd = Math.floor((slice.position + slice.rowCount - 1) / BLOCK_TOKENS);
  for (let layer = 0; layer < layerCount; layer++) {
    const first = layer * slice.blockCapacity;
    for (let index = first; index < first + blockEnd; index++) if (slice.blockIds[index] === NOT_RESIDENT) return false;
  }
  return true;
}

/** What a choice may take in a layer. */
export function rangeIn(
  selection: GroupSelection,
  { kvHeadFirst }: Pick<PageChoice, "kvHeadFirst">,
  layer: number,
  { spec }: WasmPool,
): PageRange {
  const { slice, range } = selection;
  return choiceRange(slice.plan, range, { layer, kvHead: kvHeadFirst, kvHeadCount: spec.kvHeadCount });
}

/** Whether a choice's pages are scored in a layer that chooses. */
export function scoresIn(selection: GroupSelection, choice: PageChoice, layer: number, pool: WasmPool): boolean {
  return (
    selection.given === undefined && needsPageScores(selection.slice.plan, rangeIn(selection, choice, layer, pool))
  );
}

/** Lays out what layers of these roles, that take like `layer`, have in common. `arena` must live as long as the groups. */
export function prepareLayers(
  machine: Machine,
  arena: Arena,
  step: StepGroups,
  { roles, layer }: { roles: readonly LayerRole[]; layer: number },
): LayerBatch {
  const entries: UnitEntry[] = [];
  for (const selection of step.groups) {
    const role = roleOf(selection, { roles });
    // What a token plan takes over, the host counts.
    if (role === "everything" || (role === "takes-over" && selection.slice.plan.kind === "tokens")) continue;
    for (const choice of selection.choices) {
      const isScored = role === "chooses" && scoresIn(selection, choice, layer, step.pool);
      const place = step.places[selection.sliceIndex] as SlicePlace;
      const range = rangeIn(selection, choice, layer, step.pool);
      const unit = unitOf(step, { ...selection, range }, { choice, isScored }, place);
      const isTakenOver = role === "takes-over" || selection.given !== undefined;
      const entry = { unit: { ...unit, isTakenOver }, isScored };
      const pass = isScored ? coarsePass(selection.slice.plan, range) : undefined;
      entries.push(pass === undefined ? entry : withCoarse(arena, step.pool, { selection, range, pass, entry }));
    }
  }
  const coarse = entries.flatMap((entry) => (entry.coarse === undefined ? [] : { unit: entry.coarse, isScored: true }));
  return {
    ...{ roles, ...writeRun(machine, arena, entries), coarse: writeRun(machine, arena, coarse) },
    ...placeQueries(arena, step, entries),
  };
}

/** A unit, whether its layer scores, and the unit of blocks that goes before it, if one does. */
interface UnitEntry {
  unit: PageUnit;
  isScored: boolean;
  coarse?: PageUnit;
}

/** Has a coarse pass go before a unit. */
function withCoarse(
  arena: Arena,
  pool: WasmPool,
  split: { selection: GroupSelection; range: PageRange; pass: CoarsePass; entry: UnitEntry },
): UnitEntry {
  const { range, pass, entry } = split;
  const { scorer } = split.selection.slice.plan as SelectingPlan;
  const centresAt = pool.centresAt[summaryKindIndex(pool.spec, (scorer as PageScorer).summary)] as number;
  const { coarse, fine } = splitUnit(arena, entry.unit, range, { pass, centresAt });
  return { ...entry, unit: fine, coarse };
}

/** What the groups of a slice share. */
export interface SlicePlace {
  blockIdsAt: number;
  summarySlotsAt: number;
  /** The slice's bitmap of chosen blocks; 0 where it did not ask. */
  bitmapAt: number;
  /** Words of a layer. */
  bitmapWords: number;
}

function placeSlice(machine: Machine, arena: Arena, { spec }: WasmPool, slice: StepSlice): SlicePlace {
  const bitmapWords = Math.ceil(slice.blockCapacity / 32);
  const bitmapAt = slice.reportBlocks ? arena.take(Math.max(4, spec.layerCount * bitmapWords * 4)) : 0;
  if (bitmapAt !== 0) machine.heap.bytes.fill(0, bitmapAt, bitmapAt + spec.layerCount * bitmapWords * 4);
  const blockIdsAt = putWords(machine, arena, slice.blockIds);
  const summarySlotsAt = slice.plan.kind === "dense" ? 0 : putWords(machine, arena, slice.summarySlots);
  return { blockIdsAt, summarySlotsAt, bitmapAt, bitmapWords };
}

/** Lets ops that run from now on see the slices' block ids and summary slots as they are now. */
export function refreshTables({ heap }: Machine, { slices, places }: StepGroups): void {
  for (const [index, { blockIdsAt, summarySlotsAt }] of places.entries()) {
    const { blockIds, summarySlots } = slices[index] as StepSlice;
    heap.words.set(blockIds, blockIdsAt / 4);
    if (summarySlotsAt !== 0) heap.words.set(summarySlots, summarySlotsAt / 4);
  }
}

/** Copies words into the heap. */
export function putWords({ heap }: Machine, arena: Arena, words: Int32Array | readonly number[]): number {
  const at = arena.take(Math.max(4, words.length * 4));
  heap.words.set(words, at / 4);
  return at;
}

function takeMasks(arena: Arena, { spec }: WasmPool, selection: GroupSelection, plan: SelectingPlan): void {
  const { blockEnd } = selection;
  const isShared = selectsPerLayer(plan);
  const count = isShared ? 1 : spec.kvHeadCount;
  // Rows of masks are padded, so that eight can be read at a time.
  const stride = Math.ceil(blockEnd / 8) * 8 + 8;
  selection.pageMasksAt = arena.take(stride * count);
  selection.pageMaskStride = isShared ? 0 : stride;
  if (plan.kind === "tokens") selection.tokenMasksAt = arena.take(Math.max(8, blockEnd * 8));
  selection.choices = Array.from({ length: count }, (_, index) => ({
    kvHeadFirst: index,
    kvHeadCount: isShared ? spec.kvHeadCount : 1,
    taken: 0,
    masksAt: selection.pageMasksAt + index * stride,
    countsAt: arena.take(12 * spec.layerCount),
  }));
}

/** How a kind's codes are scored, as assembly/units.ts numbers it. */
function summaryForm(kind: SummaryKind | undefined): number {
  if (kind === "representatives") return 1;
  if (kind === "residual-signs") return RESIDUAL_SIGNS;
  return kind === "sign-bits" ? 2 : 0;
}

function unitOf(
  { pool, headCount }: StepGroups,
  { slice, range, firstRow, voterCount, blockEnd }: GroupSelection,
  { choice, isScored }: { choice: PageChoice; isScored: boolean },
  { blockIdsAt, summarySlotsAt, bitmapAt, bitmapWords }: SlicePlace,
): PageUnit {
  const { kvHeadFirst, kvHeadCount, masksAt, countsAt } = choice;
  const plan = slice.plan as SelectingPlan;
  const massShare = isScored && plan.kind === "pages" ? plan.massShare : undefined;
  const headsPerKvHead = headCount / pool.spec.kvHeadCount;
  const blockFirst = Math.floor(range.sinkEnd / PAGES_PER_BLOCK);
  const { scorer } = plan;
  assert(!isScored || scorer !== undefined, "a plan without a scorer takes no candidates");
  const summariesAt = isScored && scorer ? pool.summariesAt[summaryKindIndex(pool.spec, scorer.summary)] : 0;
  return {
    firstVector: firstRow * headCount + kvHeadFirst * headsPerKvHead,
    queryCount: voterCount * headsPerKvHead * kvHeadCount,
    headCount: headsPerKvHead * kvHeadCount,
    kvHeadFirst,
    itemFirst: range.sinkEnd - blockFirst * PAGES_PER_BLOCK,
    itemEnd: Math.max(range.sinkEnd, range.recentStart) - blockFirst * PAGES_PER_BLOCK,
    take: keepPages(plan, range),
    combine: pageCombine(plan),
    radiusWeight: scorer?.radiusWeight ?? 0,
    choiceAt: masksAt + blockFirst,
    ...{ blockIdsAt, blockCapacity: slice.blockCapacity },
    ...(massShare === undefined ? {} : { mass: { share: massShare, choice } }),
    pages: {
      ...{ blockFirst, summarySlotsAt, summariesAt: summariesAt ?? 0, masksAt, blockEnd, countsAt },
      summaryForm: summaryForm(scorer?.summary),
      ...{ sinkEnd: range.sinkEnd, recentStart: range.recentStart, bitmapWords },
      // A token plan's blocks are known after its second stage.
      bitmapAt: plan.kind === "tokens" ? 0 : bitmapAt,
    },
  };
}

/** Writes all units in one run of records: those that combine by max, those that vote, those that score nothing. */
function writeRun(machine: Machine, arena: Arena, entries: readonly Pick<UnitEntry, "unit" | "isScored">[]): UnitRun {
  const unitsAt = arena.take(entries.length * UNIT_BYTES);
  const scoring = entries.filter(({ isScored }) => isScored).map(({ unit }) => unit);
  const scored: ScoredUnits[] = [];
  let at = unitsAt;
  for (const combine of ["max", "softmax-sum"] as const) {
    const units = scoring.filter((unit) => unit.combine === combine);
    if (units.length === 0) continue;
    scored.push({ table: writeUnits(machine, arena, at, units), units });
    at += units.length * UNIT_BYTES;
  }
  for (const { unit, isScored } of entries) {
    if (isScored) continue;
    writeUnscored(machine, at, unit);
    at += UNIT_BYTES;
  }
  const itemMax = Math.max(0, ...entries.map(({ unit }) => unit.itemEnd));
  return { unitsAt, unitCount: entries.length, scored, itemMax };
}

/** Room for the codes and scales of the query vectors that some unit scores with. */
function placeQueries(
  arena: Arena,
  { pool, headCount }: StepGroups,
  entries: readonly UnitEntry[],
): Pick<LayerBatch, "codesAt" | "scalesAt" | "turned" | "vectorFirst" | "vectorEnd"> {
  const scored = entries.filter(({ isScored }) => isScored);
  const rows = scored.map(({ unit: { firstVector, queryCount, headCount: heads } }) => {
    const first = Math.floor(firstVector / headCount);
    return { first, end: first + queryCount / heads };
  });
  const vectorFirst = rows.length === 0 ? 0 : Math.min(...rows.map(({ first }) => first)) * headCount;
  const vectorEnd = Math.max(0, ...rows.map(({ end }) => end)) * headCount;
  const codeBytes = Math.ceil(pool.spec.headDim / 8) * 16;
  const isTurned = scored.some(({ unit }) => unit.pages.summaryForm === RESIDUAL_SIGNS);
  const turnedBytes = isTurned ? residualSignsLayout(pool.spec.headDim).tokenBytes * 32 + pool.spec.headDim * 4 : 0;
  return {
    ...{ vectorFirst, vectorEnd },
    codesAt: arena.take((vectorEnd - vectorFirst) * codeBytes) - vectorFirst * codeBytes,
    scalesAt: arena.take((vectorEnd - vectorFirst) * 4) - vectorFirst * 4,
    turned: isTurned
      ? { at: arena.take((vectorEnd - vectorFirst) * turnedBytes) - vectorFirst * turnedBytes }
      : undefined,
  };
}
