/** The prompt router's training and judging, each against figures worked out by hand or by onnxruntime; and the files that are committed. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { answersLine, type PromptAnswers, readAnswers } from "../../../bench/router/answers.ts";
import { ROUTER_CHOICES } from "../../../bench/router/choices.ts";
import { ANSWERS_FILE } from "../../../bench/router/dataset.ts";
import {
  bootstrap,
  choicesAt,
  mixtureCost,
  type Outcome,
  outcomeOf,
  priceFor,
  scoreOf,
} from "../../../bench/router/judge.ts";
import { merged, predict, type TrainingOptions, train } from "../../../bench/router/network.ts";
import { onnxModel } from "../../../bench/router/onnx-model.ts";
import { trainVariants } from "../../../bench/router/phrasings.ts";
import { messagesOf, PROMPT_LENGTHS, readCaseFiles, routerPrompts } from "../../../bench/router/prompts.ts";
import { openChances } from "../../../bench/router/router.ts";
import { policyNamed } from "../../../models/selection/registry.ts";
import { bestChoice, expectedBytes } from "../../../workers/prompt-router/decide.ts";
import { FEATURE_COUNT } from "../../../workers/prompt-router/features.ts";
import { withTempFolder } from "../../cli/run-quire.ts";
import { repositoryRoot } from "../../style/source-tree.ts";

const options: TrainingOptions = {
  hidden: 8,
  epochs: 200,
  batch: 4,
  learningRate: 0.02,
  decay: 0,
  dropout: { plain: 0, others: 0 },
  plainInputs: 3,
  seed: 5,
};

/** Neither input alone says anything; the third one is noise. */
const exclusiveOr = [0, 1, 2, 3, 4, 5, 6, 7].map((bits) => ({
  variants: [[bits & 1, (bits >> 1) & 1, bits >> 2]],
  kept: [(bits ^ (bits >> 1)) & 1, 1],
}));

// The first model that onnxruntime opens waits for the compilation of its runtime.
beforeAll(async () => {
  await openChances(onnxModel(train(exclusiveOr, { ...options, epochs: 1 })));
}, 120_000);

describe("the network", () => {
  it("learns what no line separates, and equal seeds give equal weights", () => {
    const network = train(exclusiveOr, options);
    for (const { variants, kept } of exclusiveOr) {
      const [first = 0, second] = predict(network, variants[0] as number[]);
      expect(Math.round(first)).toBe(kept[0]);
      expect(second).toBeGreaterThan(0.9);
    }
    expect(train(exclusiveOr, options)).toEqual(network);
    expect(train(exclusiveOr, { ...options, seed: 6 }).weights1).not.toEqual(network.weights1);
  });

  it("merges networks to the mean of their logits", () => {
    const networks = [1, 2, 3].map((seed) => train(exclusiveOr, { ...options, epochs: 3, seed }));
    const logit = (chance: number): number => Math.log(chance / (1 - chance));
    for (const { variants } of exclusiveOr) {
      const row = variants[0] as number[];
      const together = predict(merged(networks), row);
      for (const output of [0, 1]) {
        const logits = networks.map((network) => logit(predict(network, row)[output] as number));
        expect(logit(together[output] as number)).toBeCloseTo((logits[0]! + logits[1]! + logits[2]!) / 3, 9);
      }
    }
  });

  it("is the same function as an ONNX model", async () => {
    const network = train(exclusiveOr, { ...options, epochs: 5 });
    const run = await openChances(onnxModel(network));
    for (const { variants } of exclusiveOr) {
      const expected = predict(network, variants[0] as number[]);
      const actual = await run(Float32Array.from(variants[0] as number[]));
      expect(actual).toHaveLength(2);
      for (const [at, value] of actual.entries()) expect(value).toBeCloseTo(expected[at] as number, 5);
    }
  });
});

describe("the decision", () => {
  const priced = (bytes: number, bytesPerChar: number) => ({ policy: "quest", budgetTokens: 128, bytes, bytesPerChar });

  it("expects no choice to read more than one that attends to more", () => {
    expect(expectedBytes([priced(100, 1), priced(500, 0), priced(0, 2)], 10)).toEqual([20, 20, 20]);
    expect(expectedBytes([priced(100, 1), priced(500, 0), priced(0, 2)], 1000)).toEqual([500, 500, 2000]);
  });

  it("weighs chances against megabytes; dense is certain", () => {
    const bytes = [1e6, 2e6, 10e6];
    // Worth 0.5 - 0.05, 0.9 - 0.1, 1 - 0.5 at this price.
    expect(bestChoice([0.5, 0.9, 0.1], bytes, 0.05)).toBe(1);
    expect(bestChoice([0.5, 0.9, 0.1], bytes, 0)).toBe(2);
    expect(bestChoice([0.5, 0.9, 0.1], bytes, 1)).toBe(0);
  });
});

