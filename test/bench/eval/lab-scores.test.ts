/** `--ablation scores`: what scorers and bases are, against naive twins, and the whole of it on the house model. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { codebookOf, nearest } from "../../../bench/eval/lab/codebook.ts";
import {
  type Basis,
  channelBasis,
  codebooks,
  evenSteps,
  fixedSteps,
  jointBasis,
  keyScorer,
  principalBasis,
  rotatedBasis,
  signs,
} from "../../../bench/eval/lab/key-scorers.ts";
import type { RowView } from "../../../bench/eval/lab/rule.ts";
import type { LayoutFigures, PanelFigures } from "../../../bench/eval/lab/score-ablation.ts";
import { type HeadRows, panelOf } from "../../../bench/eval/lab/score-panel.ts";
import { scoreRule } from "../../../bench/eval/lab/score-rule.ts";
import { candidatesAt, denseBytes, rankUnits, type Scorer, takeWithin } from "../../../bench/eval/lab/scorer.ts";
import { keysThemselves, scorersFor } from "../../../bench/eval/lab/scorer-catalogue.ts";
import { summaryScorer } from "../../../bench/eval/lab/summary-scorers.ts";
import { powerOf, product, secondMoment, spectrumOf } from "../../../bench/eval/lab/symmetric.ts";
import { seededRandom } from "../../../bench/random.ts";
import { int8Code, int8Scale } from "../../../kernels/block-codec.ts";
import { summarizeKeys } from "../../../kernels/summary-codec.ts";
import { withTempFolder } from "../../cli/run-quire.ts";
import { runBench } from "../run-bench.ts";

const HEAD_DIM = 16;
const TOKENS = 640;
/** Row 600 of 640: a sink page, pages 1 to 33 to choose from, recent ones from token 544 on. */
const POSITION = 600;

/** Keys around a mean, some channels wider than others; queries likewise, with others. */
function vectorsOf(count: number, stream: number, width = HEAD_DIM): Float32Array {
  const random = seededRandom(7, stream);
  return Float32Array.from({ length: count * width }, (_, at) => {
    const channel = at % width;
    const noise = random() + random() + random() - 1.5;
    return noise * (1 + ((channel * (stream + 3)) % 5)) + (stream === 0 ? channel - 4 : 0);
  });
}
const keys = vectorsOf(TOKENS, 0);
const values = vectorsOf(TOKENS, 1);
const queries = vectorsOf(40, 2);
const sample = { keys, queries };
const queryAt = (index: number) => queries.subarray(index * HEAD_DIM, (index + 1) * HEAD_DIM);
const dotOf = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a).reduce((sum, value, at) => sum + value * (b[at] as number), 0);
const keyAt = (token: number) => keys.subarray(token * HEAD_DIM, (token + 1) * HEAD_DIM);
const run = (count: number) => Array.from({ length: count }, (_, index) => index);
const logitOf = (query: Float32Array, token: number) => dotOf(query, keyAt(token)) / 4;

describe("symmetric matrices", () => {
  const moment = secondMoment(keys, HEAD_DIM, new Float64Array(HEAD_DIM));

  it("have a spectrum: orthogonal directions, stretched by their values, descending", () => {
    const { values: stretch, vectors } = spectrumOf(moment, HEAD_DIM);
    for (let i = 0; i < HEAD_DIM; i++) {
      const own = vectors.subarray(i * HEAD_DIM, (i + 1) * HEAD_DIM);
      if (i > 0) expect(stretch[i]).toBeLessThanOrEqual(stretch[i - 1] as number);
      for (let j = 0; j < HEAD_DIM; j++) {
        const other = vectors.subarray(j * HEAD_DIM, (j + 1) * HEAD_DIM);
        expect(dotOf(own, other)).toBeCloseTo(i === j ? 1 : 0, 10);
        const row = moment.subarray(j * HEAD_DIM, (j + 1) * HEAD_DIM);
        expect(dotOf(row, own)).toBeCloseTo((stretch[i] as number) * (own[j] as number), 8);
      }
    }
  });

  it("have powers: a root squared is the matrix, and its inverse undoes it", () => {
    const root = powerOf(moment, HEAD_DIM, 0.5);
    const unit = product(root, powerOf(moment, HEAD_DIM, -0.5), HEAD_DIM);
    for (const [at, value] of product(root, root, HEAD_DIM).entries())
      expect(value).toBeCloseTo(moment[at] as number, 8);
    for (const [at, value] of unit.entries()) expect(value).toBeCloseTo(at % (HEAD_DIM + 1) === 0 ? 1 : 0, 8);
  });
});

