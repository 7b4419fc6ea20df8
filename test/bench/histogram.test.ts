import { describe, expect, it } from "vitest";
import { DurationHistogram } from "../../bench/histogram.ts";
import { drawExponential, drawPareto, type Random, seededRandom } from "../../bench/random.ts";

/** Sorts everything and takes the nearest rank. */
function naivePercentile(values: readonly number[], percent: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(1, Math.ceil((percent / 100) * sorted.length)) - 1] as number;
}

const shapes: Record<string, (random: Random) => number> = {
  "even, up to a second": (random) => random() * 1000,
  "exponential, mean 20 ms": (random) => drawExponential(random, 20),
  "heavy-tailed, 0.1 ms to 10 minutes": (random) => drawPareto(random, { min: 0.1, max: 600_000, alpha: 0.7 }),
  "below a millisecond": (random) => random() * 0.5,
  "whole milliseconds, many equal": (random) => Math.floor(random() * 8),
};

describe("the duration histogram", () => {
  it.each(Object.entries(shapes))("agrees with a sorted list: %s", (_, draw) => {
    for (const count of [1, 2, 3, 10, 101, 5_000]) {
      const random = seededRandom(7, count);
      const histogram = new DurationHistogram();
      const values = Array.from({ length: count }, () => draw(random));
      for (const value of values) histogram.record(value);
      expect(histogram.count).toBe(count);
      for (const percent of [0, 1, 25, 50, 90, 95, 99, 99.9, 100]) {
        const expected = naivePercentile(values, percent);
        const found = histogram.percentileMs(percent) as number;
        expect(Math.abs(found - expected), `${percent} of ${count}`).toBeLessThanOrEqual(expected * 0.004 + 0.001);
      }
    }
  });

  it("keeps count, mean and extremes exactly", () => {
    const histogram = new DurationHistogram();
    for (const value of [12.5, 0, 100_000, 7.25]) histogram.record(value);
    expect(histogram.summary()).toMatchObject({ count: 4, min: 0, max: 100_000, mean: 25_004.938 });
  });

  it("has nothing to say of nothing, and takes only durations", () => {
    const histogram = new DurationHistogram();
    expect(histogram.summary()).toEqual({ count: 0 });
    expect(histogram.percentileMs(50)).toBeUndefined();
    for (const value of [-1, Number.NaN, Number.POSITIVE_INFINITY]) expect(() => histogram.record(value)).toThrow();
  });
});
