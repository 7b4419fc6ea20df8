/** Runs the scoring and the choice of many units (a query group in one KV head, or in a whole layer). */
import type { Machine } from "./machine.ts";
import { OP } from "./ops.ts";
import type { ScoredUnits } from "./selection-batch.ts";
import { setTile, type UnitTable } from "./unit-records.ts";

/** Items of one task of the vote. */
const VOTE_CHUNK_ITEMS = 1024;

/** Runs the scoring op over the current tile of queries of all units of a table; `work` is that of a tile. */
export type ScoreUnits = (table: UnitTable, work: number) => void;

/** Scores the units of a table, tile by tile of their queries, and leaves combined scores. */
export function scoreTable(machine: Machine, { table, units }: ScoredUnits, headDim: number, score: ScoreUnits): void {
  const { tile, queryMax, itemCount } = table;
  for (let first = 0; first < queryMax; first += tile) {
    if (tile < queryMax) setTile(machine, table, units, first);
    score(table, itemCount * headDim * 2 * tile);
    if (table.combine === "softmax-sum") vote(machine, table, 1 / Math.sqrt(headDim));
  }
}

function vote(machine: Machine, table: UnitTable, scale: number): void {
  const { at, count, tile, queryMax, itemMax, itemCount } = table;
  const work = itemCount * tile * 8;
  machine.threads.queue(OP.voteStats, { taskCount: count * tile, work, args: [at, tile], floats: [[2, scale]] });
  const chunks = Math.ceil(itemMax / VOTE_CHUNK_ITEMS);
  machine.threads.queue(OP.voteSum, {
    taskCount: count * chunks,
    work,
    args: [at, chunks, VOTE_CHUNK_ITEMS],
  });
  // The host writes to the records between two tiles.
  if (tile < queryMax) machine.threads.finish();
}

/** Queues the choice of the best items of each unit (records at `unitsAt`); it also writes what follows from it. */
export function chooseItems(
  machine: Machine,
  { unitsAt, unitCount, itemMax, layer }: { unitsAt: number; unitCount: number; itemMax: number; layer: number },
): void {
  machine.threads.queue(OP.choose, { taskCount: unitCount, work: unitCount * itemMax * 32, args: [unitsAt, layer] });
}