describe("bases", () => {
  /** `q.k` less that of the centre, through a basis. */
  function through({ centre, ofKeys, ofQueries, width }: Basis, query: Float32Array, key: Float32Array): number {
    const less = key.map((value, at) => value - (centre[at] as number));
    const rowOf = (matrix: Float64Array, row: number) => matrix.subarray(row * HEAD_DIM, (row + 1) * HEAD_DIM);
    let sum = 0;
    for (let row = 0; row < width; row++) sum += dotOf(rowOf(ofKeys, row), less) * dotOf(rowOf(ofQueries, row), query);
    return sum;
  }
  const errorOf = (basis: Basis): number => {
    let squares = 0;
    for (let index = 0; index < 40; index++) {
      for (let token = 0; token < 64; token++) {
        const exact = dotOf(queryAt(index), keyAt(token)) - dotOf(queryAt(index), basis.centre);
        squares += (through(basis, queryAt(index), keyAt(token)) - exact) ** 2;
      }
    }
    return squares;
  };

  it("of all directions change no dot product", () => {
    for (const make of [channelBasis, principalBasis, jointBasis]) {
      expect(errorOf(make(sample, HEAD_DIM, HEAD_DIM)), make.name).toBeLessThan(1e-4);
    }
    expect(errorOf(rotatedBasis(sample, HEAD_DIM, 3))).toBeLessThan(1e-4);
  });

  it("of few directions: the joint one loses least, for it knows the queries and is not bound to channels", () => {
    const joint = errorOf(jointBasis(sample, HEAD_DIM, 6));
    expect(joint).toBeLessThan(errorOf(principalBasis(sample, HEAD_DIM, 6)));
    expect(joint).toBeLessThan(errorOf(channelBasis(sample, HEAD_DIM, 6)));
  });

  it("of channels takes those in which both are large", () => {
    const { ofKeys } = channelBasis(
      { keys: Float32Array.of(1, 0, 9, -1, 0, -9), queries: Float32Array.of(5, 9, 1) },
      3,
      2,
    );
    // |q_i| |k_i - mean|: 5, 0, 9.
    expect([...ofKeys]).toEqual([0, 0, 1, 1, 0, 0]);
  });
});

describe("codes", () => {
  it("of even steps err by half a step of their block at most", () => {
    const coded = keys.slice();
    evenSteps(4)(coded, HEAD_DIM);
    for (let channel = 0; channel < HEAD_DIM; channel++) {
      for (let block = 0; block < TOKENS / 64; block++) {
        const own = Array.from({ length: 64 }, (_, token) => (block * 64 + token) * HEAD_DIM + channel);
        const column = own.map((at) => keys[at] as number);
        const step = (Math.max(...column) - Math.min(...column)) / 15;
        for (const at of own) expect(Math.abs((coded[at] as number) - (keys[at] as number))).toBeLessThan(step * 0.501);
        expect(new Set(own.map((at) => coded[at])).size).toBeLessThanOrEqual(16);
      }
    }
  });

  it("of fixed steps are the same for every block: four values a coordinate at two bits", () => {
    const basis = jointBasis(sample, HEAD_DIM, 4);
    const coded = vectorsOf(TOKENS, 5, 4);
    const first = coded[0] as number;
    fixedSteps(2, basis, sample, HEAD_DIM)(coded, 4);
    for (let at = 0; at < 4; at++) {
      expect(new Set(coded.filter((_, index) => index % 4 === at)).size).toBeLessThanOrEqual(4);
    }
    expect(Math.sign(coded[0] as number)).toBe(Math.sign(first));
  });

  it("of signs keep signs, and the dot product with the vector itself to the 8 bits of the length", () => {
    const coded = keys.slice();
    signs()(coded, HEAD_DIM);
    for (let token = 0; token < TOKENS; token++) {
      const own = coded.subarray(token * HEAD_DIM, (token + 1) * HEAD_DIM);
      expect(new Set(own.map(Math.abs)).size).toBe(1);
      expect(dotOf(own, keyAt(token)) / dotOf(keyAt(token), keyAt(token))).toBeCloseTo(1, 1);
      for (const [at, value] of own.entries()) expect(value < 0).toBe((keyAt(token)[at] as number) < 0);
    }
  });

  it("of codebooks: centroids are found where vectors lie, and every vector gets its next one", () => {
    const random = seededRandom(3);
    const rows = Float32Array.from({ length: 400 }, (_, at) => (Math.floor(at / 2) % 4) * 10 + random());
    const book = codebookOf(rows, 2, 4, seededRandom(5));
    for (let row = 0; row < 200; row++) {
      const code = nearest(rows, row * 2, book, 2);
      const distances = [0, 1, 2, 3].map((other) =>
        Math.hypot(...[0, 1].map((at) => book[other * 2 + at]! - rows[row * 2 + at]!)),
      );
      expect(distances[code]).toBe(Math.min(...distances));
    }
  });

  it("of codebooks of all the sample's vectors are exact", () => {
    const few = { keys: keys.subarray(0, 8 * HEAD_DIM), queries };
    const basis = jointBasis(few, HEAD_DIM, 4);
    // As many centroids as vectors, drawn with repetition: those drawn are exact.
    const code = codebooks({ parts: 2, size: 64, basis, sample: few, headDim: HEAD_DIM, seed: 1 });
    const scorer = keyScorer({ name: "", unitTokens: 1, bytesPerToken: 0, basis, code });
    const plain = keyScorer({ name: "", unitTokens: 1, bytesPerToken: 0, basis, code: () => undefined });
    const [coded, exact] = [scorer, plain].map((each) => each.index(few.keys, HEAD_DIM)(queryAt(0)));
    for (const [token, score] of (coded as Float64Array).entries())
      expect(score).toBeCloseTo(exact?.[token] as number, 4);
  });
});

