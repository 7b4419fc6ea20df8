/**
 * What select and attend need of a step, worked out once: tables of slices, tiles of attention, units of selection with their rankings, and
 * where everything lies in scratch and in the outcome. It is the same for every layer of which the same slices choose.
 */

import { choiceRow, choiceShape } from "../choice.ts";
import { coarsePass } from "../coarse.ts";
import { BLOCK_TOKENS, NOT_RESIDENT, PAGE_TOKENS, type StepSlice, type SummaryKind } from "../contract.ts";
import {
  choiceRange,
  groupsOfStep,
  keepPages,
  layerKey,
  layerRole,
  needsPageScores,
  type PageRange,
  pageCombine,
  pageRange,
  type SelectingPlan,
  type StepGroup,
  selectsPerLayer,
  takesUnevenly,
} from "../page-range.ts";
import { assertSlicesFit } from "../validate.ts";
import type { WebGpuPool } from "./pool.ts";
import {
  coversAll,
  inLayer,
  massShareOf,
  type Ranked,
  rankingOf,
  rawWordsOf,
  strideOf,
  type Unit,
  type UnitRecord,
  type UnitTake,
} from "./units.ts";
import { LIST_BLOCKS, LIST_WORDS, SPLIT_BLOCKS, TILE_WORDS } from "./wgsl/attend.ts";
import { COUNTERS } from "./wgsl/masks.ts";
import { turnedWords } from "./wgsl/residual-signs.ts";
import { SCORE_HEADS } from "./wgsl/score.ts";
import { NOWHERE, RANKING_FIELDS, UNIT_FIELDS } from "./wgsl/unit.ts";
import { Addresses, floatBits, type Words } from "./words.ts";

/** Raw scores that lie in scratch at a time, in words; a larger unit is a batch of its own. */
const RAW_WORDS_MAX = 1 << 24;

/** One query group and what is known of its choice before any score. */
export interface GroupLayout extends StepGroup {
  range: PageRange;
  /** All blocks of its slice are on the device, in every layer. */
  isResident: boolean;
}

/** Units whose scores are computed together. */
export interface Batch {
  /** What pages, or their blocks, are scored by; undefined: tokens. */
  summary: SummaryKind | undefined;
  unitsAt: number;
  rankingsAt: number;
  unitCount: number;
  /** The most of any unit. */
  candidatesMax: number;
  chunksMax: number;
  queriesMax: number;
  usesSoftmax: boolean;
  usesMass: boolean;
  /** What scores them makes their keys, too: each unit has one row and one KV head, and its largest score counts. */
  makesKeys: boolean;
}

/** Tables of the layers in which the same slices choose as much, take over a choice, or attend to everything. */
export interface LayerLists {
  tiles: UnitTable;
  /** Most splits of a tile. */
  splitCount: number;
  /** All units that select, for the lists of blocks; those of token plans that list pages. */
  units: UnitTable;
  listUnits: UnitTable;
  /** What ranks blocks before their pages. */
  blockBatches: readonly Batch[];
  batches: readonly Batch[];
  tokenBatches: readonly Batch[];
}

/** Units in one table. */
export interface UnitTable {
  at: number;
  count: number;
}

/** Where a slice's own tables and bitmaps are. */
interface SlicePlace {
  /** The step before had the same block ids of the same pool, and checked them. */
  isKept: boolean;
  isResident: boolean;
  blockIdsAt: number;
  blockIdsStride: number;
  summarySlotsAt: number;
  countersAt: number;
  missesAt: number;
  chosenAt: number;
  bitmapStride: number;
}

/** Where the choice that a slice asked for lies in the outcome: of every unit of its last group, `[layer][words]`. */
export interface ReportedChoice {
  sliceIndex: number;
  units: readonly { at: number; stride: number; blockCount: number }[];
}

/** Bitmap of a slice in the outcome. */
export interface Bitmap {
  sliceIndex: number;
  at: number;
  /** Words of one layer. */
  stride: number;
}

