/** What rows of a sequence add to a step, in the numbers that its time follows. */
import { PAGE_TOKENS } from "../../kernels/contract.ts";
import type { Sequence } from "../sequence/sequence.ts";
import type { StepLoad } from "./cost-model.ts";

/**
 * Tokens that attention reads for one row at a position, as a function of the position, for rows of the span that `position` lies in: their
 * context, or the budget and a summary (two vectors) per page, which rows of a run share.
 */
export function attendedFrom(sequence: Sequence, position: number): (position: number) => number {
  const way = sequence.wayAt(position);
  if (way === undefined) return (at) => at + 1;
  const { budgetTokens, runTokens } = way;
  const summaryTokens = 2 / PAGE_TOKENS / runTokens;
  return (at) => (at < budgetTokens ? at + 1 : budgetTokens + at * summaryTokens);
}

/** The load of rows `[from, to)` of one span, `sampledRows` of them sampled. */
export function loadOf(
  sequence: Sequence,
  { from, to, sampledRows }: { from: number; to: number; sampledRows: number },
): StepLoad {
  const rows = to - from;
  const attended = attendedFrom(sequence, from);
  return { rows, sampledRows, attendedTokens: (rows * (attended(from) + attended(to - 1))) / 2 };
}

/** Both in one step. */
export function addLoads(a: StepLoad, b: StepLoad): StepLoad {
  return {
    rows: a.rows + b.rows,
    sampledRows: a.sampledRows + b.sampledRows,
    attendedTokens: a.attendedTokens + b.attendedTokens,
  };
}

/** A step of nothing. */
export const NO_LOAD: Readonly<StepLoad> = { rows: 0, sampledRows: 0, attendedTokens: 0 };
