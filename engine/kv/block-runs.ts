/** Joins blocks that lie beside each other in the store: one read takes all of a run. */

/** Largest range that neighbours are merged into. */
const RANGE_BYTES_MAX = 4 * 1024 * 1024;

/** Where one layer of a block lies. */
export interface BlockPlace {
  /** Logical block index. */
  index: number;
  layer: number;
  /** Its segment: equal (`===`) for blocks of one. */
  segment: unknown;
}

/**
 * Runs of neighbours of one layer in one segment, ascending by (layer, index); an item that is given twice is in one run once. Whoever reads
 * ahead and whoever reads afterwards must cut alike, or nothing that was read is found.
 */
export function blockRuns<Item extends BlockPlace>(
  items: readonly Item[],
  { blockBytes, isSame = () => false }: { blockBytes: number; isSame?: (a: Item, b: Item) => boolean },
): Item[][] {
  const runs: Item[][] = [];
  for (const item of [...items].sort((a, b) => a.layer - b.layer || a.index - b.index)) {
    const run = runs.at(-1);
    const last = run?.at(-1);
    const follows = last?.segment === item.segment && last?.layer === item.layer && last.index === item.index - 1;
    if (run && follows && (run.length + 1) * blockBytes <= RANGE_BYTES_MAX) run.push(item);
    else if (last === undefined || !isSame(last, item)) runs.push([item]);
  }
  return runs;
}
