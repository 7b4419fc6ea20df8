/** Scores of pages from what is kept of each: extremes, means and deviations, of a page or of parts of it. */
import { PAGE_TOKENS } from "../../../kernels/contract.ts";
import type { Scorer } from "./scorer.ts";

/** A centre and a radius for each channel of a (part of a) page. */
type Spread = "extremes" | "deviation";

/** How pages are summarized. */
export interface SummaryOptions {
  name: string;
  spread: Spread;
  /** Tokens of one summary: 16, or fewer, of which a page then has several. */
  partTokens: number;
  bits: 4 | 8;
  /** Of the radius; with 0 it is neither kept nor read. */
  radiusWeight: number;
  combine: Scorer["combine"];
}

/**
 * `q.c + radiusWeight |q|.r` over summaries of `partTokens` tokens, each vector in codes of `bits` under one f32 scale. A page's score is its parts'
 * largest, or with `softmax-sum` the logarithm of the sum of their exponentials.
 */
export function summaryScorer(options: SummaryOptions, headDim: number): Scorer {
  const { name, spread, partTokens, bits, radiusWeight, combine } = options;
  const vectors = radiusWeight === 0 ? 1 : 2;
  return {
    ...{ name, unitTokens: PAGE_TOKENS, combine },
    bytesPerToken: (vectors * ((headDim * bits) / 8 + 4)) / partTokens,
    index: (keys) => {
      const { centres, radii } = summaries(keys, headDim, { spread, partTokens, bits });
      const partsPerPage = PAGE_TOKENS / partTokens;
      return (query) => {
        const partCount = centres.length / headDim;
        const parts = Float64Array.from({ length: partCount }, (_, part) => {
          let score = 0;
          for (let channel = 0; channel < headDim; channel++) {
            const value = query[channel] as number;
            score += value * (centres[part * headDim + channel] as number);
            score += radiusWeight * Math.abs(value) * (radii[part * headDim + channel] as number);
          }
          return score / Math.sqrt(headDim);
        });
        return Float64Array.from({ length: Math.ceil(partCount / partsPerPage) }, (_, page) => {
          const own = parts.subarray(page * partsPerPage, (page + 1) * partsPerPage);
          const max = Math.max(...own);
          if (combine === "max") return max;
          return max + Math.log(own.reduce((sum, score) => sum + Math.exp(score - max), 0));
        });
      };
    },
  };
}

/** Decoded: f32 `[partCount][headDim]` each; the last part may be of fewer tokens. */
function summaries(
  keys: Float32Array,
  headDim: number,
  { spread, partTokens, bits }: Pick<SummaryOptions, "spread" | "partTokens" | "bits">,
): { centres: Float32Array; radii: Float32Array } {
  const tokenCount = keys.length / headDim;
  const partCount = Math.ceil(tokenCount / partTokens);
  const centres = new Float32Array(partCount * headDim);
  const radii = new Float32Array(partCount * headDim);
  for (let part = 0; part < partCount; part++) {
    const from = part * partTokens;
    const count = Math.min(partTokens, tokenCount - from);
    const own = part * headDim;
    for (let channel = 0; channel < headDim; channel++) {
      const [centre, radius] = spreadOf(spread, keys, from * headDim + channel, headDim, count);
      centres[own + channel] = centre;
      radii[own + channel] = radius;
    }
    const before = spread === "extremes" ? centres.slice(own, own + headDim) : undefined;
    roundTo(centres.subarray(own, own + headDim), 2 ** (bits - 1) - 1, Math.round);
    // So that the box still holds every key.
    for (let at = 0; before !== undefined && at < headDim; at++) {
      radii[own + at]! += Math.abs((before[at] as number) - (centres[own + at] as number));
    }
    // A radius is never negative: at 4 bits it has all 16 codes; at 8 it is an i8, as the device has it.
    const levels = bits === 4 ? 15 : 127;
    roundTo(radii.subarray(own, own + headDim), levels, spread === "extremes" ? Math.ceil : Math.round);
  }
  return { centres, radii };
}

function spreadOf(spread: Spread, keys: Float32Array, from: number, stride: number, count: number): [number, number] {
  let [least, most, sum, squares] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, 0];
  for (let token = 0; token < count; token++) {
    const value = keys[from + token * stride] as number;
    least = Math.min(least, value);
    most = Math.max(most, value);
    sum += value;
  }
  if (spread === "extremes") return [(least + most) / 2, (most - least) / 2];
  const mean = sum / count;
  for (let token = 0; token < count; token++) squares += ((keys[from + token * stride] as number) - mean) ** 2;
  return [mean, Math.sqrt(squares / count)];
}

/** Codes up to `levels` under one scale, and back. */
function roundTo(values: Float32Array, levels: number, round: (value: number) => number): void {
  const scale = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / levels;
  for (let at = 0; at < values.length && scale > 0; at++)
    values[at] = Math.min(levels, round((values[at] as number) / scale)) * scale;
}