describe("judging", () => {
  const outcome = (kept: boolean[], bytesPerToken: number[]): Outcome => ({
    kind: "single",
    lengthTokens: 512,
    kept,
    right: kept,
    bytesPerToken,
  });
  const outcomes = [outcome([true, true], [10, 100]), outcome([false, true], [20, 200])];

  it("keeps an answer that is dense's word for word, or right where dense's is", () => {
    const row = (isSame: boolean, isRight: boolean) => ({ isSame, isRight, bytes: 30, tokens: 3 });
    const prompt = { kind: "single", lengthTokens: 512 };
    expect(outcomeOf(prompt, [row(false, true), row(false, false), row(true, true)]).kept).toEqual([true, false, true]);
    expect(outcomeOf(prompt, [row(false, true), row(true, false), row(true, false)]).kept).toEqual([false, true, true]);
    expect(outcomeOf(prompt, [row(true, true)]).bytesPerToken).toEqual([10]);
  });

  it("counts what was kept and what it cost", () => {
    expect(scoreOf(outcomes, [0, 0])).toEqual({ kept: 0.5, right: 0.5, bytesPerToken: 15 });
    expect(scoreOf(outcomes, [0, 1])).toEqual({ kept: 1, right: 1, bytesPerToken: 105 });
  });

  it("compares with the cheapest mixture of fixed choices", () => {
    const score = (kept: number, bytesPerToken: number) => ({ kept, right: kept, bytesPerToken });
    const fixed = [score(0.5, 100), score(0.6, 400), score(1, 500)];
    // Half of the prompts by the first, half by the last: 0.75 at 300, less than the second alone.
    expect(mixtureCost(fixed, ({ kept }) => kept, 0.75)).toBeCloseTo(300, 9);
    expect(mixtureCost(fixed, ({ kept }) => kept, 0.6)).toBeCloseTo(180, 9);
    expect(mixtureCost(fixed, ({ kept }) => kept, 0.2)).toBe(100);
  });

  it("finds the highest price that keeps enough", () => {
    const forecasts = [
      { chances: [0.9, 0.5], bytes: [1e6, 2e6] },
      { chances: [0.4, 0.5], bytes: [1e6, 2e6] },
    ];
    const price = priceFor(outcomes, forecasts, { value: ({ kept }) => kept, least: 1 });
    // The second prompt is worth a megabyte more at prices below 0.6, the first at prices below 0.1.
    expect(choicesAt(forecasts, price)).toEqual([0, 1]);
    expect(price).toBeGreaterThan(0.55);
    expect(price).toBeLessThan(0.6);
    expect(choicesAt(forecasts, price * 1.1)).toEqual([0, 0]);
  });

  it("draws an interval that holds a mean nine times of ten at least", () => {
    const values = Array.from({ length: 100 }, (_, at) => at % 2);
    const { min, max } = bootstrap(100, (drawn) => drawn.reduce((sum, at) => sum + values[at]!, 0) / 100, {
      draws: 500,
      seed: 1,
    });
    // Binomial: 0.5 give or take 1.96 * 0.05.
    expect(min).toBeGreaterThan(0.36);
    expect(min).toBeLessThan(0.44);
    expect(max).toBeGreaterThan(0.56);
    expect(max).toBeLessThan(0.64);
  });
});

