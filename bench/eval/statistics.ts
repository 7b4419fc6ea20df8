/** Means with 95 % intervals, and paired differences. */

/** A mean and its 95 % interval; without bounds where one value alone was seen. */
export interface Estimate {
  mean: number;
  low?: number;
  high?: number;
  /** Independent values that went into it. */
  count: number;
}

/** Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom. */
const T_QUANTILES = [
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11,
  2.101, 2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042,
];
const Z = 1.96;

/** Mean of independent values (at least one) with Student's interval. */
export function estimate(values: readonly number[]): Estimate {
  const count = values.length;
  const mean = meanOf(values);
  if (count < 2) return { mean, count };
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (count - 1);
  const spread = (T_QUANTILES[count - 2] ?? Z) * Math.sqrt(variance / count);
  return { mean, low: mean - spread, high: mean + spread, count };
}

/** {@link estimate} of shares: their interval ends at 0 and 1. */
export function estimateShare(values: readonly number[]): Estimate {
  return mapEstimate(estimate(values), (value) => Math.min(1, Math.max(0, value)));
}

/** An estimate of `f(value)` for an ascending `f`. */
export function mapEstimate({ mean, low, high, count }: Estimate, f: (value: number) => number): Estimate {
  return { mean: f(mean), count, ...(low === undefined || high === undefined ? {} : { low: f(low), high: f(high) }) };
}

/**
 * Difference of the shares of right answers, ours minus theirs, over the same cases, with the interval of Agresti and Min (2005): half a
 * case is added to each of the four outcomes, so that it is honest also where almost no case differs.
 */
export function pairedDifference(pairs: readonly { ours: boolean; theirs: boolean }[]): Estimate {
  const better = pairs.filter(({ ours, theirs }) => ours && !theirs).length;
  const worse = pairs.filter(({ ours, theirs }) => theirs && !ours).length;
  const count = pairs.length;
  const [gains, losses, n] = [better + 0.5, worse + 0.5, count + 2];
  const centre = (gains - losses) / n;
  const spread = (Z * Math.sqrt(gains + losses - (gains - losses) ** 2 / n)) / n;
  return {
    mean: (better - worse) / count,
    low: Math.max(-1, centre - spread),
    high: Math.min(1, centre + spread),
    count,
  };
}

/** Arithmetic mean; NaN of nothing. */
export function meanOf(values: ArrayLike<number>): number {
  let sum = 0;
  for (let index = 0; index < values.length; index++) sum += values[index] as number;
  return sum / values.length;
}
