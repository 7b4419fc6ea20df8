/** Quantiles of few samples, exactly; `histogram.ts` has those of many. */

/** The first value with at least the given share (0 to 1) of all below it in order, or the largest; NaN where there is none. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}
