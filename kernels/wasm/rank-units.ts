/** Scores the candidates of many units (a query group in one KV head, or in a whole layer) and takes the best of each. */
import type { CombineRule } from "../contract.ts";
import type { Machine } from "./machine.ts";
import { OP } from "./ops.ts";

/** What is ranked for one unit; the record in memory is described in assembly/select.ts. */
export interface Unit {
  /** Address of the query vector of the unit's first row and head. */
  queryAt: number;
  /** Rows times `headCount`, rows first. */
  queryCount: number;
  /** Query heads of the unit in one row. */
  headCount: number;
  kvHeadFirst: number;
  /** Pages or tokens to choose from. */
  itemCount: number;
  /** How many: 1..itemCount. */
  take: number;
  combine: CombineRule;
  /**
   * Page scores: first candidate page, address of the slice's summary slots, address of the scorer's summaries of the layer in slot 0, index
   * of the first row and head among the query codes.
   */
  candidateFirst?: number;
  summarySlotsAt?: number;
  summariesAt?: number;
  queryVector?: number;
  radiusWeight?: number;
  /** Token scores: the kept pages and the layer's block ids, as addresses. */
  keptPagesAt?: number;
  blockIdsAt?: number;
}

/** Runs the scoring op over all units' current tile of queries: records at `unitsAt`, of at most `itemMax` items each. */
export type ScoreUnits = (launch: { unitsAt: number; unitCount: number; itemMax: number; work: number }) => void;

const UNIT_BYTES = 96;
/** Raw scores of a tile of queries over all units may take this much; more queries run in further tiles. */
const RAW_BYTES_MAX = 16 * 1024 * 1024;
/** Items of one scoring task, a multiple of 16. */
export const CHUNK_ITEMS = 64;

/** The best items of each unit, ascending, ties to the lower one. Takes from the op arena, which the caller has cleared. */
export function rankUnits(machine: Machine, units: readonly Unit[], headDim: number, score: ScoreUnits): number[][] {
  const best = new Map<Unit, number[]>();
  for (const combine of ["max", "softmax-sum"] as const) {
    const same = units.filter((unit) => unit.combine === combine);
    if (same.length === 0) continue;
    const lists = rankSame(machine, same, headDim, score);
    same.forEach((unit, index) => {
      best.set(unit, lists[index] as number[]);
    });
  }
  return units.map((unit) => best.get(unit) as number[]);
}

/** Units that all combine alike. */
function rankSame(machine: Machine, units: readonly Unit[], headDim: number, score: ScoreUnits): number[][] {
  const isVote = units[0]?.combine === "softmax-sum";
  const queryMax = Math.max(...units.map((unit) => unit.queryCount));
  const itemMax = Math.max(...units.map((unit) => unit.itemCount));
  const rowBytes = units.reduce((sum, unit) => sum + strideOf(unit) * 4, 0);
  const tile = isVote ? Math.max(1, Math.min(queryMax, Math.floor(RAW_BYTES_MAX / rowBytes))) : queryMax;
  const places = units.map((unit) => takePlace(machine, unit, isVote ? tile : 0));
  const unitsAt = machine.opArena.take(units.length * UNIT_BYTES);
  const chunks = Math.ceil(itemMax / CHUNK_ITEMS);
  const perQuery = units.reduce((sum, unit) => sum + unit.itemCount, 0) * headDim * 2;
  for (let first = 0; first < queryMax; first += tile) {
    units.forEach((unit, index) => {
      writeUnit(machine, unitsAt + index * UNIT_BYTES, unit, places[index] as Place, { first, tile });
    });
    score({ unitsAt, unitCount: units.length, itemMax, work: perQuery * tile });
    if (isVote) vote(machine, units, { unitsAt, tile, chunks, scale: 1 / Math.sqrt(headDim) });
  }
  machine.threads.ensureScratch(1024);
  const work = units.reduce((sum, unit) => sum + unit.itemCount, 0) * 8;
  machine.threads.run(OP.topK, { taskCount: units.length, work, args: [unitsAt] });
  return units.map((unit, index) => {
    const at = (places[index] as Place).chosen / 4;
    return Array.from(machine.heap.words.subarray(at, at + unit.take));
  });
}

/** Where a unit's working memory lies. */
interface Place {
  scores: number;
  raw: number;
  stats: number;
  chosen: number;
}

function takePlace(machine: Machine, unit: Unit, rawRows: number): Place {
  const rowBytes = strideOf(unit) * 4;
  return {
    scores: machine.opArena.take(rowBytes),
    raw: rawRows === 0 ? 0 : machine.opArena.take(rowBytes * rawRows),
    stats: machine.opArena.take(rawRows * 8),
    chosen: machine.opArena.take(unit.take * 4),
  };
}

/** Elements of one row of raw scores. */
function strideOf(unit: Unit): number {
  return Math.ceil(unit.itemCount / 4) * 4;
}

function writeUnit(
  { heap }: Machine,
  at: number,
  unit: Unit,
  place: Place,
  { first, tile }: { first: number; tile: number },
): void {
  const queries = Math.max(0, Math.min(tile, unit.queryCount - first));
  const record = [
    ...[unit.queryAt, first, queries, unit.headCount, unit.kvHeadFirst, unit.candidateFirst ?? 0, unit.itemCount],
    ...[unit.summarySlotsAt ?? 0, place.scores, place.raw, place.stats, unit.take, place.chosen, 0],
    ...[unit.combine === "max" ? 0 : 1, unit.summariesAt ?? 0, strideOf(unit), 0],
    ...[unit.keptPagesAt ?? 0, unit.blockIdsAt ?? 0, unit.queryVector ?? 0],
  ];
  heap.words.set(record, at / 4);
  heap.floats[at / 4 + 13] = unit.radiusWeight ?? 0;
}

function vote(
  machine: Machine,
  units: readonly Unit[],
  { unitsAt, tile, chunks, scale }: { unitsAt: number; tile: number; chunks: number; scale: number },
): void {
  const work = units.reduce((sum, unit) => sum + unit.itemCount, 0) * tile * 8;
  machine.threads.run(OP.voteStats, {
    taskCount: units.length * tile,
    work,
    args: [unitsAt, tile],
    floats: [[2, scale]],
  });
  machine.threads.run(OP.voteSum, {
    taskCount: units.length * chunks,
    work,
    args: [unitsAt, chunks, CHUNK_ITEMS],
    floats: [[3, scale]],
  });
}
