import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { ChatMessage } from "../../tokenizer/contract.ts";
import { openTokenizer } from "../../tokenizer/open.ts";

interface Case {
  messages: ChatMessage[];
  turns: { greedy: number[]; text: string; prompt_tokens: number; ids?: number[] }[];
}

const read = (name: string): unknown =>
  JSON.parse(readFileSync(new URL(`../../weights/house-0/${name}`, import.meta.url), "utf8"));

const house = () =>
  openTokenizer({ tokenizerJson: read("tokenizer.json"), tokenizerConfig: read("tokenizer_config.json") });

describe("house-0 against vectors of HF transformers", () => {
  const { cases } = read("vectors.json") as { cases: Case[] };
  const { tokenizer, template } = house();

  for (const [index, { messages, turns }] of cases.entries()) {
    it(`case ${index}: prompts of all ${turns.length} turns`, () => {
      expect(turns.length).toBe(3);
      for (const [turn, { prompt_tokens, ids }] of turns.entries()) {
        const text = template.render(messages.slice(0, turn * 2 + 1), { addGenerationPrompt: true });
        const encoded = tokenizer.encode(text, { special: true });
        expect(encoded.length).toBe(prompt_tokens);
        if (ids !== undefined) expect(encoded).toEqual(ids);
      }
    });

    it(`case ${index}: replies decode to the text, streamed and whole`, () => {
      for (const { greedy, text } of turns) {
        expect(tokenizer.decode(greedy)).toBe(text);
        expect(tokenizer.decode(greedy, { special: true })).toBe(`${text}<|end|>`);
        const decoder = tokenizer.decoder();
        expect(greedy.map((id) => decoder.push([id])).join("") + decoder.flush()).toBe(text);
      }
    });
  }

  it("has prompt ids to compare for every turn of the shortest case", () => {
    expect(cases[0]?.turns.filter((turn) => turn.ids !== undefined).length).toBe(3);
  });

  it("knows its control tokens", () => {
    expect(tokenizer.vocabularySize).toBe(260);
    expect(tokenizer.idOf("<|end|>")).toBe(259);
    expect(tokenizer.idOf("<|nope|>")).toBeUndefined();
    expect([255, 256, 259].map((id) => tokenizer.isSpecial(id))).toEqual([false, true, true]);
    expect(tokenizer.piece(65)).toEqual({ text: "A", bytes: [65] });
    expect(tokenizer.piece(0xe2)).toEqual({ text: "\uFFFD", bytes: [0xe2] });
    expect(tokenizer.piece(259)).toEqual({ text: "<|end|>", bytes: [..."<|end|>"].map((c) => c.charCodeAt(0)) });
  });

  it("reads special tokens only when asked", () => {
    expect(tokenizer.encode("<|end|>", { special: true })).toEqual([259]);
    expect(tokenizer.encode("<|end|>")).toEqual([..."<|end|>"].map((c) => c.charCodeAt(0)));
  });
});
