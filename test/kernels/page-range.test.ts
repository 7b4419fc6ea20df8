import { describe, expect, it } from "vitest";
import type { SelectionPlan } from "../../kernels/contract.ts";
import {
  keepPages,
  massCount,
  needsPageScores,
  pageRange,
  queryGroups,
  topIndices,
  withForcedPages,
} from "../../kernels/page-range.ts";
import { plainRange } from "./support/oracle.ts";
import { Random, SEED } from "./support/random.ts";

const SCORER = { summary: "min-max", radiusWeight: 1 } as const;
const PAGES = { kind: "pages", sinkPages: 1, recentPages: 2, scorer: SCORER, scope: "layer", combine: "max" } as const;
const decodeAt = (position: number) => ({ positionFirst: position, positionLast: position });

describe("page range", () => {
  it("by hand: decode at position 399, page 24", () => {
    const range = pageRange({ ...PAGES, budgetPages: 10 }, decodeAt(399));
    // The block of 399 starts at 384 = page 24; two recent pages are 23 and 24; one sink.
    expect(range).toEqual({
      everything: false,
      sinkEnd: 1,
      recentStart: 23,
      pageEnd: 25,
      candidateCount: 22,
      takePages: 7,
    });
    expect(withForcedPages(range, [3, 9])).toEqual([0, 3, 9, 23, 24]);
  });

  it("by hand: the query's own block is forced whole", () => {
    const range = pageRange({ ...PAGES, budgetPages: 10 }, decodeAt(447));
    // Page 27 is the last of block 6, which starts at page 24: forced are 0 and 24..27, five pages.
    expect(range).toMatchObject({ recentStart: 24, pageEnd: 28, takePages: 5 });
  });

  it("pages of the group itself are not charged", () => {
    const group = { positionFirst: 384, positionLast: 483 };
    const range = pageRange({ ...PAGES, budgetPages: 10 }, group);
    expect(range).toMatchObject({ recentStart: 23, pageEnd: 31, takePages: 7 });
  });

  it("is everything exactly up to the budget", () => {
    expect(pageRange({ ...PAGES, budgetPages: 25 }, decodeAt(399)).everything).toBe(true);
    expect(pageRange({ ...PAGES, budgetPages: 24 }, decodeAt(399)).everything).toBe(false);
    expect(pageRange({ kind: "dense" }, decodeAt(10_000)).everything).toBe(true);
  });

  it("sinks that reach the recent pages leave no candidates", () => {
    const range = pageRange({ ...PAGES, sinkPages: 90, budgetPages: 3 }, decodeAt(399));
    expect(range).toMatchObject({ sinkEnd: 23, recentStart: 23, candidateCount: 0, takePages: 0 });
    expect(withForcedPages(range, [])).toEqual(Array.from({ length: 25 }, (_, page) => page));
  });

  it("token plans keep candidate pages only where tokens must be chosen", () => {
    const plan: SelectionPlan = {
      ...{ kind: "tokens", budgetPages: 10, sinkPages: 1, recentPages: 2, candidatePages: 12 },
      scorer: SCORER,
    };
    const range = pageRange(plan, decodeAt(399));
    expect([keepPages(plan, range), needsPageScores(plan, range)]).toEqual([12, true]);
    const wide = { ...plan, candidatePages: 100 };
    expect([keepPages(wide, range), needsPageScores(wide, range)]).toEqual([22, false]);
    const rich = { ...plan, budgetPages: 26 };
    const all = pageRange(rich, { positionFirst: 384, positionLast: 431 });
    expect([all.candidateCount, keepPages(rich, all), needsPageScores(rich, all)]).toEqual([22, 22, false]);
    const poor = { ...plan, budgetPages: 2 };
    expect([
      keepPages(poor, pageRange(poor, decodeAt(399))),
      needsPageScores(poor, pageRange(poor, decodeAt(399))),
    ]).toEqual([0, false]);
  });

  it(`equals a naive twin on random plans (seed ${SEED})`, () => {
    const random = new Random(SEED);
    let active = 0;
    for (let round = 0; round < 3000; round++) {
      const p0 = random.integer(800);
      const p1 = p0 + random.integer(120);
      const plan: SelectionPlan = {
        ...{ kind: "pages", budgetPages: random.integer(40), sinkPages: random.integer(6) },
        ...{ recentPages: random.integer(10), scope: "layer", combine: "max" },
        ...(random.next() < 0.8 ? { scorer: SCORER } : {}),
      };
      const range = pageRange(plan, { positionFirst: p0, positionLast: p1 });
      const plain = plainRange(plan, { p0, p1 }, { layer: 0, index: 0 });
      expect(range.everything).toBe(plain === undefined);
      if (plain === undefined) continue;
      active++;
      expect(withForcedPages(range, []), JSON.stringify({ plan, p0, p1 })).toEqual(plain.forced);
      expect(range.candidateCount).toBe(plain.candidates.length);
      expect(range.takePages, JSON.stringify({ plan, p0, p1 })).toBe(plain.take);
      // A candidate must lie in a block sealed before the group's first row, or it would have no summary.
      expect(Math.floor(range.recentStart / 4)).toBeLessThanOrEqual(Math.floor(p0 / 64));
    }
    expect(active).toBeGreaterThan(500);
  });
});