describe("scores of pages", () => {
  const exact = (query: Float32Array) => Array.from({ length: TOKENS }, (_, token) => logitOf(query, token));

  it("are logarithms of sums of exponentials of their tokens' scores", () => {
    const scores = keysThemselves("", 16).index(keys, HEAD_DIM)(queryAt(3));
    for (const [page, score] of scores.entries()) {
      const own = exact(queryAt(3)).slice(page * 16, page * 16 + 16);
      expect(score).toBeCloseTo(Math.log(own.reduce((sum, each) => sum + Math.exp(each), 0)), 8);
    }
  });

  it("are the best token's, where that is asked for", () => {
    const basis = jointBasis(sample, HEAD_DIM, HEAD_DIM);
    const options = { name: "", bytesPerToken: 0, basis, code: () => undefined, worth: "best" } as const;
    const [tokens, pages] = [1, 16].map((unitTokens) =>
      keyScorer({ ...options, unitTokens }).index(keys, HEAD_DIM)(queryAt(3)),
    ) as [Float64Array, Float64Array];
    expect([...pages]).toEqual(run(40).map((page) => Math.max(...tokens.subarray(page * 16, page * 16 + 16))));
    const offset = dotOf(queryAt(3), basis.centre) / 4;
    for (const [token, score] of tokens.entries()) expect(score).toBeCloseTo(logitOf(queryAt(3), token) - offset, 3);
  });

  it("by extremes are a bound, at 4 bits and of parts as well, and close to the device's summaries", () => {
    const options = { name: "", spread: "extremes", bits: 8, radiusWeight: 1, combine: "max" } as const;
    for (const [partTokens, bits] of [
      [16, 8],
      [8, 4],
    ] as const) {
      const scores = summaryScorer({ ...options, partTokens, bits }, HEAD_DIM).index(keys, HEAD_DIM)(queryAt(1));
      for (const [page, score] of scores.entries()) {
        expect(score).toBeGreaterThan(Math.max(...exact(queryAt(1)).slice(page * 16, page * 16 + 16)) - 1e-4);
      }
    }
    const scores = summaryScorer({ ...options, partTokens: 16 }, HEAD_DIM).index(keys, HEAD_DIM)(queryAt(1));
    const block = summarizeKeys("min-max", keys.slice(0, 64 * HEAD_DIM), HEAD_DIM);
    const codes = new Int8Array(block.buffer, 0, 8 * HEAD_DIM);
    const scales = new Float32Array(block.buffer, 8 * HEAD_DIM);
    for (let page = 0; page < 4; page++) {
      const vector = (entry: number) =>
        codes.subarray((page * 2 + entry) * HEAD_DIM, (page * 2 + entry + 1) * HEAD_DIM).map((code) => code);
      const at = (entry: number, query: Float32Array) =>
        (scales[page * 2 + entry] as number) * dotOf(query, vector(entry));
      const device = at(0, queryAt(1)) + at(1, queryAt(1).map(Math.abs));
      expect(scores[page]).toBeCloseTo(device / 4, 4);
    }
    expect(int8Code(1, int8Scale(2))).toBe(64);
  });

  it("by means know what lies in the middle", () => {
    const options = {
      name: "",
      spread: "deviation",
      bits: 8,
      radiusWeight: 0,
      combine: "max",
      partTokens: 16,
    } as const;
    const scorer = summaryScorer(options, HEAD_DIM);
    expect(scorer.bytesPerToken).toBe((HEAD_DIM + 4) / 16);
    const scores = scorer.index(keys, HEAD_DIM)(queryAt(2));
    for (const [page, score] of scores.entries()) {
      const own = exact(queryAt(2)).slice(page * 16, page * 16 + 16);
      expect(score).toBeCloseTo(own.reduce((a, b) => a + b, 0) / own.length, 0);
    }
  });
});

