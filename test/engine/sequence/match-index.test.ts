import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Match, MatchIndex } from "../../../engine/sequence/match-index.ts";

/** Compares every place with the end of the text. */
function naive(ids: readonly number[]): Match | undefined {
  const places: Match[] = [];
  for (let end = ids.length - 1; end >= 3 && places.length < 8; end--) {
    let length = 0;
    while (length < Math.min(12, end) && ids[end - 1 - length] === ids[ids.length - 1 - length]) length += 1;
    if (length >= 3) places.push({ end, length });
  }
  const longest = Math.max(...places.map(({ length }) => length));
  return places.find(({ length }) => length === longest);
}

describe("where the last tokens stood before", () => {
  it("is the latest of the places that agree furthest back, however the text grew", () => {
    const text = fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 0, maxLength: 60 });
    fc.assert(
      fc.property(text, fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 20 }), (ids, steps) => {
        const index = new MatchIndex();
        let count = 0;
        for (const step of steps) {
          count = Math.min(ids.length, count + step);
          const seen = ids.slice(0, count);
          expect(index.find(Uint32Array.from(seen))).toEqual(naive(seen));
        }
      }),
      { numRuns: 400 },
    );
  });

  it("prefers a longer agreement to a later one", () => {
    const ids = [9, 1, 2, 3, 4, 70, 5, 2, 3, 4, 80, 9, 1, 2, 3, 4];
    expect(new MatchIndex().find(Uint32Array.from(ids))).toEqual({ end: 5, length: 5 });
  });

  it("looks at each token of a long text a few times", () => {
    let readCount = 0;
    const ids = new Proxy(
      Uint32Array.from({ length: 100_000 }, (_, i) => (i * 7919) % 4096),
      {
        get(target, key) {
          if (key !== "length") readCount += 1;
          return Reflect.get(target, key);
        },
      },
    );
    expect(new MatchIndex().find(ids)).toEqual({ end: 95_904, length: 12 });
    expect(readCount).toBeLessThan(4 * 100_000);
  });
});