describe("query groups", () => {
  it("cover the slice", () => {
    const slice = {
      ...{ position: 100, rowCount: 10, blockIds: new Int32Array(0), blockCapacity: 0 },
      ...{ summarySlots: new Int32Array(0), openSlots: new Int32Array(0) },
      ...{ groupStarts: Int32Array.of(0, 4, 9), plan: { kind: "dense" } as const },
    };
    expect(queryGroups(slice)).toEqual([
      { firstRow: 0, rowCount: 4, positionFirst: 100, positionLast: 103 },
      { firstRow: 4, rowCount: 5, positionFirst: 104, positionLast: 108 },
      { firstRow: 9, rowCount: 1, positionFirst: 109, positionLast: 109 },
    ]);
  });
});

describe("top indices", () => {
  it("ascending, ties to the lower index, NaN last", () => {
    expect(topIndices([1, 5, 3, 5, 5], 2)).toEqual([1, 3]);
    expect(topIndices([Number.NaN, -1, Number.NaN, -2], 3)).toEqual([0, 1, 3]);
    expect(topIndices([0, -0, 0], 2)).toEqual([0, 1]);
    expect(topIndices([2, 1], 0)).toEqual([]);
    expect(topIndices([2, 1], 5)).toEqual([0, 1]);
    expect(topIndices([Number.NEGATIVE_INFINITY, Number.NaN, Number.POSITIVE_INFINITY], 2)).toEqual([0, 2]);
  });
});

describe("the share of the weight", () => {
  /** The same by sorting. */
  function plainCount(scores: number[], combine: "max" | "softmax-sum", massShare: number, countMax: number): number {
    const best = Math.max(...scores.filter((score) => !Number.isNaN(score)));
    const weights = scores
      .map((score) => (combine === "max" ? Math.exp((score - best) / 4) : score))
      .filter((weight) => weight > 0);
    const total = weights.reduce((a, b) => a + b, 0);
    weights.sort((a, b) => b - a);
    for (let count = 1; count <= Math.min(countMax, weights.length); count++) {
      if (weights.slice(0, count).reduce((a, b) => a + b, 0) >= massShare * total) return count;
    }
    return countMax;
  }

  it("is reached by as few as by sorting", () => {
    const random = new Random(SEED);
    let limited = 0;
    for (let trial = 0; trial < 500; trial++) {
      const combine = trial % 2 === 0 ? "max" : "softmax-sum";
      const scores = Float32Array.from(
        { length: 1 + (trial % 90) },
        () => random.normal() * (combine === "max" ? 9 : 0.1),
      );
      if (trial % 7 === 0) scores[0] = Number.NaN;
      const [massShare, countMax] = [0.05 + (trial % 20) / 20, 1 + (trial % 30)];
      const share = Math.min(1, massShare);
      const count = massCount(scores, { combine, headDim: 16, massShare: share, countMax });
      expect(count, `trial ${trial}`).toBe(plainCount([...scores], combine, share, countMax));
      if (count < countMax) limited++;
    }
    expect(limited).toBeGreaterThan(100);
  });

  it("by hand: exact halves, nothing that weighs, and one that weighs all", () => {
    const vote = { combine: "softmax-sum", headDim: 16, countMax: 3 } as const;
    expect(massCount(Float32Array.of(0.25, 0.5, 0.25), { ...vote, massShare: 0.5 })).toBe(1);
    expect(massCount(Float32Array.of(0.25, 0.5, 0.25), { ...vote, massShare: 0.51 })).toBe(2);
    expect(massCount(Float32Array.of(0.25, 0.25, 0.25, 0.25), { ...vote, massShare: 1 })).toBe(3);
    expect(massCount(Float32Array.of(0, Number.NaN, 0), { ...vote, massShare: 0.1 })).toBe(3);
    const largest = { ...vote, combine: "max", massShare: 0.99 } as const;
    expect(massCount(Float32Array.of(-1e4, 3, Number.NEGATIVE_INFINITY), largest)).toBe(1);
  });
});
