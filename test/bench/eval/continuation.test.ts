/** Long generation against loops that write both texts for themselves, one token at a time. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  type Continuation,
  continuationStarts,
  measureContinuation,
  nextToken,
} from "../../../bench/eval/continuation.ts";
import { continuationFigures } from "../../../bench/eval/continuation-figures.ts";
import { type EvalSubject, openSubject } from "../../../bench/eval/subject.ts";
import { seededRandom } from "../../../bench/random.ts";
import { readCases } from "../../../bench/recall/cases.ts";
import type { SelectionPlan } from "../../../kernels/contract.ts";
import { policyNamed } from "../../../models/selection/registry.ts";
import { divergence } from "../../models/measures.ts";

const START = 1_024;
const TOKENS = 24;
const signal = new AbortController().signal;
const candidates = [
  ...[128, 256, 512, 2_048].map((budgetTokens) => ({ name: "streaming" as const, budgetTokens })),
  { name: "quest" as const, budgetTokens: 512 },
].map((each) => ({ ...each, plan: policyNamed(each.name).plan(each.budgetTokens) }));

let subject: EvalSubject;
let ids: number[];
let measured: Continuation;

beforeAll(async () => {
  const settings = { device: "wasm", threads: 1, weights: "int8", kv: "int8" } as const;
  subject = await openSubject({ ...settings, model: "weights/house", contexts: [START], tokens: TOKENS }, ["min-max"]);
  const { sentences } = await readCases("weights/house/dev-documents.jsonl.gz");
  ids = subject.tokenizer.encode(sentences.slice(900, 1_000).join("")).slice(0, START + 1);
  await subject.sequence.read(ids.slice(0, START), signal);
  measured = await measureContinuation(subject, {
    firstId: ids[START] as number,
    tokenCount: TOKENS,
    candidates,
    signal,
  });
}, 60_000);
afterAll(() => subject?.device.close());

/** As `nextToken`, spelled out: what was said counts less. */
function greedy(logits: ArrayLike<number>, said: readonly number[]): number {
  const values = Array.from(logits, (logit, id) => {
    if (!said.includes(id)) return logit;
    return logit < 0 ? logit * 1.3 : logit / 1.3;
  });
  return values.indexOf(Math.max(...values));
}

/** The text that a plan makes by itself, or where `given` is, the tokens it would say behind each of these; and the logits. */
async function write(plan: SelectionPlan, given?: readonly number[]) {
  const { sequence, capture } = subject;
  sequence.rewind(START);
  const said: number[] = [];
  const logits: Float32Array[] = [];
  for (let step = 0; step < TOKENS; step++) {
    const behind = (given ?? said).slice(0, step);
    await sequence.advance(behind.at(-1) ?? (ids[START] as number), plan);
    logits.push(capture.logits);
    said.push(greedy(capture.logits, behind));
  }
  sequence.rewind(START);
  return { said, logits };
}

