/** Units of selection in memory: what is ranked for one query group, in one KV head or in the whole layer. */
import type { CombineRule } from "../contract.ts";
import type { Arena } from "./heap.ts";
import type { Machine } from "./machine.ts";

/** What is ranked; the record in memory is described in assembly/units.ts. */
export interface Unit {
  /** Index of the first row and head among the step's query vectors. */
  firstVector: number;
  /** Rows times `headCount`, rows first. */
  queryCount: number;
  /** Query heads of the unit in one row. */
  headCount: number;
  kvHeadFirst: number;
  /** Items to choose from: `[itemFirst, itemEnd)`. */
  itemFirst: number;
  itemEnd: number;
  /** How many of them. */
  take: number;
  combine: CombineRule;
  radiusWeight?: number;
  /** The choice is that of the layer or of the step before: it is only counted. */
  isTakenOver?: boolean;
  /** Where choices go: a byte for four items. */
  choiceAt: number;
  /** Block ids of the slice, `[layer][capacity]`. */
  blockIdsAt: number;
  blockCapacity: number;
  pages?: PageFields;
  /** Of units that take as many of their best as reach a share of the weight: that share, and who is to be told how many. */
  mass?: { share: number; choice: { taken: number } };
  /** Address of the kept pages, of units that rank tokens. */
  keptPagesAt?: number;
}

/** A unit that ranks pages, or blocks as wholes. */
export type PageUnit = Unit & { pages: PageFields };

/** What only units of pages have. */
export interface PageFields {
  /** Item 0 is page 0 of this block, or this block as a whole (summaryForm {@link BLOCK_CENTRES}). */
  blockFirst: number;
  summarySlotsAt: number;
  /** The scorer's summaries, and their form (assembly/units.ts). */
  summariesAt: number;
  summaryForm: number;
  masksAt: number;
  /** Blocks that have a mask. */
  blockEnd: number;
  sinkEnd: number;
  recentStart: number;
  countsAt: number;
  bitmapAt: number;
  bitmapWords: number;
  /** Blocks that a coarse pass lists: what it writes, or in the place of those from blockFirst on what its page unit reads. */
  listAt?: number;
}

/** The form of centres of blocks, in assembly/units.ts. */
export const BLOCK_CENTRES = 3;
/** That of residual signs. */
export const RESIDUAL_SIGNS = 4;

/** Bytes of a record. */
export const UNIT_BYTES = 128;
/** Raw scores of a tile of queries over all units may take this much; more queries run in further tiles. */
const RAW_BYTES_MAX = 16 * 1024 * 1024;

/** Records side by side, all of whose scores combine alike, and how many queries run at a time. */
export interface UnitTable {
  at: number;
  count: number;
  combine: CombineRule;
  queryMax: number;
  /** Queries that run at a time. */
  tile: number;
  itemMax: number;
  /** Items of all units. */
  itemCount: number;
}

/** The combined scores of a unit's items, where a table's scoring has left them; a view. */
export function scoresOf({ heap }: Machine, { at }: UnitTable, units: readonly Unit[], index: number): Float32Array {
  const { itemFirst, itemEnd } = units[index] as Unit;
  const scores = ((heap.words[(at + index * UNIT_BYTES + 28) / 4] as number) >>> 0) / 4;
  return heap.floats.subarray(scores + itemFirst, scores + itemEnd);
}

/** Lets a unit take fewer items than it could. */
export function setTake({ heap }: Machine, { at }: UnitTable, index: number, take: number): void {
  heap.words[(at + index * UNIT_BYTES + 44) / 4] = take;
}

/** Writes the record of a unit that scores nothing. */
export function writeUnscored(machine: Machine, at: number, unit: Unit): void {
  writeUnit(machine, at, unit, { scoresAt: 0, rawAt: 0, sumsAt: 0, stride: 0 });
}

/** Elements of one row of scores. */
function strideOf({ itemEnd }: Unit): number {
  return Math.ceil(itemEnd / 4) * 4;
}

/** Writes records (at `at`) and takes their working memory from `arena`. `units` are not empty and combine alike. */
export function writeUnits(machine: Machine, arena: Arena, at: number, units: readonly Unit[]): UnitTable {
  const combine = (units[0] as Unit).combine;
  const queryMax = Math.max(...units.map((unit) => unit.queryCount));
  const rowBytes = units.reduce((sum, unit) => sum + strideOf(unit) * 4, 0);
  const isVote = combine === "softmax-sum";
  const tile = isVote ? Math.max(1, Math.min(queryMax, Math.floor(RAW_BYTES_MAX / rowBytes))) : queryMax;
  units.forEach((unit, index) => {
    const stride = strideOf(unit);
    const scoresAt = arena.take(stride * 4);
    const rawAt = isVote ? arena.take(stride * 4 * tile) : 0;
    const sumsAt = isVote ? arena.take(tile * 4) : 0;
    writeUnit(machine, at + index * UNIT_BYTES, unit, { scoresAt, rawAt, sumsAt, stride });
  });
  const table = {
    ...{ at, count: units.length, combine, queryMax, tile },
    itemMax: Math.max(...units.map((unit) => unit.itemEnd)),
    itemCount: units.reduce((sum, unit) => sum + unit.itemEnd - unit.itemFirst, 0),
  };
  setTile(machine, table, units, 0);
  return table;
}

/** Lets the records of a table stand for the tile of queries that begins with `first`. */
export function setTile({ heap }: Machine, table: UnitTable, units: readonly Unit[], first: number): void {
  units.forEach(({ queryCount }, index) => {
    const word = (table.at + index * UNIT_BYTES) / 4;
    heap.words[word + 1] = first;
    heap.words[word + 2] = Math.max(0, Math.min(table.tile, queryCount - first));
  });
}

function writeUnit(
  { heap }: Machine,
  at: number,
  unit: Unit,
  { scoresAt, rawAt, sumsAt, stride }: { scoresAt: number; rawAt: number; sumsAt: number; stride: number },
): void {
  const { pages } = unit;
  const { listAt = 0 } = pages ?? {};
  const isCoarse = pages?.summaryForm === BLOCK_CENTRES;
  const record = [
    ...[unit.firstVector, 0, 0, unit.headCount, unit.kvHeadFirst, unit.itemFirst, unit.itemEnd],
    ...[
      scoresAt,
      rawAt,
      sumsAt,
      stride,
      unit.take,
      unit.combine === "max" ? 0 : 1,
      0,
      unit.choiceAt,
      unit.isTakenOver ? 1 : 0,
    ],
    ...(pages === undefined
      ? [unit.keptPagesAt ?? 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
      : [
          ...[pages.blockFirst, pages.summarySlotsAt, pages.summariesAt, pages.masksAt, pages.blockEnd, pages.sinkEnd],
          ...[pages.recentStart, pages.countsAt, pages.bitmapAt, pages.bitmapWords],
        ]),
    ...[unit.blockIdsAt, unit.blockCapacity, pages?.summaryForm ?? 0, isCoarse ? 0 : listAt, isCoarse ? listAt : 0],
  ];
  heap.words.set(record, at / 4);
  heap.floats[at / 4 + 13] = unit.radiusWeight ?? 0;
}