describe("prompts", () => {
  let prompts: ReturnType<typeof routerPrompts>;
  beforeAll(async () => {
    prompts = routerPrompts(await readCaseFiles());
  });
  const NAME = /\b(?:[BDFGKLMNPRSTVZ][aeiou]){1}(?:[bdfgklmnprstvz][aeiou]){2}\b/g;
  const askOf = (prompt: { question: { turns: { ask: string }[] } }) => prompt.question.turns.at(-1)?.ask ?? "";

  it("have names of their own, every kind and length in every part", () => {
    expect(new Set(prompts.map(({ id }) => id)).size).toBe(prompts.length);
    for (const split of ["train", "validation", "test"] as const) {
      const some = prompts.filter((prompt) => prompt.split === split);
      expect(new Set(some.map(({ question }) => question.kind)).size).toBe(split === "test" ? 10 : 11);
      expect([...new Set(some.map(({ lengthTokens }) => lengthTokens))].sort((a, b) => a - b)).toEqual([
        ...PROMPT_LENGTHS,
      ]);
    }
    expect(prompts.filter(({ split }) => split === "test").length).toBeGreaterThanOrEqual(500);
  });

  it("ask in other words in each part", () => {
    const KNOWN = new Set(["continuation", "quote"]);
    const formsOf = (asks: readonly string[]) =>
      new Set(
        asks.map((ask) =>
          ask
            .replaceAll(NAME, "N")
            .replaceAll(/\b(?:code|number|room|price|weight|pin|colour|animal|tree|metal|fruit|tool)\b/g, "A"),
        ),
      );
    const asked = (split: string) =>
      formsOf(prompts.filter((each) => each.split === split && !KNOWN.has(each.question.kind)).map(askOf));
    const [trained, priced, held] = [asked("train"), asked("validation"), asked("test")];
    const varied = formsOf(
      prompts
        .filter(({ split, question }) => split === "train" && !KNOWN.has(question.kind))
        .slice(0, 200)
        .flatMap(({ original }) => trainVariants(original).map((question) => askOf({ question }))),
    );
    for (const forms of [trained, varied]) {
      expect(forms.size).toBeGreaterThan(20);
      expect([...forms].filter((form) => priced.has(form) || held.has(form))).toEqual([]);
    }
    expect([...priced].filter((form) => held.has(form))).toEqual([]);
    expect(held.size).toBeGreaterThan(10);
  });

  it("name what their case names, and end with the question", () => {
    for (const { question, original } of prompts.slice(0, 60)) {
      const names = (turns: { ask: string }[]) => turns.map(({ ask }) => [...ask.matchAll(NAME)].map(([name]) => name));
      if (question.kind !== "quote") expect(names(question.turns)).toEqual(names(original.turns));
      const messages = messagesOf(question, "A book.");
      expect(messages.at(-1)?.content).toContain(askOf({ question }));
      expect(messages).toHaveLength(question.turns.length * 2 - 1);
    }
  });
});

describe("the committed files", () => {
  it("hold measurements of the prompts, as many of them held out as figures are worth", async () => {
    const prompts = new Map(routerPrompts(await readCaseFiles()).map((prompt) => [prompt.id, prompt]));
    const answers = await readAnswers(join(repositoryRoot, ANSWERS_FILE));
    expect(new Set(answers.map(({ id }) => id)).size).toBe(answers.length);
    const isGood = ({ id, answers: each }: PromptAnswers) =>
      prompts.has(id) && each.length === ROUTER_CHOICES.length && each.at(-1)?.isSame === true;
    expect(answers.filter((each) => !isGood(each))).toEqual([]);
    expect(answers.filter(({ id }) => prompts.get(id)?.split === "test").length).toBeGreaterThanOrEqual(500);
  });

  it("are a classifier of the Worker's features for the choices that were measured", async () => {
    const folder = join(repositoryRoot, "workers/prompt-router");
    const settings = JSON.parse(await readFile(join(folder, "classifier.json"), "utf8"));
    expect(
      settings.choices.map(({ policy, budgetTokens }: Record<string, unknown>) => ({ policy, budgetTokens })),
    ).toEqual(ROUTER_CHOICES);
    for (const { policy, budgetTokens } of ROUTER_CHOICES)
      expect(() => policyNamed(policy).plan(budgetTokens)).not.toThrow();
    const run = await openChances(await readFile(join(folder, "classifier.onnx")));
    const chances = await run(new Float32Array(FEATURE_COUNT));
    expect(chances).toHaveLength(ROUTER_CHOICES.length);
    for (const chance of chances) expect(chance > 0 && chance < 1).toBe(true);
  });

  it("read back what was written", async () => {
    const row = { id: "eval/single/0@512", answers: [{ isSame: true, isRight: false, bytes: 12, tokens: 3 }] };
    await withTempFolder(async (folder) => {
      await writeFile(join(folder, "a.jsonl"), `${answersLine(row)}\n`);
      expect(await readAnswers(join(folder, "a.jsonl"))).toEqual([row]);
      await expect(readAnswers(join(folder, "b.jsonl"))).rejects.toThrow("cannot be read (ENOENT)");
    });
  });
});
