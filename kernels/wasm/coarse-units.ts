/** Units of a coarse pass: blocks are ranked as wholes and listed, then a unit of pages ranks the pages of the listed ones. */
import type { CoarsePass } from "../coarse.ts";
import { PAGES_PER_BLOCK } from "../contract.ts";
import type { PageRange } from "../page-range.ts";
import type { Arena } from "./heap.ts";
import { BLOCK_CENTRES, type PageUnit } from "./unit-records.ts";

/** A unit of pages, and the unit of blocks that goes before it. */
export interface CoarseAndFine {
  coarse: PageUnit;
  fine: PageUnit;
}

/** Splits a unit of pages in two; `centresAt`: centres of blocks. Their lists and choices are taken from `arena`. */
export function splitUnit(
  arena: Arena,
  unit: PageUnit,
  range: PageRange,
  { pass, centresAt }: { pass: CoarsePass; centresAt: number },
): CoarseAndFine {
  const { pages, mass: _, ...common } = unit;
  const { blockFirst, blockEnd, keep } = pass;
  const before = range.sinkEnd % PAGES_PER_BLOCK;
  const behind = range.recentStart % PAGES_PER_BLOCK;
  const listed = keep + Math.sign(before) + Math.sign(behind);
  const listAt = arena.take(listed * 4);
  const blockCount = blockEnd - blockFirst;
  return {
    coarse: {
      ...common,
      ...{ itemFirst: 0, itemEnd: blockCount, take: keep },
      choiceAt: arena.take(Math.ceil(blockCount / 4)),
      pages: {
        ...pages,
        blockFirst,
        summariesAt: centresAt,
        summaryForm: BLOCK_CENTRES,
        masksAt: 0,
        bitmapAt: 0,
        listAt,
      },
    },
    fine: {
      ...unit,
      itemFirst: before,
      itemEnd: listed * PAGES_PER_BLOCK - (behind === 0 ? 0 : PAGES_PER_BLOCK - behind),
      choiceAt: arena.take(listed),
      pages: { ...pages, blockFirst: 0, listAt },
    },
  };
}
