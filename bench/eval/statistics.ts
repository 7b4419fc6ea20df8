/** Means with 95 % intervals, paired differences, and the groups that they are taken over. */
import { drawInteger, seededRandom } from "../random.ts";

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

/** The quantile for at least one degree of freedom; beyond the table by the first term of Cornish and Fisher's expansion. */
function studentQuantile(freedom: number): number {
  return T_QUANTILES[freedom - 1] ?? Z + (Z ** 3 + Z) / (4 * freedom);
}

/** Mean of independent values (at least one) with Student's interval. */
export function estimate(values: readonly number[]): Estimate {
  const count = values.length;
  const mean = meanOf(values);
  if (count < 2) return { mean, count };
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (count - 1);
  const spread = studentQuantile(count - 1) * Math.sqrt(variance / count);
  return { mean, low: mean - spread, high: mean + spread, count };
}

/** {@link estimate} of shares: their interval ends at 0 and 1. */
export function estimateShare(values: readonly number[]): Estimate {
  return mapEstimate(estimate(values), (value) => Math.min(1, Math.max(0, value)));
}

/** Drawings of a bootstrap. */
const RESAMPLES = 2_000;

/**
 * Mean of values that follow each other (at least one), with the interval of a bootstrap: as many are drawn again, in runs of neighbours as long as the
 * cube root of their number, since neighbours are alike, around the end to the beginning. The same values give the same interval. It is of these values' own text:
 * what another text would give it does not know.
 */
export function bootstrapEstimate(values: readonly number[]): Estimate {
  const count = values.length;
  const mean = meanOf(values);
  if (count < 2) return { mean, count };
  const runLength = Math.ceil(Math.cbrt(count));
  const random = seededRandom(1);
  const means = Array.from({ length: RESAMPLES }, () => {
    let sum = 0;
    let start = 0;
    for (let drawn = 0; drawn < count; drawn++) {
      if (drawn % runLength === 0) start = drawInteger(random, { min: 0, max: count - 1 });
      sum += values[(start + (drawn % runLength)) % count] as number;
    }
    return sum / count;
  }).sort((a, b) => a - b);
  const at = (share: number): number => means[Math.round(share * (RESAMPLES - 1))] as number;
  return { mean, low: at(0.025), high: at(0.975), count };
}

/** An estimate of `f(value)` for an ascending `f`. */
export function mapEstimate({ mean, low, high, count }: Estimate, f: (value: number) => number): Estimate {
  return { mean: f(mean), count, ...(low === undefined || high === undefined ? {} : { low: f(low), high: f(high) }) };
}

/** A question that was answered twice. */
export interface PairedAnswer {
  ours: boolean;
  theirs: boolean;
  /** Answers of one cluster (questions about one document) are not independent; of different ones they are. */
  cluster: number | string;
}

/**
 * Difference of the shares of right answers, ours minus theirs, over the same questions. The interval is that of Agresti and Min (2005), half a
 * question added to each of the four outcomes, so that it is honest also where almost none differs; widened by the root of the design effect
 * where that is above 1 (the variance over clusters, a sandwich estimate, over the variance if all were independent), with Student's quantile of
 * the clusters' degrees of freedom. One cluster alone has no interval.
 */
export function pairedDifference(pairs: readonly PairedAnswer[]): Estimate {
  const better = pairs.filter(({ ours, theirs }) => ours && !theirs).length;
  const worse = pairs.filter(({ ours, theirs }) => theirs && !ours).length;
  const count = pairs.length;
  const [gains, losses, n] = [better + 0.5, worse + 0.5, count + 2];
  const centre = (gains - losses) / n;
  const clusterCount = new Set(pairs.map(({ cluster }) => cluster)).size;
  if (clusterCount < 2) return { mean: (better - worse) / count, count };
  const effect = designEffect(pairs.map((pair) => ({ value: differenceOf(pair), cluster: pair.cluster })));
  const variance = effect * (gains + losses - (gains - losses) ** 2 / n);
  const spread = (studentQuantile(clusterCount - 1) * Math.sqrt(variance)) / n;
  return {
    mean: (better - worse) / count,
    low: Math.max(-1, centre - spread),
    high: Math.min(1, centre + spread),
    count,
  };
}

/** A value, and with which others it may be alike. */
export interface ClusteredValue {
  value: number;
  cluster: number | string;
}

/** How many times the variance of the mean is what it would be if all values were independent; 1 at least. Of one cluster alone: their count. */
export function designEffect(values: readonly ClusteredValue[]): number {
  const count = values.length;
  const mean = meanOf(values.map(({ value }) => value));
  const sums = new Map<number | string, number>();
  let alone = 0;
  for (const { value, cluster } of values) {
    sums.set(cluster, (sums.get(cluster) ?? 0) + value - mean);
    alone += (value - mean) ** 2;
  }
  if (sums.size === 1) return count;
  const together = [...sums.values()].reduce((sum, value) => sum + value ** 2, 0);
  const correction = sums.size / (sums.size - 1) / (count / (count - 1));
  return alone === 0 ? 1 : Math.max(1, (together / alone) * correction);
}

function differenceOf({ ours, theirs }: PairedAnswer): number {
  return Number(ours) - Number(theirs);
}

/** Arithmetic mean; NaN of nothing. */
export function meanOf(values: ArrayLike<number>): number {
  let sum = 0;
  for (let index = 0; index < values.length; index++) sum += values[index] as number;
  return sum / values.length;
}

/** Groups in the order in which their first members stand. */
export function groupBy<T>(items: readonly T[], keyOf: (item: T) => string): T[][] {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const key = keyOf(item);
    const group = groups.get(key) ?? [];
    group.push(item);
    groups.set(key, group);
  }
  return [...groups.values()];
}
