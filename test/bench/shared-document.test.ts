/** Many questions about one document: the files, and the path that reads a document once against one that reads it for each question. */
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type EvalSubject, openSubject } from "../../bench/eval/subject.ts";
import { passagesOf } from "../../bench/eval/tasks.ts";
import { askDocument } from "../../bench/recall/ask.ts";
import {
  type CaseFile,
  documentsOfKind,
  isRight,
  kindsOf,
  type RecallDocument,
  readCases,
} from "../../bench/recall/cases.ts";
import { policyNamed } from "../../models/selection/registry.ts";

const FILES = { judge: "weights/house/eval-documents.jsonl.gz", choose: "weights/house/dev-documents.jsonl.gz" };
const signal = new AbortController().signal;

describe.each([
  [FILES.judge, 1000, 10],
  [FILES.choose, 320, 9],
])("the documents of %s", (path, least, kindCount) => {
  let file: CaseFile;
  beforeAll(async () => {
    file = await readCases(path);
  });

  it("tell the frequent value of a name more often than any other, each that can be chosen at least once", () => {
    for (const { items, questions } of file.documents.filter(({ kind }) => kind === "frequent")) {
      const told = items.map(({ text }) => text).join("");
      for (const [turn] of questions) {
        const { ask, expect: wanted, choices = [] } = turn as NonNullable<typeof turn>;
        const [, attribute, name] = /^What is the ([a-z]+) of ([A-Z][a-z]+) most often\?$/.exec(ask) ?? [];
        const values = [...told.matchAll(new RegExp(` The ${attribute} of ${name} is ([a-z]+)\\.`, "g"))].map(
          ([, value]) => value,
        );
        const counts = new Map<string | undefined, number>();
        for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
        expect([...counts.keys()].sort()).toEqual([...choices].sort());
        const [most, second] = [...counts].sort(([, a], [, b]) => b - a);
        expect([most?.[0]]).toEqual(wanted);
        expect(most?.[1]).toBeGreaterThan(second?.[1] ?? 0);
        // No other name's value of the attribute is counted with it.
        expect(values.length).toBe(12);
      }
    }
  });

  it("hold what is asked for, once, and nothing of what is absent", () => {
    const counts = new Map<string, number>();
    for (const { kind, items, questions } of file.documents) {
      counts.set(kind, (counts.get(kind) ?? 0) + questions.length);
      const told = items.map(({ text }) => text).join("");
      const asked = questions.map((turns) => turns.at(-1)?.ask);
      // The same two sentences may be drawn twice.
      if (kind !== "quote") expect(new Set(asked).size).toBe(asked.length);
      for (const turns of questions) {
        const last = turns.at(-1);
        expect(isRight(last?.answer ?? "", last?.expect ?? [])).toBe(true);
        expect(last?.expect.every((text) => told.includes(text))).toBe(kind !== "absent");
        expect(turns.length).toBe(kind === "second-turn" ? 4 : 1);
      }
    }
    const rare = ["multi-value", "quote", "frequent"];
    for (const kind of kindsOf(file.documents)) {
      expect(counts.get(kind)).toBeGreaterThanOrEqual(rare.includes(kind) ? 200 : least);
    }
    expect(counts.size).toBe(kindCount);
    expect(file.sentences.length).toBeGreaterThan(5_000);
  });
});

it("no document by which a selection is chosen is among those by which it is judged", async () => {
  const [judge, choose] = await Promise.all([readCases(FILES.judge), readCases(FILES.choose)]);
  // What is quoted is of the same few books.
  const itemsOf = ({ documents }: CaseFile) =>
    documents.flatMap(({ kind, items }) => (kind === "quote" ? [] : items.map(({ text }) => text)));
  const known = new Set(itemsOf(choose));
  expect(itemsOf(judge).filter((text) => known.has(text))).toEqual([]);
});