describe("a choice", () => {
  const bare: Scorer = { ...keysThemselves("bare", 16), bytesPerToken: 0 };
  const candidates = candidatesAt(POSITION);

  it("has forced tokens, as pages of the device have them", () => {
    expect(candidates).toEqual({ first: 16, end: 544, tokenCount: 601 });
    // The fourth page of its block: the block is forced, and with it four pages.
    expect(candidatesAt(639)).toEqual({ first: 16, end: 576, tokenCount: 640 });
    expect(candidatesAt(20)).toEqual({ first: 0, end: 0, tokenCount: 21 });
  });

  /** What a device would count, token by token. */
  function bytesOf(attended: Uint8Array, keysRead: Uint8Array = attended): number {
    const blocks = new Set<number>();
    let bytes = 0;
    for (let token = 0; token < attended.length; token++) {
      if (keysRead[token] === 1) {
        bytes += HEAD_DIM;
        blocks.add(Math.floor(token / 64));
      }
      if (attended[token] === 1) bytes += HEAD_DIM + 4;
    }
    return bytes + blocks.size * HEAD_DIM * 4;
  }

  it("takes the best units that its bytes pay for, and one more would be too much", () => {
    const random = seededRandom(11);
    for (const unitTokens of [16, 1]) {
      for (const share of [0.3, 0.45, 0.62]) {
        const scorer = { ...bare, unitTokens, bytesPerToken: 2 };
        const units = Array.from({ length: 528 / unitTokens }, (_, at) => 16 / unitTokens + at);
        const ranking = units
          .map((unit) => ({ unit, at: random() }))
          .sort((a, b) => a.at - b.at)
          .map(({ unit }) => unit);
        const attended = takeWithin(share, scorer, candidates, ranking, HEAD_DIM);
        const limit = share * denseBytes(601, HEAD_DIM);
        expect(bytesOf(attended) + 2 * 601).toBeLessThanOrEqual(limit);
        const taken = ranking.findIndex((unit) => attended[unit * unitTokens] === 0);
        const isPrefix = ranking.slice(taken).every((unit) => attended[unit * unitTokens] === 0);
        expect(isPrefix).toBe(true);
        attended.fill(1, (ranking[taken] as number) * unitTokens, ((ranking[taken] as number) + 1) * unitTokens);
        expect(bytesOf(attended) + 2 * 601).toBeGreaterThan(limit);
      }
    }
  });

  it("takes everything for all of dense's bytes", () => {
    const attended = takeWithin(
      1,
      bare,
      candidates,
      Array.from({ length: 33 }, (_, at) => at + 1),
      HEAD_DIM,
    );
    expect(attended.every((each) => each === 1)).toBe(true);
    expect(bytesOf(attended)).toBe(denseBytes(601, HEAD_DIM));
  });

  it("of units that were weighed pays for all keys it read, and for the values it takes", () => {
    const weighed = { ...bare, exactShare: 0.5 };
    const ranking = [4, 9, 20, 28];
    const read = new Uint8Array(601).fill(1, 0, 16).fill(1, 544);
    for (const unit of ranking) read.fill(1, unit * 16, unit * 16 + 16);
    const attended = takeWithin(0.22, weighed, candidates, ranking, HEAD_DIM);
    const limit = 0.22 * denseBytes(601, HEAD_DIM);
    const taken = ranking.filter((unit) => attended[unit * 16] === 1);
    expect(taken).toEqual([4, 9, 20].slice(0, taken.length));
    expect(taken.length).toBeGreaterThan(0);
    expect(bytesOf(attended, read)).toBeLessThanOrEqual(limit);
    const more = attended
      .slice()
      .fill(1, (ranking[taken.length] as number) * 16, (ranking[taken.length] as number) * 16 + 16);
    expect(bytesOf(more, read)).toBeGreaterThan(limit);
  });

  it("ranks by the largest score or by added softmaxes, and weighs again what was read", () => {
    const perQuery = [Float64Array.of(0, 5, 1, 4, 0), Float64Array.of(9, 0, 6, 3.9, 0)];
    const of = { first: 1, end: 5, tokenCount: 6 };
    const none = () => [];
    expect(rankUnits({ ...bare, unitTokens: 1, combine: "max" }, perQuery, of, none)).toEqual([2, 1, 3, 4]);
    const added = [Float64Array.of(0, 2, 0, 1.9, 0), Float64Array.of(0, 0, 2, 1.9, 0)];
    expect(rankUnits({ ...bare, unitTokens: 1 }, added, of, none)).toEqual([3, 1, 2, 4]);
    const exact = () => [Float64Array.of(0, 1, 9, 2, 5)];
    expect(rankUnits({ ...bare, unitTokens: 1, exactShare: 0.5 }, added, of, exact)).toEqual([3, 1]);
  });
});

