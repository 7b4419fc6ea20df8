/** Durations in bounded memory. */
import { assert } from "../protocol/assert.ts";

/** The longest duration told apart: about 12 days. */
const microsecondsMax = 2 ** 40;
/** Each power of two is cut in 128, so a bucket is narrower than 1/128 of what it holds. */
const bucketsPerPower = 128;

/** What JSON and tables show of a histogram; milliseconds, undefined fields where nothing was recorded. */
export interface DurationSummary {
  count: number;
  min?: number;
  mean?: number;
  p50?: number;
  p90?: number;
  p95?: number;
  p99?: number;
  max?: number;
}

/**
 * Counts durations in buckets of equal relative width. Percentiles (nearest rank) are right to 0.4 % or one microsecond,
 * count, mean, minimum and maximum exactly; memory does not grow with the count.
 */
export class DurationHistogram {
  /** Sparse: counts by bucket. */
  readonly #buckets = new Map<number, number>();
  #count = 0;
  #sumMs = 0;
  #minMs = Number.POSITIVE_INFINITY;
  #maxMs = Number.NEGATIVE_INFINITY;

  /** @throws {AssertionError} for what is not a duration. */
  record(durationMs: number): void {
    assert(Number.isFinite(durationMs) && durationMs >= 0, `not a duration: ${durationMs}`);
    const bucket = bucketOf(Math.min(microsecondsMax, Math.round(durationMs * 1000)));
    this.#buckets.set(bucket, (this.#buckets.get(bucket) ?? 0) + 1);
    this.#count += 1;
    this.#sumMs += durationMs;
    this.#minMs = Math.min(this.#minMs, durationMs);
    this.#maxMs = Math.max(this.#maxMs, durationMs);
  }

  get count(): number {
    return this.#count;
  }

  /** The smallest recorded duration that at least `percent` of all do not exceed; undefined where there is none. */
  percentileMs(percent: number): number | undefined {
    if (this.#count === 0) return undefined;
    const rank = Math.max(1, Math.ceil((percent / 100) * this.#count));
    let passed = 0;
    for (const bucket of [...this.#buckets.keys()].sort((a, b) => a - b)) {
      passed += this.#buckets.get(bucket) ?? 0;
      if (passed >= rank) return Math.min(this.#maxMs, Math.max(this.#minMs, middleOf(bucket) / 1000));
    }
    return this.#maxMs;
  }

  /** Everything at once, rounded to a microsecond. */
  summary(): DurationSummary {
    if (this.#count === 0) return { count: 0 };
    const at = (percent: number): number => roundMs(this.percentileMs(percent) ?? 0);
    return {
      count: this.#count,
      min: roundMs(this.#minMs),
      mean: roundMs(this.#sumMs / this.#count),
      p50: at(50),
      p90: at(90),
      p95: at(95),
      p99: at(99),
      max: roundMs(this.#maxMs),
    };
  }
}

/** Values below 256 have buckets of their own; above, `shift` low bits are dropped. */
function bucketOf(microseconds: number): number {
  const shift = Math.max(0, Math.floor(Math.log2(Math.max(1, microseconds))) - 7);
  return shift * bucketsPerPower + Math.floor(microseconds / 2 ** shift);
}

function middleOf(bucket: number): number {
  const shift = Math.max(0, Math.floor(bucket / bucketsPerPower) - 1);
  const low = (bucket - shift * bucketsPerPower) * 2 ** shift;
  return low + (2 ** shift - 1) / 2;
}

function roundMs(valueMs: number): number {
  return Math.round(valueMs * 1000) / 1000;
}
