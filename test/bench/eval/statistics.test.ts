/** Intervals against textbook values, and whether they hold what they promise. */
import { describe, expect, it } from "vitest";
import { estimate, estimateShare, mapEstimate, meanOf, pairedDifference } from "../../../bench/eval/statistics.ts";
import { seededRandom } from "../../../bench/random.ts";

describe("estimates", () => {
  it("have Student's interval", () => {
    // scipy.stats.t.interval(0.95, 4, loc=3, scale=scipy.stats.sem([1, 2, 3, 4, 5]))
    const { mean, low, high, count } = estimate([1, 2, 3, 4, 5]);
    expect([mean, count]).toEqual([3, 5]);
    expect(low).toBeCloseTo(1.036757, 3);
    expect(high).toBeCloseTo(4.963243, 3);
  });

  it("of one value have no interval", () => {
    expect(estimate([7])).toEqual({ mean: 7, count: 1 });
  });

  it("hold the true mean in about 95 of 100 samples", () => {
    const random = seededRandom(5);
    const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    let inside = 0;
    for (let sample = 0; sample < 2_000; sample++) {
      const { low = 0, high = 0 } = estimate(Array.from({ length: 6 }, () => 10 + 3 * normal()));
      if (low <= 10 && 10 <= high) inside += 1;
    }
    expect(inside / 2_000).toBeGreaterThan(0.935);
    expect(inside / 2_000).toBeLessThan(0.965);
  });

  it("of shares end at 0 and 1; functions of them go through their bounds", () => {
    expect(estimateShare([1, 1, 0.9]).high).toBe(1);
    const { low = Number.NaN } = estimate([0.1, 0.3]);
    expect(mapEstimate(estimate([0.1, 0.3]), Math.expm1).low).toBeCloseTo(Math.expm1(low), 12);
    expect(meanOf([])).toBeNaN();
  });
});

describe("paired differences", () => {
  const pairs = (counts: { both: number; ours: number; theirs: number; none: number }) => [
    ...Array.from({ length: counts.both }, () => ({ ours: true, theirs: true })),
    ...Array.from({ length: counts.ours }, () => ({ ours: true, theirs: false })),
    ...Array.from({ length: counts.theirs }, () => ({ ours: false, theirs: true })),
    ...Array.from({ length: counts.none }, () => ({ ours: false, theirs: false })),
  ];

  it("count only what differs, with an interval also where nothing does", () => {
    const same = pairedDifference(pairs({ both: 90, ours: 0, theirs: 0, none: 10 }));
    expect(same.mean).toBe(0);
    // sqrt(1) * 1.96 / 102
    expect(same.high).toBeCloseTo(0.019216, 5);
    const worse = pairedDifference(pairs({ both: 40, ours: 2, theirs: 5, none: 3 }));
    expect(worse.mean).toBeCloseTo(-0.06, 12);
    // (2.5 - 5.5) / 52 -+ 1.96 * sqrt(8 - 9 / 52) / 52
    expect(worse.low).toBeCloseTo(-0.16314, 4);
    expect(worse.high).toBeCloseTo(0.04776, 4);
    expect(pairedDifference(pairs({ both: 0, ours: 0, theirs: 2, none: 0 })).low).toBe(-1);
  });

  it("hold the true difference in about 95 of 100 samples", () => {
    const random = seededRandom(6);
    let inside = 0;
    for (let sample = 0; sample < 2_000; sample++) {
      const drawn = Array.from({ length: 100 }, () => {
        const u = random();
        return { ours: u < 0.8, theirs: u < 0.72 || (u >= 0.8 && u < 0.9) };
      });
      const { low = 0, high = 0 } = pairedDifference(drawn);
      if (low <= -0.02 && -0.02 <= high) inside += 1;
    }
    expect(inside / 2_000).toBeGreaterThan(0.93);
  });
});