describe("the panel", () => {
  const rows = [POSITION, 639].map((position, at) => ({
    position,
    isAnswer: at === 1,
    queries: [queryAt(at), queryAt(at + 2)],
  }));
  const head: HeadRows = { headDim: HEAD_DIM, keys, values, rows };

  it("is exact attention over what a scorer takes, worked out token by token", () => {
    const [scorer] = scorersFor(sample, HEAD_DIM).filter(({ name }) => name === "quest+radius(0.5)+combine(sum)") as [
      Scorer,
    ];
    const measured = panelOf(head, [scorer], [0.4, 1.2]);
    expect(measured.map(({ isAnswer, share }) => [isAnswer, share])).toEqual([
      [false, 0.4],
      [false, 1.2],
      [true, 0.4],
      [true, 1.2],
    ]);
    for (const { isAnswer, share, mass, outputError, hasBest } of measured) {
      const row = rows[isAnswer ? 1 : 0]!;
      const candidates = candidatesAt(row.position);
      const score = scorer.index(keys, HEAD_DIM);
      const ranking = rankUnits(scorer, row.queries.map(score), candidates, () => []);
      const attended = takeWithin(share, scorer, candidates, ranking, HEAD_DIM);
      const each = row.queries.map((query) => {
        const weights = Array.from({ length: row.position + 1 }, (_, token) => Math.exp(logitOf(query, token)));
        const over = (tokens: number[]) => {
          const total = tokens.reduce((sum, token) => sum + weights[token]!, 0);
          const output = Array.from({ length: HEAD_DIM }, (_, at) =>
            tokens.reduce((sum, token) => sum + (weights[token]! / total) * values[token * HEAD_DIM + at]!, 0),
          );
          return { total, output };
        };
        const full = over([...weights.keys()]);
        const own = over([...weights.keys()].filter((token) => attended[token] === 1));
        const error =
          Math.hypot(...own.output.map((value, at) => value - full.output[at]!)) / Math.hypot(...full.output);
        const pages = Array.from(
          { length: (candidates.end - candidates.first) / 16 },
          (_, page) =>
            weights.slice(candidates.first + page * 16, candidates.first + page * 16 + 16).reduce((a, b) => a + b, 0) /
            full.total,
        );
        return { mass: own.total / full.total, error, pages };
      });
      expect(mass).toBeCloseTo((each[0]!.mass + each[1]!.mass) / 2, 9);
      expect(outputError).toBeCloseTo((each[0]!.error + each[1]!.error) / 2, 6);
      const both = each[0]!.pages.map((page, at) => page + each[1]!.pages[at]!);
      const best = both.indexOf(Math.max(...both));
      expect(hasBest).toBe(attended[candidates.first + best * 16] === 1);
      if (share > 1) expect([Math.round(mass * 1e9), hasBest]).toEqual([1e9, true]);
    }
  });

  it("has no scorer that keeps more by tokens than keys themselves do", () => {
    const scorers = scorersFor(sample, HEAD_DIM);
    const measured = panelOf(head, scorers, [0.4]);
    const massOf = (name: string) =>
      measured.filter(({ scorer }) => scorer === name).reduce((sum, { mass }) => sum + mass, 0);
    const bound = massOf("keys themselves, for nothing: tokens");
    for (const { name, unitTokens } of scorers)
      if (unitTokens === 1) expect(massOf(name), name).toBeLessThanOrEqual(bound + 1e-9);
    expect(new Set(scorers.map(({ name }) => name)).size).toBe(scorers.length);
  });
});

