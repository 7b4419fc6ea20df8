/** Attention on the host's side: cuts the step into tiles, decides whether splits are tasks of their own, and counts what is read. */
import { BLOCK_TOKENS, type SliceTraffic, SPLIT_TOKENS } from "../contract.ts";
import { openHeadAt, openSlotValuesAt } from "../layout.ts";
import { groupKvBytes } from "../traffic.ts";
import type { Machine } from "./machine.ts";
import type { WasmPool } from "./memory.ts";
import { OP } from "./ops.ts";
import { type GroupSelection, isResident } from "./select.ts";

/** Everything `attend` needs, as addresses. */
export interface AttendArgs {
  pool: WasmPool;
  layer: number;
  headCount: number;
  q: number;
  out: number;
}

/** Rows that share what they read: one query group, one block of positions. The record is described in assembly/attend.ts. */
interface Tile {
  selection: GroupSelection;
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
/** Steps whose tiles have at most this many queries wait for memory more than they compute: tasks take as many KV heads as leave enough tasks. */
const FEW_QUERIES = 8;
const PARTIAL_BYTES_MAX = 32 * 1024 * 1024;

/** Causal attention of every query group over what `select` chose. */
export function attend(machine: Machine, args: AttendArgs, selections: readonly GroupSelection[]): void {
  const { pool, headCount } = args;
  const { kvHeadCount, headDim } = pool.spec;
  const group = headCount / kvHeadCount;
  const tiles = selections.flatMap((selection) => tilesOf(selection, group));
  if (tiles.length === 0) return;
  const queryMax = Math.max(...tiles.map((tile) => tile.rowCount)) * group;
  const splitMax = Math.max(...tiles.map((tile) => tile.splitCount));
  const partialBytes = tiles.map((tile) => tile.splitCount * kvHeadCount * tile.rowCount * group * (headDim + 2) * 4);
  const isFew = queryMax <= FEW_QUERIES;
  const { threads } = machine.threads;
  const tasksWanted = threads === 1 ? 1 : threads * TASKS_PER_THREAD_MIN;
  const isCut =
    splitMax > 1 &&
    tiles.length * (isFew ? 1 : kvHeadCount) < tasksWanted &&
    partialBytes.reduce((sum, bytes) => sum + bytes, 0) <= PARTIAL_BYTES_MAX;
  machine.opArena.clear();
  const tilesAt = machine.opArena.take(tiles.length * TILE_BYTES);
  tiles.forEach((tile, index) => {
    const partialAt = isCut ? machine.opArena.take(partialBytes[index] as number) : 0;
    writeTile(machine, tilesAt + index * TILE_BYTES, tile, partialAt);
  });
  const uncut = isCut ? tiles.reduce((sum, tile) => sum + tile.splitCount, 0) : tiles.length;
  const headTasks = isFew ? Math.min(kvHeadCount, Math.ceil(tasksWanted / uncut)) : kvHeadCount;
  const headsPerTask = Math.ceil(kvHeadCount / headTasks);
  // Per query: itself, two outputs, two states, the scores of a block, two factors, and codes of 16 bits padded to eights.
  const queryBytes = (headDim * 3 + 4 + BLOCK_TOKENS + 2) * 4 + Math.ceil(headDim / 8) * 16;
  machine.threads.ensureScratch(headsPerTask * (16 + queryMax * queryBytes));
  const launchArgs = kernelArgs(args, { tilesAt, splitMax: isCut ? splitMax : 0, queryMax, headsPerTask });
  const taskCount = tiles.length * Math.ceil(kvHeadCount / headsPerTask);
  const work = tiles.reduce((sum, tile) => sum + tile.rowCount * attendedTokens(tile), 0) * headCount * headDim * 2;
  machine.threads.run(OP.attend, { taskCount: isCut ? taskCount * splitMax : taskCount, work, ...launchArgs });
  if (isCut) machine.threads.run(OP.attendMerge, { taskCount: tiles.length * kvHeadCount, work: 0, ...launchArgs });
}

function tilesOf(selection: GroupSelection, headsPerKvHead: number): Tile[] {
  const { group, firstRow } = selection;
  const rowsMax = Math.max(1, Math.floor(TILE_QUERIES / headsPerKvHead));
  const tiles: Tile[] = [];
  for (let row = 0; row < group.rowCount; ) {
    const position = group.positionFirst + row;
    const rowCount = Math.min(rowsMax, group.rowCount - row, BLOCK_TOKENS - (position % BLOCK_TOKENS));
    const splitCount = Math.floor(position / SPLIT_TOKENS) + 1;
    tiles.push({ selection, firstRow: firstRow + row, rowCount, position, splitCount });
    row += rowCount;
  }
  return tiles;
}

/** About how many tokens a row of the tile reads. */
function attendedTokens({ selection, position }: Tile): number {
  const pages = selection.chosen[0]?.pages?.length;
  return pages === undefined ? position + 1 : pages * 16;
}

function writeTile({ heap }: Machine, at: number, tile: Tile, partialAt: number): void {
  const { selection, position } = tile;
  const { slice } = selection;
  const openSlot = slice.openSlots[Math.floor(position / BLOCK_TOKENS) - Math.floor(slice.position / BLOCK_TOKENS)];
  const record = [
    ...[tile.firstRow, tile.rowCount, position, selection.blockIdsAt, selection.pageMasksAt, selection.pageMaskStride],
    ...[selection.tokenMasksAt, openSlot as number, partialAt, tile.splitCount],
  ];
  heap.words.set(record, at / 4);
}

function kernelArgs(
  { pool, layer, headCount, q, out }: AttendArgs,
  {
    tilesAt,
    splitMax,
    queryMax,
    headsPerTask,
  }: { tilesAt: number; splitMax: number; queryMax: number; headsPerTask: number },
): { args: number[]; floats: [number, number][] } {
  const { kvHeadCount, headDim, encoding } = pool.spec;
  const { keyScalesAt, valuesAt, valueScalesAt } = pool.layout;
  const keysOffset = openHeadAt(pool.spec, layer, 0) * 4;
  const args = [
    ...[tilesAt, kvHeadCount, headCount / kvHeadCount, headDim, q, out, 0, pool.blocksAt, pool.blockBytes],
    ...[encoding === "int8" ? 1 : 0, keyScalesAt, valuesAt, valueScalesAt, pool.openAt, pool.openSlotBytes],
    ...[keysOffset, openSlotValuesAt(pool.spec) * 4 + keysOffset, splitMax, queryMax],
    headsPerTask,
  ];
  return { args, floats: [[6, 1 / Math.sqrt(headDim)]] };
}

/** Adds the bytes of K and V that an `attend` over these selections reads. */
export function countKvBytes(
  { pool, layer }: AttendArgs,
  selections: readonly GroupSelection[],
  traffic: readonly SliceTraffic[],
): void {
  for (const { slice, sliceIndex, group, chosen } of selections) {
    const isHere = (block: number): boolean => isResident(layer, slice, block);
    let counted: (typeof chosen)[number] | undefined;
    let bytes = 0;
    for (const head of chosen) {
      const isSame = counted !== undefined && (head === counted || (head.pages ?? counted.pages) === undefined);
      if (!isSame) bytes = groupKvBytes(pool.spec, group, head, isHere);
      counted = head;
      (traffic[sliceIndex] as SliceTraffic).kvBytes += bytes;
    }
  }
}
