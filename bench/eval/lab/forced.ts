import { PAGE_TOKENS } from "../../../kernels/contract.ts";
import { type PageRange, pageRange } from "../../../kernels/page-range.ts";
import { splitBudget } from "../../../models/selection/policy.ts";

/** The first and last pages that a budget always pays for, and what is left of it: exactly as policies of pages have it. */
export function rangeOf(position: number, budgetTokens: number): PageRange {
  const scorer = { summary: "min-max", radiusWeight: 1 } as const;
  const plan = { kind: "pages", ...splitBudget(budgetTokens), scorer, scope: "layer", combine: "max" } as const;
  return pageRange(plan, { positionFirst: position, positionLast: position });
}

/** A mask of `position + 1` tokens with the forced ones set. */
export function forcedTokens({ sinkEnd, recentStart }: PageRange, position: number): Uint8Array {
  const attended = new Uint8Array(position + 1);
  attended.fill(1, 0, sinkEnd * PAGE_TOKENS);
  attended.fill(1, recentStart * PAGE_TOKENS);
  return attended;
}