/** What the layout is made of; `tables` and `outcome` are the step's. */
export interface LayoutParts {
  pool: WebGpuPool;
  headCount: number;
  slices: readonly StepSlice[];
  tables: Words;
  outcome: Addresses;
}

/** See the head of this file. */
export class StepLayout {
  readonly pool: WebGpuPool;
  readonly headCount: number;
  readonly groups: GroupLayout[] = [];
  /** `(position, open slot, token)` of every row. */
  readonly rowsAt: number;
  readonly rowCount: number;
  /** Rows of a tile: 1 where every slice has one row. */
  readonly tileRows: number;
  readonly codesAt: number;
  readonly scalesAt: number;
  /** As they are turned for residual signs, where some unit scores by these. */
  readonly turnedAt: number;
  readonly partialsAt: number;
  /** Words of scratch without partial results. */
  readonly scratchWords: number;
  readonly countersAt: readonly number[];
  readonly misses: Bitmap[] = [];
  readonly chosen: Bitmap[] = [];
  readonly choices: ReportedChoice[] = [];
  readonly #parts: LayoutParts;
  readonly #scratch = new Addresses();
  readonly #places: SlicePlace[];
  readonly #units: Unit[] = [];
  readonly #choices: { layout: GroupLayout; units: Unit[] }[] = [];
  readonly #lists = new Map<string, LayerLists>();
  readonly #ofLayers: LayerLists[] = [];
  readonly #rawAt: number;

