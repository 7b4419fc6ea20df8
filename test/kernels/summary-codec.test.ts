import { describe, expect, it } from "vitest";
import { SUMMARY_KINDS, type SummaryKind } from "../../kernels/contract.ts";
import { decodeSummary, summarizeKeys } from "../../kernels/summary-codec.ts";
import { plainScorer, plainSummary } from "./support/oracle.ts";
import { Random, SEED } from "./support/random.ts";

/** Centre and radius of a page of one KV head of 4 channels. */
function page(bytes: Uint8Array, index: number) {
  return plainSummary({ kvHeadCount: 1, headDim: 4 }, bytes, { layer: 0, kvHead: 0, page: index });
}

describe("summaries", () => {
  it("by hand: page 1 counts from 0 to 15 in channel 2 and is 3 in channel 0", () => {
    const keys = new Float32Array(64 * 4);
    for (let token = 0; token < 16; token++) keys.set([3, 0, token], (16 + token) * 4);
    const minMax = page(summarizeKeys("min-max", keys, 4), 1);
    // 7.5 is the largest centre: 127 units. 3 is 50.8 of them, rounded to 51, and what that adds goes to the radius.
    expect(minMax.centre).toEqual([51, 0, 127, 0]);
    expect(minMax.centreScale).toBe(Math.fround(7.5 / 127));
    const lost = 51 * (7.5 / 127) - 3;
    expect(minMax.radiusScale).toBeCloseTo(7.5 / 127, 6);
    expect(minMax.radius).toEqual([Math.ceil(lost / (7.5 / 127)), 0, 127, 0]);
    expect(minMax.radius[0]).toBe(1);
    const deviation = page(summarizeKeys("mean-deviation", keys, 4), 1);
    expect(deviation.centre).toEqual([51, 0, 127, 0]);
    expect(deviation.radius).toEqual([0, 0, 127, 0]);
    expect(deviation.radiusScale).toBe(Math.fround(Math.fround(Math.sqrt(21.25)) / 127));
    for (const bytes of [summarizeKeys("min-max", keys, 4), summarizeKeys("mean-deviation", keys, 4)]) {
      expect(page(bytes, 0)).toMatchObject({
        centre: [0, 0, 0, 0],
        radius: [0, 0, 0, 0],
        centreScale: 0,
        radiusScale: 0,
      });
    }
  });

  it(`decodes to code times scale, in the order centre, radius of each page (seed ${SEED})`, () => {
    const bytes = summarizeKeys("mean-deviation", new Random(SEED).normals(64 * 4), 4);
    const decoded = decodeSummary(bytes, 4);
    for (let index = 0; index < 4; index++) {
      const { centre, radius, centreScale, radiusScale } = page(bytes, index);
      const expected = [...centre.map((code) => code * centreScale), ...radius.map((code) => code * radiusScale)];
      expect([...decoded.subarray(index * 8, index * 8 + 8)]).toEqual(expected.map(Math.fround));
    }
  });

  it.each([4, 12, 64])(`mean and deviation are within half a unit, headDim %i (seed ${SEED})`, (headDim) => {
    const keys = new Random(SEED).normals(64 * headDim);
    const decoded = decodeSummary(summarizeKeys("mean-deviation", keys, headDim), headDim);
    for (let index = 0; index < 4; index++) {
      const at = index * 2 * headDim;
      const largest = (from: number): number => Math.max(...decoded.subarray(from, from + headDim).map(Math.abs));
      for (let channel = 0; channel < headDim; channel++) {
        const column = Array.from({ length: 16 }, (_, token) => keys[(index * 16 + token) * headDim + channel]!);
        const mean = column.reduce((a, b) => a + b) / 16;
        const deviation = Math.sqrt(column.reduce((a, b) => a + (b - mean) ** 2, 0) / 16);
        const [centre, radius] = [decoded[at + channel]!, decoded[at + headDim + channel]!];
        expect(Math.abs(centre - mean)).toBeLessThanOrEqual((largest(at) / 127) * 0.5001);
        expect(Math.abs(radius - deviation)).toBeLessThanOrEqual((largest(at + headDim) / 127) * 0.5001);
      }
    }
  });

  it.each([4, 12, 64])(`min-max bounds every q.k of the page, as Quest needs, headDim %i (seed ${SEED})`, (headDim) => {
    const random = new Random(SEED);
    const keys = random.normals(64 * headDim);
    const bytes = summarizeKeys("min-max", keys, headDim);
    for (let round = 0; round < 100; round++) {
      // One channel towers over the others in some rounds: the bound must hold per channel.
      const q = random.normals(headDim, round % 3 === 0 ? 0.01 : 1);
      q[round % headDim] = random.normal(round % 3 === 0 ? 10 : 1);
      for (let token = 0; token < 64; token++) {
        const summary = plainSummary({ kvHeadCount: 1, headDim }, bytes, { layer: 0, kvHead: 0, page: token >> 4 });
        let product = 0;
        for (let channel = 0; channel < headDim; channel++) product += q[channel]! * keys[token * headDim + channel]!;
        // The query's own 16 bits round by 1/65534 of its largest channel.
        const slack = q.reduce((most, value) => Math.max(most, Math.abs(value)), 0) * headDim * 2e-4;
        expect(plainScorer(q, 1)(summary)).toBeGreaterThanOrEqual(product - slack);
      }
    }
  });

  it("by hand: centre and mean distance, the two keys most like all, and signs", () => {
    // Page 0: token t has t in channel 0; tokens 3 and 9 alone have channel 1, the latter against the others' sign; the rest is 0.
    const keys = new Float32Array(64 * 8);
    for (let token = 0; token < 16; token++) keys[token * 8] = token;
    keys[3 * 8 + 1] = 5;
    keys[9 * 8 + 1] = -40;
    keys[9 * 8 + 7] = -0;
    const read = (kind: SummaryKind) => {
      const bytes = summarizeKeys(kind, keys, 8);
      return plainSummary({ kvHeadCount: 1, headDim: 8 }, bytes, { layer: 0, kvHead: 0, page: 0 });
    };
    const box = read("centre-deviation");
    // Channel 0: centre 7.5, mean distance 4. Channel 1: (5 - 40) / 2 = -17.5; |5 + 17.5|, |-40 + 17.5| and 14 times 17.5 make 18.125.
    expect(box.centre.slice(0, 3)).toEqual([Math.round((7.5 / 17.5) * 127), -127, 0]);
    expect(box.radius.slice(0, 3)).toEqual([Math.round((4 / 18.125) * 127), 127, 0]);
    expect([box.centreScale, box.radiusScale]).toEqual([17.5 / 127, 18.125 / 127].map(Math.fround));
    // k_m . sum_j k_j with sums (120, -35): token 9 has 9 * 120 + 40 * 35 = 2480, token 15 has 1800, token 14 1680.
    const two = read("representatives");
    expect(two.centre).toEqual([Math.round((9 / 40) * 127), -127, 0, 0, 0, 0, 0, 0]);
    expect(two.radius).toEqual([127, 0, 0, 0, 0, 0, 0, 0]);
    expect([two.centreScale, two.radiusScale]).toEqual([40 / 127, 15 / 127].map(Math.fround));
    const signs = read("sign-bits");
    const bytes = [...signs.centre, ...signs.radius].map((code) => code & 255);
    expect(bytes).toEqual(Array.from({ length: 16 }, (_, token) => (token === 9 ? 0b1000_0010 : 0)));
    expect([signs.centreScale, signs.radiusScale]).toEqual([1, 0]);
    // Against (+, -, ...): token 9 agrees in all channels but the last.
    expect(plainScorer(Float32Array.of(1, -1, 1, 1, 1, 1, 1, 1), 0, "sign-bits")(signs)).toBe(7);
    expect(plainScorer(Float32Array.of(1, -1, 1, 1, 1, 1, 1, -1), 0, "sign-bits")(signs)).toBe(8);
  });

  it("equal keys: the first two tokens represent their page", () => {
    const keys = new Float32Array(64 * 4).fill(0.5);
    const { centre, radius } = page(summarizeKeys("representatives", keys, 4), 2);
    expect([centre, radius]).toEqual([Array(4).fill(127), Array(4).fill(127)]);
  });

  it("keys that are not finite make every score of the page NaN, and of no other", () => {
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const keys = new Random(SEED).normals(64 * 16);
      keys[20 * 16 + 2] = bad;
      for (const kind of SUMMARY_KINDS) {
        const bytes = summarizeKeys(kind, keys, 16);
        const q = Float32Array.from({ length: 16 }, (_, channel) => [1, 0, -2, 0.5][channel % 4]!);
        for (const weight of [0, 0.5, 1]) {
          const pages = [0, 1, 2, 3].map((index) =>
            plainSummary({ kvHeadCount: 1, headDim: 16 }, bytes, { layer: 0, kvHead: 0, page: index }),
          );
          const scores = pages.map(plainScorer(q, weight, kind));
          expect(scores.map(Number.isNaN)).toEqual([false, true, false, false]);
        }
      }
    }
  });
});
