/** Attention on the host's side: cuts the step into tiles, once for all layers, and decides what one task does. */
import { BLOCK_TOKENS, PAGE_TOKENS, SPLIT_TOKENS } from "../contract.ts";
import { openHeadAt, openSlotValuesAt } from "../layout.ts";
import { type LayerRole, takesUnevenly } from "../page-range.ts";
import type { Arena } from "./heap.ts";
import type { Machine } from "./machine.ts";
import { OP } from "./ops.ts";
import { type GroupSelection, rangeIn, roleOf, type StepGroups } from "./selection-batch.ts";

/** The layer, and f32 `[rows, headCount, headDim]` as addresses. */
export interface AttendArgs {
  layer: number;
  q: number;
  out: number;
}

/** Tiles in memory (the record is described in assembly/attend.ts) and how they become tasks. */
export interface AttendTiles {
  at: number;
  count: number;
  /** Queries of the largest tile. */
  queryMax: number;
  /** Splits of the longest tile where a task takes a run of them, else 0. */
  splitMax: number;
  /** Of a task. */
  splitsPerTask: number;
  headsPerTask: number;
  /** Multiply-adds. */
  work: number;
}

/** Rows that share what they read: one query group, one block of positions. */
interface Tile {
  selection: GroupSelection;
  /** Whether it reads chosen pages only. */
  isSparse: boolean;
  firstRow: number;
  rowCount: number;
  position: number;
  splitCount: number;
}

const TILE_BYTES = 48;
/** Queries (rows times query heads of a KV head) of a tile: they stay in a core's first cache with the block they read. */
const TILE_QUERIES = 32;
/** With fewer tasks than this per thread, splits become tasks; one thread needs no more than one. */
const TASKS_PER_THREAD_MIN = 4;
/** Steps whose tiles have at most this many queries wait for memory more than they compute: assembly/attend.ts has the same. */
const FEW_QUERIES = 8;
const PARTIAL_BYTES_MAX = 32 * 1024 * 1024;
/** Pieces of memory that a task asks for at once, assembly/attend.ts has the same. */
const PIECES_BYTES = 256;

/** Cuts the groups of a step into tiles, for layers of these roles that take like `layer`; `arena` must live as long as the groups. */
export function prepareTiles(
  machine: Machine,
  arena: Arena,
  step: StepGroups,
  { roles, layer }: { roles: readonly LayerRole[]; layer: number },
): AttendTiles {
  const { kvHeadCount, headDim } = step.pool.spec;
  const group = step.headCount / kvHeadCount;
  const tiles = step.groups.flatMap((selection) =>
    tilesOf(selection, roleOf(selection, { roles }) !== "everything", group),
  );
  const queryMax = Math.max(0, ...tiles.map((tile) => tile.rowCount)) * group;
  const splitMax = Math.max(0, ...tiles.map((tile) => tile.splitCount));
  const partialBytes = tiles.map((tile) => tile.splitCount * kvHeadCount * tile.rowCount * group * (headDim + 2) * 4);
  const { threads } = machine.threads;
  const tasksWanted = threads === 1 ? 1 : threads * TASKS_PER_THREAD_MIN;
  const isFew = queryMax <= FEW_QUERIES;
  // Chosen pages lie apart, so nothing is gained by taking KV heads together, and each KV head has as many as the next one.
  const isSparse = isFew && tiles.every((tile) => tile.isSparse);
  const isByHead = isSparse && tiles.length * kvHeadCount >= threads;
  const runs = isByHead ? runsOfBusiest(step, tiles, layer, threads) : splitMax;
  const isCut =
    runs > 1 &&
    splitMax > 1 &&
    (isByHead || tiles.length * (isFew ? 1 : kvHeadCount) < tasksWanted) &&
    partialBytes.reduce((sum, bytes) => sum + bytes, 0) <= PARTIAL_BYTES_MAX;
  const at = arena.take(tiles.length * TILE_BYTES);
  tiles.forEach((tile, index) => {
    writeTile(machine, at + index * TILE_BYTES, tile, isCut ? arena.take(partialBytes[index] as number) : 0);
  });
  const uncut = isCut ? tiles.reduce((sum, tile) => sum + tile.splitCount, 0) : tiles.length;
  const headTasks = isFew && !isByHead ? Math.min(kvHeadCount, Math.ceil(tasksWanted / uncut)) : kvHeadCount;
  const headsPerTask = Math.ceil(kvHeadCount / headTasks);
  const tokens = tiles.reduce((sum, tile) => sum + tile.rowCount * attendedTokens(tile), 0);
  return {
    ...{ at, count: tiles.length, queryMax, splitMax: isCut ? splitMax : 0 },
    ...{ splitsPerTask: Math.ceil(splitMax / Math.max(1, runs)), headsPerTask },
    work: tokens * step.headCount * headDim * 2,
  };
}

