import { describe, expect, it } from "vitest";
import type { SampleRow } from "../../kernels/contract.ts";
import { gumbelNoise, sampleRow } from "../../kernels/sample-row.ts";
import { plainRow } from "./conformance/sampling.ts";
import { Random, SEED } from "./support/random.ts";

const row = (changes: Partial<SampleRow>): SampleRow => plainRow(0, changes);
const VOCABULARY = 40;

function softmax(logits: ArrayLike<number>): number[] {
  const max = Math.max(...Array.from(logits));
  const weights = Array.from(logits, (logit) => Math.exp(logit - max));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

/** The 0.9999 quantile of chi-square, by Wilson and Hilferty. */
function chiSquareBound(degrees: number): number {
  return degrees * (1 - 2 / (9 * degrees) + 3.72 * Math.sqrt(2 / (9 * degrees))) ** 3;
}

function chiSquare(counts: readonly number[], probabilities: readonly number[]): number {
  const total = counts.reduce((a, b) => a + b, 0);
  return counts.reduce(
    (sum, count, index) => sum + (count - total * probabilities[index]!) ** 2 / (total * probabilities[index]!),
    0,
  );
}

describe("greedy", () => {
  it("takes the largest logit, the lower id of equals, and never NaN", () => {
    expect(sampleRow(Float32Array.of(1, 3, 3, 2), row({})).tokenId).toBe(1);
    expect(sampleRow(Float32Array.of(Number.NaN, -5, Number.NaN), row({})).tokenId).toBe(1);
    expect(sampleRow(Float32Array.of(Number.NEGATIVE_INFINITY, -1e30), row({})).tokenId).toBe(1);
    expect(sampleRow(new Float32Array(4).fill(Number.NEGATIVE_INFINITY), row({})).tokenId).toBe(0);
    expect(sampleRow(new Float32Array(4).fill(Number.NEGATIVE_INFINITY), row({ temperature: 1 })).tokenId).toBe(0);
  });

  it("ignores truncation and noise", () => {
    const logits = Float32Array.of(0, 1, 2);
    for (let position = 0; position < 50; position++) {
      expect(sampleRow(logits, row({ topK: 1, topP: 0.1, minP: 1, position })).tokenId).toBe(2);
    }
  });
});

describe("noise", () => {
  it("is a function of seed, position and token", () => {
    expect(gumbelNoise(1, 2, 3)).toBe(gumbelNoise(1, 2, 3));
    const others = [gumbelNoise(1, 2, 4), gumbelNoise(1, 3, 3), gumbelNoise(2, 2, 3), gumbelNoise(2, 1, 3)];
    expect(new Set([gumbelNoise(1, 2, 3), ...others]).size).toBe(5);
    // Stored sequences are replayed on other versions: these values must not change.
    // They come from the formula of sample-row.ts written in Python.
    expect(gumbelNoise(0, 0, 0)).toBeCloseTo(-0.5226487040611997, 12);
    expect(gumbelNoise(7, 31_000, 259)).toBeCloseTo(2.1676174330131435, 12);
    expect(gumbelNoise(0xffffffff, 1, 50_000)).toBeCloseTo(1.9238740265052867, 12);
  });

  it("has the mean and variance of Gumbel, and no correlation along seed, position or token", () => {
    const count = 20_000;
    for (const of of [
      (i: number) => gumbelNoise(i, 5, 5),
      (i: number) => gumbelNoise(5, i, 5),
      (i: number) => gumbelNoise(5, 5, i),
    ]) {
      const noise = Array.from({ length: count }, (_, i) => of(i));
      const mean = noise.reduce((a, b) => a + b, 0) / count;
      const variance = noise.reduce((a, b) => a + (b - mean) ** 2, 0) / count;
      const lag = noise.slice(1).reduce((a, b, i) => a + (b - mean) * (noise[i]! - mean), 0) / count / variance;
      expect(Math.abs(mean - 0.5772)).toBeLessThan(4 * Math.sqrt(1.645 / count));
      expect(Math.abs(variance - Math.PI ** 2 / 6)).toBeLessThan(0.1);
      expect(Math.abs(lag)).toBeLessThan(4 / Math.sqrt(count));
    }
  });
});

describe("distribution (chi-square, 0.9999)", () => {
  const logits = new Random(SEED).normals(12, 1.5);
  const cases: { name: string; change: Partial<SampleRow>; scaled: (ids: number[]) => number[] }[] = [
    { name: "along positions", change: {}, scaled: (ids) => ids },
    { name: "at temperature 0.6", change: { temperature: 0.6 }, scaled: (ids) => ids },
    { name: "with top-k 4", change: { topK: 4 }, scaled: (ids) => ids.slice(0, 4) },
  ];
  it.each(cases)(`$name (seed ${SEED})`, ({ change, scaled }) => {
    const temperature = change.temperature ?? 1;
    const best = Array.from(logits, (_, id) => id).sort((a, b) => logits[b]! - logits[a]!);
    const kept = scaled(best);
    const probabilities = softmax(kept.map((id) => logits[id]! / temperature));
    const counts = kept.map(() => 0);
    const draws = 20_000;
    for (let position = 0; position < draws; position++) {
      const { tokenId } = sampleRow(logits, row({ temperature: 1, ...change, position, seed: 123 }));
      expect(kept).toContain(tokenId);
      const index = kept.indexOf(tokenId);
      counts[index] = counts[index]! + 1;
    }
    expect(chiSquare(counts, probabilities)).toBeLessThan(chiSquareBound(kept.length - 1));
  });

  it("along seeds", () => {
    const probabilities = softmax(logits);
    const counts = probabilities.map(() => 0);
    for (let seed = 0; seed < 20_000; seed++) {
      const { tokenId } = sampleRow(logits, row({ temperature: 1, seed: seed * 65_537, position: 4 }));
      counts[tokenId] = counts[tokenId]! + 1;
    }
    expect(chiSquare(counts, probabilities)).toBeLessThan(chiSquareBound(11));
  });
});

/** Top-k, top-p and min-p written out on sorted probabilities. */
function naivelyKept(logits: Float32Array, { temperature, topK, topP, minP }: SampleRow): number[] {
  let ids = Array.from(logits, (_, id) => id).sort((a, b) => logits[b]! - logits[a]! || a - b);
  const renormalized = (): number[] => softmax(ids.map((id) => logits[id]! / temperature));
  if (topK > 0) ids = ids.slice(0, topK);
  if (topP < 1) {
    const probabilities = renormalized();
    let mass = 0;
    let count = 0;
    while (count < ids.length && mass < topP - 1e-12) mass += probabilities[count++]!;
    ids = ids.slice(0, Math.max(1, count));
  }
  const probabilities = renormalized();
  return ids.filter((_, index) => probabilities[index]! >= minP * probabilities[0]! - 1e-12);
}

describe("truncation", () => {
  it(`draws the best noisy logit of a naive top-k, top-p, min-p (seed ${SEED})`, () => {
    const random = new Random(SEED);
    let truncated = 0;
    for (let round = 0; round < 3000; round++) {
      // Quarter steps make ties, so that the tie rule is tested too; large spreads reach the slow path of top-p.
      const spread = [0.5, 2, 12][round % 3]!;
      const logits = random
        .normals(VOCABULARY, spread)
        .map((value) => (round % 2 === 0 ? Math.round(value * 4) / 4 : value));
      const params = row({
        ...{ temperature: 0.3 + random.next(), topK: random.next() < 0.5 ? random.integer(VOCABULARY + 5) : 0 },
        ...{
          topP: random.next() < 0.6 ? 0.05 + 0.949 * random.next() : 1,
          minP: random.next() < 0.5 ? random.next() ** 3 : 0,
        },
        ...{ seed: random.integer(2 ** 31), position: random.integer(100_000) },
      });
      const kept = naivelyKept(logits, params);
      if (kept.length < VOCABULARY) truncated++;
      const noisy = (id: number): number =>
        logits[id]! / params.temperature + gumbelNoise(params.seed, params.position, id);
      const expected = [...kept].sort((a, b) => noisy(b) - noisy(a) || a - b)[0];
      expect(sampleRow(logits, params).tokenId, JSON.stringify({ round, params })).toBe(expected);
    }
    expect(truncated).toBeGreaterThan(1500);
  });

  it("keeps at least the best token", () => {
    const logits = Float32Array.of(0, 2, 1);
    for (const change of [{ topP: 0 }, { topP: 1e-9 }, { minP: 1 }, { topK: 1 }]) {
      for (let position = 0; position < 30; position++) {
        expect(sampleRow(logits, row({ temperature: 1, ...change, position })).tokenId).toBe(1);
      }
    }
  });

  it("a flat vocabulary of 3,000 under top-p keeps the lower ids", () => {
    const logits = new Float32Array(3000);
    const ids = Array.from(
      { length: 400 },
      (_, position) => sampleRow(logits, row({ temperature: 1, topP: 0.1, position })).tokenId,
    );
    expect(Math.max(...ids)).toBeLessThan(300);
    expect(new Set(ids).size).toBeGreaterThan(150);
  });
});

describe("penalties and bias", () => {
  const logits = Float32Array.of(2, -1, 0.5, 3);
  const winner = (change: Partial<SampleRow>): number => sampleRow(logits, row(change)).tokenId;

  /** The adjusted logit of token `id`: the bias at which a fifth token, which no penalty touches, begins to win. */
  function adjusted(id: number, change: Partial<SampleRow>): number {
    let [low, high] = [-100, 100];
    for (let step = 0; step < 60; step++) {
      const middle = (low + high) / 2;
      const rival = 4;
      const values = new Float32Array(5).fill(-1e9);
      values[id] = logits[id]!;
      values[rival] = 0;
      const bias = { biasIds: Uint32Array.of(rival), biasValues: Float32Array.of(middle) };
      if (sampleRow(values, row({ ...change, ...bias })).tokenId === rival) high = middle;
      else low = middle;
    }
    return (low + high) / 2;
  }

  it("repetition divides positive and multiplies negative logits of every seen id, prompt only ones too (CTRL)", () => {
    const change = { repetitionPenalty: 2, seenIds: Uint32Array.of(0, 1), seenCounts: Uint32Array.of(0, 3) };
    expect(adjusted(0, change)).toBeCloseTo(1, 4);
    expect(adjusted(1, change)).toBeCloseTo(-2, 4);
    expect(adjusted(2, { ...change, seenIds: Uint32Array.of(1), seenCounts: Uint32Array.of(1) })).toBeCloseTo(0.5, 4);
  });

  it("frequency counts and presence marks generated ids only (OpenAI)", () => {
    const seen = { seenIds: Uint32Array.of(0, 2), seenCounts: Uint32Array.of(3, 0) };
    const change = { ...seen, frequencyPenalty: 0.25, presencePenalty: 0.5 };
    expect(adjusted(0, change)).toBeCloseTo(2 - 3 * 0.25 - 0.5, 4);
    expect(adjusted(2, change)).toBeCloseTo(0.5, 4);
  });

  it("bias comes before the repetition penalty, which comes before the others", () => {
    const change = {
      ...{ seenIds: Uint32Array.of(0), seenCounts: Uint32Array.of(2), repetitionPenalty: 2, frequencyPenalty: 0.1 },
      ...{ biasIds: Uint32Array.of(0), biasValues: Float32Array.of(4) },
    };
    // (2 + 4) / 2 - 0.2 = 2.8 is below token 3's 3; without the penalties it would be 6.
    expect(winner(change)).toBe(3);
    expect(winner({ ...change, frequencyPenalty: -0.2 })).toBe(0);
  });

  it("negative penalties reward, bias of -100 bans, ids beyond the vocabulary are ignored", () => {
    expect(winner({ frequencyPenalty: -2, seenIds: Uint32Array.of(2), seenCounts: Uint32Array.of(2) })).toBe(2);
    expect(winner({ biasIds: Uint32Array.of(3), biasValues: Float32Array.of(-100) })).toBe(0);
    expect(winner({ biasIds: Uint32Array.of(99), biasValues: Float32Array.of(100) })).toBe(3);
  });
});

describe("logprobs", () => {
  it("are those of the raw logits, best first, ties to the lower id", () => {
    const logits = Float32Array.of(1, 2, 2, -3);
    const expected = softmax(logits).map(Math.log);
    const change = { biasIds: Uint32Array.of(3), biasValues: Float32Array.of(50), temperature: 0.2 };
    const sample = sampleRow(logits, row({ ...change, topLogprobs: 3 }));
    expect(sample.tokenId).toBe(3);
    expect(sample.logprob).toBeCloseTo(expected[3]!, 6);
    expect(sample.top?.map(([id]) => id)).toEqual([1, 2, 0]);
    sample.top?.forEach(([id, logprob]) => {
      expect(logprob).toBeCloseTo(expected[id]!, 6);
    });
    expect(sampleRow(logits, row({ topLogprobs: 0 }))).toMatchObject({ tokenId: 1, top: [] });
    expect(sampleRow(logits, row({}))).toEqual({ tokenId: 1 });
    expect(sampleRow(logits, row({ topLogprobs: 9 })).top?.length).toBe(4);
  });
});