  constructor(parts: LayoutParts) {
    const { pool, slices, tables } = parts;
    this.#parts = parts;
    this.pool = pool;
    this.headCount = parts.headCount;
    this.rowCount = slices.reduce((rows, slice) => rows + slice.rowCount, 0);
    this.#places = slices.map((slice, index) => this.#placeSlice(slice, index));
    assertSlicesFit(pool.spec, slices, (index) => this.#places[index]?.isKept === true);
    for (const { blockIdsAt, summarySlotsAt } of this.#places) {
      tables.vouch(blockIdsAt, pool);
      if (summarySlotsAt !== NOWHERE) tables.vouch(summarySlotsAt, pool);
    }
    this.countersAt = this.#places.map(({ countersAt }) => countersAt);
    this.rowsAt = tables.push(slices.flatMap(rowRecords));
    const isDecode = slices.every(({ rowCount }) => rowCount === 1);
    this.tileRows = isDecode ? 1 : pool.spec.headDim > 128 ? 2 : 4;
    for (const stepGroup of groupsOfStep(slices)) {
      const range = pageRange(stepGroup.slice.plan, stepGroup.group);
      const { isResident } = this.#places[stepGroup.sliceIndex] as SlicePlace;
      const layout = { ...stepGroup, range, isResident };
      this.groups.push(layout);
      const units = this.#unitsOf(layout);
      this.#units.push(...units);
      this.#choices.push({ layout, units });
      if (layout.isReported) this.#placeReport(layout, units);
    }
    const queryWords = this.#units.some(({ scoresPages }) => scoresPages) ? this.rowCount * this.headCount : 0;
    this.codesAt = this.#scratch.take(queryWords * pool.spec.headDim);
    this.scalesAt = this.#scratch.take(queryWords);
    const isTurned = this.#units.some(({ scoresPages, plan }) => scoresPages && scoresResiduals(plan));
    this.turnedAt = this.#scratch.take(isTurned ? queryWords * turnedWords(pool.spec.headDim) : 0);
    for (const unit of this.#units) this.#placeChoice(unit);
    this.#rawAt = this.#scratch.take(Math.max(this.#rawWords(true), this.#rawWords(false)));
    this.partialsAt = this.#scratch.take(0);
    this.scratchWords = this.partialsAt;
  }

  /** The tables of a layer, made when they are asked for first. */
  listsOf(layer: number): LayerLists {
    this.#ofLayers[layer] ??= this.#listsLike(layer);
    return this.#ofLayers[layer];
  }

  /** Those of a layer that is alike, or new ones. */
  #listsLike(layer: number): LayerLists {
    const { slices } = this.#parts;
    const key = slices.map(({ plan }) => layerKey(plan, layer, this.pool.spec.kvHeadCount)).join();
    const known = this.#lists.get(key);
    if (known !== undefined) return known;
    const roles = slices.map(({ plan }) => layerRole(plan, layer));
    let splitCount = 0;
    const tiles = this.#choices.flatMap(({ layout, units: all }) => {
      const isDense = roles[layout.sliceIndex] === "everything" || all.every((unit) => coversAll(inLayer(unit, layer)));
      const units = isDense ? [] : all;
      splitCount = Math.max(splitCount, splitsOf(layout, units));
      return this.#tilesOf(layout, units);
    });
    const selecting = this.#units
      .filter(({ sliceIndex }) => roles[sliceIndex] !== "everything")
      .map((unit) => inLayer(unit, layer));
    const choosing = selecting.filter(({ sliceIndex }) => roles[sliceIndex] === "chooses");
    const listing = choosing.filter(({ listMax }) => listMax > 0);
    const scored = choosing.filter(({ scoresPages }) => scoresPages);
    const byKind = (units: readonly Unit[], ranked: Ranked): Batch[] =>
      this.pool.spec.summaryKinds.flatMap((kind) =>
        this.#batchesOf(
          units.filter(({ plan }) => plan.scorer?.summary === kind),
          ranked,
          kind,
        ),
      );
    const lists = {
      tiles: { at: this.#parts.tables.push(tiles), count: tiles.length / TILE_WORDS },
      splitCount,
      blockBatches: byKind(
        scored.filter(({ pass }) => pass !== undefined),
        "blocks",
      ),
      batches: byKind(scored, "pages"),
      tokenBatches: this.#batchesOf(listing, "tokens"),
      units: this.#table(selecting),
      listUnits: this.#table(listing),
    };
    this.#lists.set(key, lists);
    return lists;
  }

  /** Words that the largest batch of any layer can take. */
  #rawWords(isPages: boolean): number {
    const words = this.#units
      .filter(({ scoresPages, listMax }) => (isPages ? scoresPages : listMax > 0))
      .map((unit) => rawWordsOf(unit, isPages ? "pages" : "tokens"));
    const sum = words.reduce((a, b) => a + b, 0);
    return Math.min(sum, RAW_WORDS_MAX + Math.max(0, ...words));
  }

  #placeSlice(slice: StepSlice, sliceIndex: number): SlicePlace {
    const { pool, tables, outcome } = this.#parts;
    const { layerCount } = pool.spec;
    const blockCount = lastBlock(slice);
    const rows = { rows: layerCount, stride: slice.blockCapacity, count: blockCount };
    const { at: blockIdsAt, isKept } = tables.pushRows(slice.blockIds, rows, pool);
    const isResident = !tables.includes(NOT_RESIDENT, blockIdsAt, layerCount * blockCount);
    const selects = slice.plan.kind !== "dense";
    const slotRow = { rows: 1, stride: 0, count: blockCount };
    const summarySlotsAt = selects ? tables.pushRows(slice.summarySlots, slotRow, pool).at : NOWHERE;
    const countersAt = outcome.take(COUNTERS.length);
    const stride = Math.ceil(slice.blockCapacity / 32);
    const bitmap = (list: Bitmap[], isNeeded: boolean): number => {
      if (!isNeeded) return NOWHERE;
      const at = outcome.take(layerCount * stride);
      list.push({ sliceIndex, at, stride });
      return at;
    };
    return {
      ...{
        isKept,
        isResident,
        blockIdsAt,
        blockIdsStride: blockCount,
        summarySlotsAt,
        countersAt,
        bitmapStride: stride,
      },
      missesAt: bitmap(this.misses, selects && !isResident),
      chosenAt: bitmap(this.chosen, slice.reportBlocks === true),
    };
  }

  #unitsOf(layout: GroupLayout): Unit[] {
    const { slice, range } = layout;
    if (slice.plan.kind === "dense" || range.everything) return [];
    const { kvHeadCount } = this.pool.spec;
    const plan = slice.plan;
    const heads = selectsPerLayer(plan)
      ? [{ kvFirst: 0, kvCount: kvHeadCount }]
      : Array.from({ length: kvHeadCount }, (_, kvFirst) => ({ kvFirst, kvCount: 1 }));
    const takes = heads.map(({ kvFirst }) => this.#takesOf(layout, plan, kvFirst));
    const keepMax = Math.max(...takes.flat().map(({ keep }) => keep));
    // The same for every head: their lists lie at even distances.
    const blocksMax = Math.min(
      Math.floor(layout.group.positionLast / BLOCK_TOKENS) + 1,
      range.pageEnd - range.candidateCount + keepMax,
    );
    return heads.map((head, index) => this.#unit(layout, plan, { ...head, takes: takes[index]!, blocksMax }));
  }

  #unit(
    layout: GroupLayout,
    plan: SelectingPlan,
    { kvFirst, kvCount, takes, blocksMax }: Pick<Unit, "takes" | "blocksMax"> & { kvFirst: number; kvCount: number },
  ): Unit {
    const { sliceIndex, group, firstRow, voterCount, range } = layout;
    const place = this.#places[sliceIndex] as SlicePlace;
    const headsPerKvHead = this.headCount / this.pool.spec.kvHeadCount;
    const block = Math.floor(group.positionLast / BLOCK_TOKENS);
    const [first] = takes as [UnitTake];
    const record: UnitRecord = {
      ...{ first_row: firstRow, row_count: voterCount, kv_first: kvFirst, kv_count: kvCount },
      ...{ page_first: range.sinkEnd, page_count: range.candidateCount, page_end: range.pageEnd, last_block: block },
      ...{ summary_slots_at: place.summarySlotsAt, block_ids_at: place.blockIdsAt },
      ...{ block_ids_stride: place.blockIdsStride, counters_at: place.countersAt },
      ...{ misses_at: place.missesAt, misses_stride: place.bitmapStride },
      ...{ chosen_at: place.chosenAt, chosen_stride: place.bitmapStride },
      blocks_at: this.#scratch.take(1 + blocksMax * LIST_WORDS),
      keeps: first.keeps,
      ...this.#placeGiven(layout, plan, kvFirst),
      ...{ report_at: NOWHERE, choice_stride: Math.ceil(block / 4) },
      radius_weight: floatBits(plan.scorer?.radiusWeight ?? 0),
      ...{ raw_at: NOWHERE, raw_stride: range.candidateCount, flags_at: NOWHERE },
      ...{ ranking_at: NOWHERE, hands_on: (plan.layersPerChoice ?? 1) > 1 ? 1 : 0 },
      ...{ block_first: 0, block_count: 0, block_raw_at: NOWHERE, block_flags_at: NOWHERE },
      ...{ list_at: NOWHERE, list_count_at: NOWHERE, places_at: NOWHERE },
      ...{ token_take: range.takePages * PAGE_TOKENS, token_raw_at: NOWHERE, token_raw_stride: 0 },
      token_flags_at: NOWHERE,
    };
    return {
      ...{ sliceIndex, record, plan, takes, keep: first.keep, keepsAll: first.keepsAll, pass: first.pass, blocksMax },
      // Of the layers that choose: those that do not score have no use for the room.
      scoresPages: takes.some(({ scoresPages }) => scoresPages),
      queryCount: voterCount * kvCount * headsPerKvHead,
      chunkCount: voterCount * kvCount * Math.ceil(headsPerKvHead / SCORE_HEADS),
      listMax: plan.kind === "tokens" ? first.keep : 0,
    };
  }

  /** Of every layer; one for all where they do not differ. */
  #takesOf({ given, range }: GroupLayout, plan: SelectingPlan, kvHead: number): UnitTake[] {
    const { layerCount, kvHeadCount } = this.pool.spec;
    return Array.from({ length: takesUnevenly(plan) ? layerCount : 1 }, (_, layer) => {
      const own = choiceRange(plan, range, { layer, kvHead, kvHeadCount });
      const keep = keepPages(plan, own);
      const keepsAll = keep > 0 && !needsPageScores(plan, own);
      const scoresPages = given === undefined && needsPageScores(plan, own);
      const pass = scoresPages ? coarsePass(plan, own) : undefined;
      return { keep, keepsAll, scoresPages, pass, keeps: given !== undefined ? 3 : scoresPages ? 2 : keep > 0 ? 1 : 0 };
    });
  }

  /** Puts a unit's part of the choice that an earlier step made into the tables, layer by layer in whole words. */
  #placeGiven({ group, given }: GroupLayout, plan: SelectingPlan, index: number): { given_at: number } {
    if (given === undefined) return { given_at: NOWHERE };
    const shape = choiceShape(this.pool.spec, plan, group.positionLast);
    const stride = Math.ceil(shape.blockCount / 4);
    const words = new Uint32Array(shape.layerCount * stride);
    const bytes = new Uint8Array(words.buffer);
    for (let layer = 0; layer < shape.layerCount; layer++) {
      bytes.set(choiceRow(given, shape, layer, index), layer * stride * 4);
    }
    return { given_at: this.#parts.tables.push(words) };
  }

  /** Room in the outcome for what a slice's last group attends to. */
  #placeReport({ sliceIndex, group }: GroupLayout, units: readonly Unit[]): void {
    const blockCount = Math.floor(group.positionLast / BLOCK_TOKENS);
    const placed = units.map(({ record }) => {
      const stride = record.choice_stride;
      record.report_at = this.#parts.outcome.take(this.pool.spec.layerCount * stride);
      return { at: record.report_at, stride, blockCount };
    });
    this.choices.push({ sliceIndex, units: placed });
  }

  /** Room for a unit's flags and lists. */
  #placeChoice({ record, scoresPages, listMax, takes }: Unit): void {
    if (scoresPages) record.flags_at = this.#scratch.take(record.page_count);
    const blocks = takes.map(({ pass }) => (pass === undefined ? 0 : pass.blockEnd - pass.blockFirst));
    if (Math.max(...blocks) > 0) record.block_flags_at = this.#scratch.take(Math.max(...blocks));
    if (listMax === 0) return;
    record.list_at = this.#scratch.take(listMax);
    record.list_count_at = this.#scratch.take(1);
    record.places_at = this.#scratch.take(record.page_count);
    record.token_flags_at = this.#scratch.take(listMax * PAGE_TOKENS);
    record.token_raw_stride = listMax * PAGE_TOKENS;
  }

  /** Tables of units and rankings, cut so that a batch's raw scores fit; all batches use the same room. */
  #batchesOf(units: readonly Unit[], ranked: Ranked, summary?: SummaryKind): Batch[] {
    const batches: Unit[][] = [];
    let words = 0;
    for (const unit of units) {
      const own = rawWordsOf(unit, ranked);
      if (batches.length === 0 || words + own > RAW_WORDS_MAX) {
        batches.push([]);
        words = 0;
      }
      batches.at(-1)?.push(unit);
      words += own;
    }
    return batches.map((batch) => {
      let at = this.#rawAt;
      const take = (count: number): number => {
        const start = at;
        at += count;
        return start;
      };
      const rankings = batch.map((unit) => {
        const raw = take(unit.queryCount * strideOf(unit, ranked));
        unit.record[({ blocks: "block_raw_at", pages: "raw_at", tokens: "token_raw_at" } as const)[ranked]] = raw;
        const keys = take(strideOf(unit, ranked));
        return rankingOf(unit, ranked, { raw, stats: take(unit.queryCount * 2), keys });
      });
      const usesSoftmax = batch.some(({ plan }) => pageCombine(plan) === "softmax-sum");
      const rankingsAt = this.#parts.tables.push(rankings.flat());
      batch.forEach(({ record }, index) => {
        record.ranking_at = rankingsAt + index * RANKING_FIELDS.length;
      });
      const units = this.#table(batch);
      return {
        ...{ summary, unitsAt: units.at, unitCount: units.count, rankingsAt },
        candidatesMax: Math.max(...batch.map((unit) => strideOf(unit, ranked))),
        chunksMax: Math.max(...batch.map(({ chunkCount }) => chunkCount)),
        queriesMax: Math.max(...batch.map(({ queryCount }) => queryCount)),
        usesMass: ranked === "pages" && batch.some(({ plan }) => massShareOf(plan) > 0),
        usesSoftmax,
        makesKeys: ranked !== "tokens" && !usesSoftmax && batch.every(hasOneRowAndHead),
      };
    });
  }

  #table(units: readonly Unit[]): UnitTable {
    const at = this.#parts.tables.length;
    for (const { record } of units) this.#parts.tables.record(UNIT_FIELDS, record);
    return { at, count: units.length };
  }

  /** Tiles of a group: runs of rows that share their own block. */
  #tilesOf({ slice, sliceIndex, group, firstRow }: GroupLayout, units: readonly Unit[]): number[] {
    const place = this.#places[sliceIndex] as SlicePlace;
    const first = units[0]?.record;
    const second = units[1]?.record;
    const listAt = first?.blocks_at ?? NOWHERE;
    const headLists = first === undefined || second === undefined ? 0 : second.blocks_at - first.blocks_at;
    const sliceBlock = Math.floor(slice.position / BLOCK_TOKENS);
    const words: number[] = [];
    for (let row = 0; row < group.rowCount; ) {
      const position = group.positionFirst + row;
      const block = Math.floor(position / BLOCK_TOKENS);
      const count = Math.min(this.tileRows, group.rowCount - row, (block + 1) * BLOCK_TOKENS - position);
      const slot = slice.openSlots[block - sliceBlock] as number;
      words.push(firstRow + row, count, position, place.blockIdsAt, place.blockIdsStride);
      words.push(listAt, headLists, slot, block + 1, 0);
      row += count;
    }
    return words;
  }
}