describe("questions about one document", { timeout: 60_000 }, () => {
  let subject: EvalSubject;
  let document: RecallDocument;
  let passage: string;
  const lengthTokens = 1_024;
  const plans = [{ plan: { kind: "dense" } as const }, { plan: policyNamed("quest").plan(256) }];

  beforeAll(async () => {
    const settings = { device: "wasm", threads: 1, weights: "int8", kv: "int8" } as const;
    subject = await openSubject({ ...settings, model: "weights/house", contexts: [1_024], tokens: 1 }, ["min-max"]);
    const { sentences, documents } = await readCases(FILES.choose);
    const [found] = documentsOfKind(documents, "second-turn", 3);
    if (found === undefined) throw new Error("the file has such documents");
    document = found;
    const sentenceTokens = sentences.map((sentence) => subject.tokenizer.encode(sentence).length);
    [passage = ""] = passagesOf(subject, [document], { sentences, sentenceTokens, lengthTokens });
  });
  afterAll(() => subject?.device.close());

  it("are answered as if each had read it alone, word for word and byte for byte", async () => {
    const { sequence } = subject;
    const read = vi.spyOn(sequence, "read");
    const together = await askDocument(subject, { document, passage, plans, signal });
    expect(read).toHaveBeenCalledTimes(1);
    const passageTokens = subject.tokenizer.encode(passage).length;
    const [kept = []] = read.mock.calls[0] ?? [];
    // Whole blocks, nearly all of the passage.
    expect(kept.length % 64).toBe(0);
    expect(kept.length).toBeGreaterThan(passageTokens - 128);
    expect(kept.length).toBeLessThanOrEqual(passageTokens + 8);
    const alone = [];
    for (const turns of document.questions) {
      const own = { ...document, questions: [turns] };
      alone.push(...(await askDocument(subject, { document: own, passage, plans, signal })));
    }
    expect(read).toHaveBeenCalledTimes(4);
    const wordsOf = (replies: typeof together) => replies.map((each) => each.map(({ text }) => text));
    expect(wordsOf(together)).toEqual(wordsOf(alone));
    // Each question has an answer of its own, and the selection did select.
    expect(new Set(wordsOf(together).map(([dense]) => dense)).size).toBe(3);
    for (const [dense, quest] of together) {
      expect(dense?.isRight).toBe(true);
      expect(quest?.traffic.kvBytes).toBeLessThan(0.5 * (dense?.traffic.kvBytes ?? 0));
    }
  });

  it("are answered with the word of several that the begun answer makes likeliest, where there is a choice", async () => {
    const choices = ["red", "platinum", "green"];
    const ask = "What is the colour of Badoru most often?";
    const [answer, wanted] = ["The colour of Badoru is green.", ["green"]];
    const turn = { ask, answer, expect: wanted, choices };
    const own = { kind: "frequent", intro: "", start: 0, items: [], questions: [[turn]] };
    const told = [" The colour of Badoru is green.", " The colour of Mikolo is red.", " The colour of Badoru is red."];
    const text = `${passage}${told.join("")}${told[0]}`;
    const [replies = []] = await askDocument(subject, { document: own, passage: text, plans, signal });
    const { tokenizer, template, sequence, capture } = subject;
    for (const [index, { plan }] of plans.entries()) {
      const prompt = template.render([{ role: "user", content: `${text} ${ask}` }], { addGenerationPrompt: true });
      const ids = tokenizer.encode(`${prompt}The colour of Badoru is`, { special: true });
      const kept = Math.floor((ids.length - 48) / 64) * 64;
      const scores: number[] = [];
      for (const choice of choices) {
        sequence.rewind(0);
        await sequence.read(ids.slice(0, kept), signal);
        await sequence.answer(ids.slice(kept), { plan, tokensMax: 1, endIds: [], signal });
        let probability = 1;
        for (const id of tokenizer.encode(` ${choice}`)) {
          const weights = Array.from(capture.logits, (logit) => Math.exp(logit - 20));
          probability *= (weights[id] as number) / weights.reduce((a, b) => a + b, 0);
          await sequence.advance(id, plan);
        }
        scores.push(probability);
      }
      const likeliest = choices[scores.indexOf(Math.max(...scores))];
      expect(replies[index]?.text).toBe(likeliest);
    }
    expect(replies[0]).toMatchObject({ text: "green", isRight: true });
  });

  it("are read in groups as an engine would: borders are places in the text, sixteen rows or what group() says", () => {
    const starts = (groupTokens?: number) =>
      [...subject.sequence.slice(70, 80, policyNamed("quest").plan(256), groupTokens).groupStarts].map(
        (row) => 70 + row,
      );
    expect(starts()).toEqual([70, 80, 96, 112, 128, 144]);
    expect(starts(64)).toEqual([70, 128]);
  });

  it("leave room for the longest of the conversations", () => {
    const prompt = subject.tokenizer.encode(passage).length;
    const longest = Math.max(
      ...document.questions.map((turns) => turns.reduce((sum, { ask, answer }) => sum + ask.length + answer.length, 0)),
    );
    expect(prompt).toBeLessThan(lengthTokens - 4 * 16);
    expect(prompt).toBeGreaterThan(lengthTokens - 4 * 16 - longest - 100);
  });
});
