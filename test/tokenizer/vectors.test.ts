import { describe, expect, it } from "vitest";
import { openTokenizer } from "../../tokenizer/open.ts";
import { loadShared } from "./shared-data.ts";

for (const [model, json, vectors] of [
  ["GPT-2", "gpt2.tokenizer.json", "ggml-vocab-gpt-2.gguf"],
  ["Qwen2", "qwen2.tokenizer.json.xz", "ggml-vocab-qwen2.gguf"],
] as const) {
  const shared = loadShared(json, vectors);
  if (typeof shared === "string") {
    it.skip(`${model} vectors (${shared})`, () => {});
    continue;
  }
  describe(`${model} against llama.cpp's vectors`, () => {
    const { tokenizer } = openTokenizer({ tokenizerJson: shared.tokenizerJson, tokenizerConfig: {} });

    it("has vectors", () => expect(shared.vectors.length).toBeGreaterThan(40));

    for (const [index, { text, ids }] of shared.vectors.entries()) {
      it(`text ${index}: ${JSON.stringify(text.slice(0, 24))}`, () => {
        expect(tokenizer.encode(text)).toEqual(ids);
        expect(tokenizer.encode(text, { special: true })).toEqual(ids);
        expect(tokenizer.decode(ids)).toBe(text);
      });
    }
  });
}