function hasOneRowAndHead({ record }: Unit): boolean {
  return record.row_count === 1 && record.kv_count === 1;
}

function scoresResiduals({ scorer }: SelectingPlan): boolean {
  return scorer?.summary === "residual-signs";
}

/** Most splits of a group's attention. */
function splitsOf({ group }: GroupLayout, units: readonly Unit[]): number {
  if (units.length === 0) return Math.ceil((Math.floor(group.positionLast / BLOCK_TOKENS) + 1) / SPLIT_BLOCKS);
  return Math.ceil(Math.max(...units.map(({ blocksMax }) => blocksMax)) / LIST_BLOCKS);
}

function rowRecords(slice: StepSlice): number[] {
  const sliceBlock = Math.floor(slice.position / BLOCK_TOKENS);
  const words: number[] = [];
  for (let row = 0; row < slice.rowCount; row++) {
    const position = slice.position + row;
    const slot = slice.openSlots[Math.floor(position / BLOCK_TOKENS) - sliceBlock] as number;
    words.push(position, slot, position % BLOCK_TOKENS);
  }
  return words;
}

/** The block of a slice's last row. */
function lastBlock({ position, rowCount }: StepSlice): number {
  return Math.floor((position + rowCount - 1) / BLOCK_TOKENS);
}
