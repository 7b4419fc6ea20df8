/** Intervals against textbook values, and whether they hold what they promise. */
import { describe, expect, it } from "vitest";
import {
  bootstrapEstimate,
  estimate,
  estimateShare,
  mapEstimate,
  meanOf,
  pairedDifference,
} from "../../../bench/eval/statistics.ts";
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
  const outcomes = (counts: { both: number; ours: number; theirs: number; none: number }) => [
    ...Array.from({ length: counts.both }, () => ({ ours: true, theirs: true })),
    ...Array.from({ length: counts.ours }, () => ({ ours: true, theirs: false })),
    ...Array.from({ length: counts.theirs }, () => ({ ours: false, theirs: true })),
    ...Array.from({ length: counts.none }, () => ({ ours: false, theirs: false })),
  ];
  /** Each a cluster of its own. */
  const pairs = (counts: Parameters<typeof outcomes>[0]) =>
    outcomes(counts).map((pair, cluster) => ({ ...pair, cluster }));

  it("count only what differs, with an interval also where nothing does", () => {
    const same = pairedDifference(pairs({ both: 90, ours: 0, theirs: 0, none: 10 }));
    expect(same.mean).toBe(0);
    // sqrt(1) * t(99) / 102
    expect(same.high).toBeCloseTo(1.98422 / 102, 5);
    const worse = pairedDifference(pairs({ both: 40, ours: 2, theirs: 5, none: 3 }));
    expect(worse.mean).toBeCloseTo(-0.06, 12);
    // (2.5 - 5.5) / 52 -+ t(49) * sqrt(8 - 9 / 52) / 52, t(49) = 2.00958
    expect(worse.low).toBeCloseTo(-0.1658, 3);
    expect(worse.high).toBeCloseTo(0.0504, 3);
    expect(pairedDifference(pairs({ both: 0, ours: 0, theirs: 2, none: 0 })).low).toBe(-1);
  });

  it("of questions about few documents are as sure as the documents differ", () => {
    // Of ten documents of four questions each, two won two answers and three lost two; the others lost nothing and won nothing.
    const gains = [2, 2, -2, -2, -2, 0, 0, 0, 0, 0];
    const clustered = gains.flatMap((gain, cluster) =>
      [0, 1, 2, 3].map((at) => {
        const differs = at < Math.abs(gain);
        return { ours: !differs || gain > 0, theirs: !differs || gain < 0, cluster };
      }),
    );
    const { mean, low, high } = pairedDifference(clustered);
    expect(mean).toBeCloseTo(-0.05, 12);
    // Residuals sum to 2.2 in two documents, -1.8 in three and 0.2 in five: 19.6. Alone they are 10 - 40 / 400 = 9.9: a design effect of
    // (19.6 * 10 / 9) / (9.9 * 40 / 39) = 2.1448. Around (4.5 - 6.5) / 42 with t(9) = 2.262 and 11 - 4 / 42.
    const spread = (2.262 * Math.sqrt(2.144_781 * (11 - 4 / 42))) / 42;
    expect(low).toBeCloseTo(-2 / 42 - spread, 6);
    expect(high).toBeCloseTo(-2 / 42 + spread, 6);
    const alone = pairedDifference(clustered.map((pair, cluster) => ({ ...pair, cluster })));
    expect(alone.low).toBeGreaterThan((low ?? 0) + 0.05);
    expect(pairedDifference(clustered.slice(0, 4))).toEqual({ mean: 0.5, count: 4 });
  });

  it("hold the true difference in about 95 of 100 samples, also where a document's questions fail together", () => {
    const random = seededRandom(7);
    const inside = { clustered: 0, alone: 0 };
    for (let sample = 0; sample < 600; sample++) {
      // One document of 25 loses half of its questions, the others one of a hundred; theirs loses 9 of 100 in the latter.
      const drawn = Array.from({ length: 60 }, (_, cluster) => {
        const isBad = random() < 0.04;
        return Array.from({ length: 16 }, () => {
          const u = random();
          return { ours: u >= (isBad ? 0.5 : 0.01), theirs: u < (isBad ? 0.5 : 0.01) || u > 0.1, cluster };
        });
      }).flat();
      const truth = 0.04 * (0.5 - 1) + 0.96 * (0.99 - 0.91);
      const holds = ({ low = 0, high = 0 }) => low <= truth && truth <= high;
      inside.clustered += Number(holds(pairedDifference(drawn)));
      inside.alone += Number(holds(pairedDifference(drawn.map((pair, cluster) => ({ ...pair, cluster })))));
    }
    expect(inside.clustered / 600).toBeGreaterThan(0.91);
    expect(inside.alone / 600).toBeLessThan(0.87);
  });

  it("hold the true difference in about 95 of 100 samples", () => {
    const random = seededRandom(6);
    let inside = 0;
    for (let sample = 0; sample < 2_000; sample++) {
      const drawn = Array.from({ length: 100 }, (_, cluster) => {
        const u = random();
        return { ours: u < 0.8, theirs: u < 0.72 || (u >= 0.8 && u < 0.9), cluster };
      });
      const { low = 0, high = 0 } = pairedDifference(drawn);
      if (low <= -0.02 && -0.02 <= high) inside += 1;
    }
    expect(inside / 2_000).toBeGreaterThan(0.93);
  });
});

describe("a bootstrap over rows", () => {
  const normal = (random: () => number): number =>
    Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

  it("has the mean, the same interval for the same values, and none for one", () => {
    const values = [1, 2, 3, 4, 5, 6];
    const { mean, low, high, count } = bootstrapEstimate(values);
    expect([mean, count]).toEqual([3.5, 6]);
    expect(low).toBeGreaterThan(1);
    expect(high).toBeLessThan(6);
    expect(bootstrapEstimate(values)).toEqual({ mean, low, high, count });
    expect(bootstrapEstimate([7])).toEqual({ mean: 7, count: 1 });
    expect(bootstrapEstimate([7, 7])).toEqual({ mean: 7, low: 7, high: 7, count: 2 });
  });

  it.each([
    // As wide as that of independent values, where they are; and wider where neighbours are alike, though not all that it would take.
    [0, 0.88, 0.97],
    [0.5, 0.75, 0.9],
  ])(
    "of 40 rows, each like the one before by %d, holds the true mean about as often as it may",
    (alike, least, most) => {
      const random = seededRandom(9);
      let inside = 0;
      for (let sample = 0; sample < 300; sample++) {
        let value = normal(random);
        const rows = Array.from({ length: 40 }, () => {
          value = alike * value + Math.sqrt(1 - alike ** 2) * normal(random);
          return value;
        });
        const { low = 1, high = -1 } = bootstrapEstimate(rows);
        if (low <= 0 && 0 <= high) inside += 1;
      }
      expect(inside / 300).toBeGreaterThan(least);
      expect(inside / 300).toBeLessThan(most);
    },
  );
});
