/** The coarse pass of a plan with `coarseFactor`: which blocks are scored as wholes, and what is then left to be scored page by page. */
import { PAGES_PER_BLOCK, type SelectionPlan, type SummaryKind } from "./contract.ts";
import { needsPageScores, type PageRange } from "./page-range.ts";

/** Kinds of summaries that say a page's centre, so that a block has one, too. */
export const COARSE_KINDS: readonly SummaryKind[] = ["min-max", "mean-deviation", "centre-deviation"];

/** Blocks `[blockFirst, blockEnd)`, all of whose pages are candidates, are scored; the best `keep` of them stay. */
export interface CoarsePass {
  blockFirst: number;
  blockEnd: number;
  /** Above 0 and below the number of blocks. */
  keep: number;
}

/** The coarse pass of a choice; undefined where its pages are scored at once, or not at all. */
export function coarsePass(plan: SelectionPlan, range: PageRange): CoarsePass | undefined {
  if (plan.kind !== "pages" || plan.coarseFactor === undefined || !needsPageScores(plan, range)) return undefined;
  const blockFirst = Math.ceil(range.sinkEnd / PAGES_PER_BLOCK);
  const blockEnd = Math.floor(range.recentStart / PAGES_PER_BLOCK);
  const keep = Math.ceil((plan.coarseFactor * Math.max(plan.budgetPages, range.takePages)) / PAGES_PER_BLOCK);
  return keep < blockEnd - blockFirst ? { blockFirst, blockEnd, keep } : undefined;
}

/** Candidates that a choice scores one by one. */
export function scoredPageCount({ candidateCount }: PageRange, pass: CoarsePass | undefined): number {
  if (pass === undefined) return candidateCount;
  return candidateCount - passedOverCount(pass);
}

/** Candidates that the coarse pass leaves out. */
export function passedOverCount({ blockFirst, blockEnd, keep }: CoarsePass): number {
  return (blockEnd - blockFirst - keep) * PAGES_PER_BLOCK;
}

/** Blocks whose candidates are scored one by one, ascending: the kept ones, and those at either end of which only some pages are candidates. */
export function scoredBlocks(
  { sinkEnd, recentStart }: Pick<PageRange, "sinkEnd" | "recentStart">,
  { blockFirst, blockEnd }: CoarsePass,
  kept: readonly number[],
): number[] {
  const before = sinkEnd % PAGES_PER_BLOCK === 0 ? [] : [blockFirst - 1];
  const behind = recentStart % PAGES_PER_BLOCK === 0 ? [] : [blockEnd];
  return [...before, ...kept, ...behind];
}
