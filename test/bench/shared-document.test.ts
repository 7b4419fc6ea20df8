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
  [FILES.judge, 1000],
  [FILES.choose, 320],
])("the documents of %s", (path, least) => {
  let file: CaseFile;
  beforeAll(async () => {
    file = await readCases(path);
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
    const rare = ["multi-value", "quote"];
    for (const kind of kindsOf(file.documents)) {
      expect(counts.get(kind)).toBeGreaterThanOrEqual(rare.includes(kind) ? 200 : least);
    }
    expect(counts.size).toBe(9);
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