/** Causal attention of every query group over what `select` chose. */
export function attend(machine: Machine, step: StepGroups, tiles: AttendTiles, args: AttendArgs): void {
  if (tiles.count === 0) return;
  const { kvHeadCount, headDim, encoding } = step.pool.spec;
  const { splitMax, splitsPerTask, queryMax, headsPerTask, work } = tiles;
  // Per query: itself, two outputs, two states, the scores of a block, two factors, and codes of 16 bits padded to eights.
  const queryBytes = (headDim * 3 + 4 + BLOCK_TOKENS + 2) * 4 + Math.ceil(headDim / 8) * 16;
  machine.threads.ensureScratch(PIECES_BYTES + headsPerTask * (16 + queryMax * queryBytes));
  const { blocksAt, blockBytes, layout, openAt, openSlotBytes, spec } = step.pool;
  const keysOffset = openHeadAt(spec, args.layer, 0) * 4;
  const launchArgs = {
    args: [
      ...[tiles.at, kvHeadCount, step.headCount / kvHeadCount, headDim, args.q, args.out, 0, blocksAt, blockBytes],
      ...[encoding === "int8" ? 1 : 0, layout.keyScalesAt, layout.valuesAt, layout.valueScalesAt, openAt],
      ...[openSlotBytes, keysOffset, openSlotValuesAt(spec) * 4 + keysOffset, splitMax, queryMax, headsPerTask],
      ...[args.layer, splitsPerTask],
    ],
    floats: [[6, 1 / Math.sqrt(headDim)]] as [number, number][],
  };
  const runCount = Math.max(1, Math.ceil(splitMax / splitsPerTask));
  const taskCount = tiles.count * Math.ceil(kvHeadCount / headsPerTask) * runCount;
  machine.threads.queue(OP.attend, { taskCount, work, ...launchArgs });
  if (splitMax > 0)
    machine.threads.queue(OP.attendMerge, { taskCount: tiles.count * kvHeadCount, work: 0, ...launchArgs });
}

/**
 * Into how many runs of splits the busiest KV head of chosen pages is to be cut, so that threads share a layer in which few heads choose; 1 where
 * whole heads do.
 */
function runsOfBusiest({ pool }: StepGroups, tiles: readonly Tile[], layer: number, threads: number): number {
  if (threads === 1 || !tiles.some(({ selection }) => takesUnevenly(selection.slice.plan))) return 1;
  const pages = tiles.flatMap(({ selection }) =>
    Array.from({ length: pool.spec.kvHeadCount }, (_, kvHead) => {
      const { sinkEnd, takePages, pageEnd, recentStart } = rangeIn(
        selection,
        { kvHeadFirst: selection.choices.length === 1 ? 0 : kvHead },
        layer,
        pool,
      );
      return sinkEnd + takePages + pageEnd - recentStart;
    }),
  );
  const share = pages.reduce((sum, count) => sum + count, 0) / threads;
  const busiest = Math.max(...pages);
  if (busiest === Math.min(...pages) || busiest * 2 <= share) return 1;
  return Math.ceil((busiest * TASKS_PER_THREAD_MIN) / share);
}

function tilesOf(selection: GroupSelection, isSparse: boolean, headsPerKvHead: number): Tile[] {
  const { group, firstRow } = selection;
  const rowsMax = Math.max(1, Math.floor(TILE_QUERIES / headsPerKvHead));
  const tiles: Tile[] = [];
  for (let row = 0; row < group.rowCount; ) {
    const position = group.positionFirst + row;
    const rowCount = Math.min(rowsMax, group.rowCount - row, BLOCK_TOKENS - (position % BLOCK_TOKENS));
    const splitCount = Math.floor(position / SPLIT_TOKENS) + 1;
    tiles.push({ selection, isSparse, firstRow: firstRow + row, rowCount, position, splitCount });
    row += rowCount;
  }
  return tiles;
}

/** About how many tokens a row of the tile reads. */
function attendedTokens({ selection: { range }, isSparse, position }: Tile): number {
  if (!isSparse) return position + 1;
  return (range.sinkEnd + range.takePages + range.pageEnd - range.recentStart) * PAGE_TOKENS;
}

function writeTile({ heap }: Machine, at: number, tile: Tile, partialAt: number): void {
  const { selection, position, isSparse } = tile;
  const { slice } = selection;
  const openSlot = slice.openSlots[Math.floor(position / BLOCK_TOKENS) - Math.floor(slice.position / BLOCK_TOKENS)];
  const masks = isSparse ? [selection.pageMasksAt, selection.pageMaskStride, selection.tokenMasksAt] : [0, 0, 0];
  const record = [
    ...[tile.firstRow, tile.rowCount, position, selection.blockIdsAt, ...masks],
    ...[openSlot as number, partialAt, tile.splitCount, slice.blockCapacity],
  ];
  heap.words.set(record, at / 4);
}
