/** Residual signs against what the document says of them, worked out naively in f64. */
import { describe, expect, it } from "vitest";
import { turn } from "../../kernels/residual-signs.ts";
import { summarizeKeys } from "../../kernels/summary-codec.ts";
import { decodeResidualSigns } from "../storage/independent-decoder.mjs";
import { plainScorer, plainSummary, plainTurned } from "./support/oracle.ts";
import { Random, SEED } from "./support/random.ts";

const WIDTHS = [16, 48, 64, 80, 96, 128] as const;

/** Keys with a mean of their own in every channel, and a lone token of another direction on page 2. */
function keysOf(headDim: number): Float32Array {
  const random = new Random(SEED + headDim);
  const offsets = random.normals(headDim, 4);
  const keys = random.normals(64 * headDim).map((value, at) => value + (offsets[at % headDim] as number));
  for (let channel = 0; channel < headDim; channel++) keys[41 * headDim + channel] = 3 * random.normal();
  return keys;
}

describe(`residual signs (seed ${SEED})`, () => {
  it("turn by sums and differences alone: a matrix of 1 and -1 within each class of channels, whose rows are orthogonal", () => {
    for (const length of WIDTHS) {
      const columns = Array.from({ length }, (_, channel) => {
        const unit = new Float64Array(length);
        unit[channel] = 1;
        turn(unit);
        expect([...unit]).toEqual(plainTurned(Array.from({ length }, (_, at) => (at === channel ? 1 : 0))));
        return unit;
      });
      const size = length & -length;
      for (const a of columns) {
        const dots = columns.map((b) => b.reduce((sum, value, at) => sum + value * (a[at] as number), 0));
        expect(dots.filter((dot) => dot !== 0)).toEqual([size]);
      }
    }
  });

  it.each(WIDTHS)("have the signs and mean magnitudes of turned residuals, headDim %i", (headDim) => {
    const keys = keysOf(headDim);
    const { mean, tokens } = decodeResidualSigns(headDim, summarizeKeys("residual-signs", keys, headDim));
    const signCount = 8 * Math.floor((7 * headDim) / 64) - 4;
    const largest = Math.max(...mean.map(Math.abs));
    mean.forEach((value, channel) => {
      const column = Array.from({ length: 64 }, (_, token) => keys[token * headDim + channel] as number);
      const expected = column.reduce((a, b) => a + b) / 64;
      expect(Math.abs(value - expected)).toBeLessThanOrEqual((largest / 127) * 0.5001);
    });
    const residuals = tokens.map((_, token) => {
      const row = Array.from(keys.subarray(token * headDim, (token + 1) * headDim));
      return plainTurned(row.map((value, channel) => value - (mean[channel] as number))).slice(0, signCount);
    });
    const lengths = residuals.map((residual) => {
      const sum = residual.reduce((sofar, value) => sofar + Math.abs(value), 0);
      return sum / signCount / (headDim & -headDim);
    });
    for (const [token, { signs, length }] of tokens.entries()) {
      expect(signs).toHaveLength(signCount);
      const residual = residuals[token] as number[];
      // What is next to nothing may fall either way in f32.
      residual.forEach((value, at) => {
        if (Math.abs(value) > 1e-3) expect(signs[at]).toBe(Math.sign(value));
      });
      const page = Math.floor(token / 16) * 16;
      const step = Math.max(...lengths.slice(page, page + 16)) / 15;
      expect(Math.abs(length - (lengths[token] as number))).toBeLessThanOrEqual(step * 0.5001);
    }
  });

  it.each(WIDTHS)("score a page by what its best token's q.k is, give or take, headDim %i", (headDim) => {
    const keys = keysOf(headDim);
    const bytes = summarizeKeys("residual-signs", keys, headDim);
    const { mean } = decodeResidualSigns(headDim, bytes);
    const random = new Random(SEED);
    const errors: number[] = [];
    for (let round = 0; round < 50; round++) {
      const query = random.normals(headDim);
      const score = plainScorer(query, 1, "residual-signs");
      for (let page = 0; page < 4; page++) {
        const own = score(plainSummary({ kvHeadCount: 1, headDim }, bytes, { layer: 0, kvHead: 0, page }));
        const tokens = Array.from({ length: 16 }, (_, token) => {
          const at = (page * 16 + token) * headDim;
          return Array.from(query, (value, channel) => value * (keys[at + channel] as number)).reduce((a, b) => a + b);
        });
        const longest = Math.max(
          ...tokens.map((_, token) => {
            const at = (page * 16 + token) * headDim;
            return Math.hypot(...mean.map((value, channel) => (keys[at + channel] as number) - value));
          }),
        );
        errors.push((own - Math.max(...tokens)) / (Math.hypot(...query) * longest));
      }
    }
    const spread = Math.sqrt(errors.reduce((sum, error) => sum + error ** 2, 0) / errors.length);
    // One bit a channel is off by about 0.75 / sqrt(channels) of both lengths' product; the more channels, the nearer.
    expect(spread).toBeLessThan(1.5 / Math.sqrt(headDim));
  });

  it("of keys that are all the same: the mean alone, and a score that is q.mean", () => {
    const keys = new Float32Array(64 * 16).fill(0.5);
    const bytes = summarizeKeys("residual-signs", keys, 16);
    const { mean, tokens } = decodeResidualSigns(16, bytes);
    expect(mean).toEqual(Array(16).fill(Math.fround(0.5 / 127) * 127));
    const score = plainScorer(
      Float32Array.from({ length: 16 }, (_, at) => at),
      1,
      "residual-signs",
    );
    const summary = plainSummary({ kvHeadCount: 1, headDim: 16 }, bytes, { layer: 0, kvHead: 0, page: 1 });
    expect(score(summary)).toBeCloseTo(60, 2);
    expect(tokens.every(({ length }) => length < 1e-6)).toBe(true);
  });

  it("keys too large for their sum: NaN, and the same bytes again", () => {
    const keys = new Float32Array(64 * 16).fill(3e38);
    const bytes = summarizeKeys("residual-signs", keys, 16);
    const { tokens } = decodeResidualSigns(16, bytes);
    expect(tokens.every(({ length }) => Number.isNaN(length))).toBe(true);
  });
});