describe("long generation", () => {
  it("finds the step at which a selection's own text parts with dense's, and how the two agree along the latter", async () => {
    const dense = await write({ kind: "dense" });
    const seen = new Set<number | undefined>();
    for (const [index, { plan, name, budgetTokens }] of candidates.entries()) {
      const alone = await write(plan);
      const beside = await write(plan, dense.said);
      const differs = alone.said.findIndex((id, step) => id !== dense.said[step]);
      const agrees = beside.said.filter((id, step) => id === dense.said[step]).length;
      const result = measured.results[index];
      expect(result).toMatchObject({ name, budgetTokens, agreement: agrees / TOKENS });
      expect(result?.divergedAt).toBe(differs < 0 ? undefined : differs);
      const nats = dense.logits.map((logits, step) => divergence(logits, beside.logits[step] as Float32Array));
      expect(result?.divergence).toBeCloseTo(nats.reduce((a, b) => a + b, 0) / TOKENS, 6);
      seen.add(result?.divergedAt);
    }
    // Not all the same: a window of 128 tokens is far from dense, and where the budget holds everything nothing differs.
    expect(seen.size).toBeGreaterThan(1);
    expect(measured.results[0]?.agreement).toBeLessThan(1);
    expect(measured.results[3]).toMatchObject({ agreement: 1, divergence: 0, bytes: measured.denseBytes });
    expect(measured.results[0]?.bytes).toBeLessThan(measured.denseBytes / 5);
    const runs = dense.said.slice(3).map((_, at) => dense.said.slice(at, at + 4).join());
    expect(measured.freshShare).toBeCloseTo(runs.filter((run, at) => runs.indexOf(run) === at).length / runs.length, 9);
    expect(subject.sequence.length).toBe(START);
  });

  it("has baselines that read what their budget buys: the best pages come nearer to dense than any ones, all pages are dense", async () => {
    const { device, capture, runner, sequence } = subject;
    const of = (plan: "oracle" | "random", budgetTokens: number) => ({ name: plan, plan, budgetTokens });
    const probe = { device, capture, pool: runner.pool, headCount: runner.config.headCount };
    const baselines = [of("oracle", 256), of("random", 256), of("oracle", 2_048)];
    const { results, denseBytes } = await measureContinuation(subject, {
      ...{ firstId: ids[START] as number, tokenCount: TOKENS, candidates: candidates.slice(0, 1), signal },
      baselines: { candidates: baselines, probe, random: seededRandom(7) },
    });
    const [oracle, random, all, streaming] = results;
    expect(streaming).toEqual(measured.results[0]);
    expect(all).toMatchObject({ name: "oracle", agreement: 1, divergence: 0 });
    for (const each of [oracle, random]) {
      // 16 of 65 pages, at most three more of the row's own block; two rows of 24, which begin a page, see everything.
      expect((each?.bytes ?? 0) / denseBytes).toBeGreaterThan((22 * 16) / 65 / 24);
      expect((each?.bytes ?? 0) / denseBytes).toBeLessThan((22 * (19 / 65) + 2) / 24);
    }
    expect(oracle?.divergence).toBeLessThan(0.5 * (random?.divergence ?? 0));
    expect(sequence.length).toBe(START);
    expect(capture.isOn).toBe(false);
  });

  it("says less often what was said before, and the first of equals", () => {
    expect(nextToken(Float32Array.of(1, 2, 2, -1), [])).toBe(1);
    expect(nextToken(Float32Array.of(1, 2, 1.9, -1), [1])).toBe(2);
    expect(nextToken(Float32Array.of(-2, -1, -1.2, -3), [1])).toBe(2);
    expect(nextToken(Float32Array.of(1, 2, 1.5, -1), [1])).toBe(1);
  });

  it("begins at blocks, and never before the text", () => {
    expect(continuationStarts(8_192, 3)).toEqual([8_192, 8_128, 8_064]);
    expect(continuationStarts(128, 9)).toEqual([128, 64]);
    expect(continuationStarts(8_192, 99).length).toBe(16);
  });
});

describe("figures of long generations", () => {
  it("count a text that never differs as its whole length, and are as sure as texts differ", () => {
    const one = (
      document: number,
      divergedAt: number | undefined,
    ): Parameters<typeof continuationFigures>[0][number] => ({
      ...{ document, contextTokens: 8_192, tokenCount: 100, freshShare: 0.5, denseBytes: 1_000 },
      results: [
        {
          ...{ name: "quest", budgetTokens: 512, bytes: 125, agreement: 0.9, divergence: 0.25 },
          ...(divergedAt === undefined ? {} : { divergedAt }),
        },
      ],
    });
    const [figure] = continuationFigures([one(0, 10), one(0, 30), one(1, undefined), one(1, 40)]);
    expect(figure).toMatchObject({ cases: 4, divergedAtMedian: 30, bytesShare: 0.125, freshShare: 0.5 });
    // Texts: means 20 and 70, so 45; shares 0 and 1/2. Student's t(1) is 12.706, the standard error 25.
    expect(figure?.divergedAt).toMatchObject({ mean: 45, count: 2 });
    expect(figure?.divergedAt.high).toBeCloseTo(45 + 12.706 * 25, 6);
    expect(figure?.same).toMatchObject({ mean: 0.25, low: 0, high: 1 });
    expect(continuationFigures([one(0, undefined), one(0, 5), one(0, undefined)])[0]?.divergedAtMedian).toBeUndefined();
  });
});