describe("a rule of scorers", () => {
  it("lets each KV head do what it is told, and tells the shares", () => {
    const blocks = Array.from({ length: 10 }, (_, block) => {
      const part = (of: Float32Array) => of.subarray(block * 64 * HEAD_DIM, (block + 1) * 64 * HEAD_DIM);
      return { keys: part(keys), values: part(values) };
    });
    const row: RowView = {
      ...{ layer: 1, position: POSITION, headCount: 6, kvHeadCount: 3, headDim: HEAD_DIM },
      ...{ plainQuery: new Float32Array(0), query: queries.subarray(0, 6 * HEAD_DIM), scores: [] },
      blocks: () => blocks,
      digest: () => {
        throw new Error("not asked for");
      },
    };
    const scorer = keysThemselves("", 16);
    const shares: number[][] = [];
    const roles = ["everything", "streams", { scorer, share: 0.4 }] as const;
    const rule = scoreRule(
      "",
      (layer, kvHead) => (layer === 1 ? roles[kvHead]! : "streams"),
      (share, layer, kvHead) => shares.push([share, layer, kvHead]),
    );
    const attended = rule.start()(row)?.attended ?? [];
    expect(attended[0]).toBeUndefined();
    expect([...(attended[1] ?? [])].filter((each) => each === 1)).toHaveLength(16 + 57);
    const score = scorer.index(keys, HEAD_DIM);
    const candidates = candidatesAt(POSITION);
    const ranking = rankUnits(scorer, [queryAt(4), queryAt(5)].map(score), candidates, () => []);
    expect(attended[2]).toEqual(takeWithin(0.4, scorer, candidates, ranking, HEAD_DIM));
    expect(shares[0]).toEqual([1, 1, 0]);
    expect(shares[1]?.[0]).toBeLessThan(0.2);
    expect(shares[2]).toEqual([0.4, 1, 2]);
    expect(rule.start()({ ...row, position: 15 })).toBeUndefined();
  });
});

describe("npm run eval -- --ablation scores", () => {
  it("fits scorers to one question and judges them on another", async () => {
    await withTempFolder(async (folder) => {
      const flags = ["--ablation", "scores", "--contexts", "512", "--cases", "1", "--kinds", "single"];
      const { code, out } = await runBench(["eval", ...flags, "--threads", "1", "--out", folder]);
      expect(code).toBe(0);
      expect(out).toContain("scores: layer 1, KV head 0, answer rows, quest (8.5 B a token): ");
      const { ablations } = JSON.parse(await readFile(join(folder, "ablations.json"), "utf8"));
      const panel = (ablations as (PanelFigures | LayoutFigures)[]).filter((each) => "scorer" in each);
      const layouts = (ablations as (PanelFigures | LayoutFigures)[]).filter((each) => "divergence" in each);
      for (const { scorer, share, mass, massLeast, hasBest } of panel) {
        expect(massLeast, scorer).toBeGreaterThanOrEqual(0);
        expect(massLeast, scorer).toBeLessThanOrEqual(mass);
        expect(mass, scorer).toBeLessThanOrEqual(1 + 1e-9);
        if (scorer.startsWith("keys themselves") && share === 0.5) expect(hasBest, scorer).toBe(1);
      }
      expect(new Set(panel.map(({ layer, kvHead }) => `${layer}/${kvHead}`)).size).toBe(4);
      // The model answers so little densely, and the rules' forward pass is the model's.
      for (const { rule, cases, denseRight, divergence, share } of layouts) {
        expect([cases, denseRight]).toEqual([1, 1]);
        expect(divergence.mean).toBeGreaterThanOrEqual(0);
        expect(share).toBeLessThan(1);
        // Seven heads see everything, whatever rows their layers had.
        if (rule.startsWith("quest, 20.0 % of the copying head")) expect(share).toBeCloseTo(7.2 / 8, 9);
      }
    });
  }, 180_000);

  it("takes questions of one turn only", async () => {
    await withTempFolder(async (folder) => {
      const flags = ["--ablation", "scores", "--contexts", "512", "--cases", "1", "--kinds", "second-turn"];
      const { code, err } = await runBench(["eval", ...flags, "--threads", "1", "--out", folder]);
      expect(code).toBe(1);
      expect(err).toContain("questions of one turn");
    });
  }, 60_000);
});
