import { existsSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { openTokenizer } from "../../tokenizer/open.ts";
import { readGgufVocabulary, sentencePieceTokenizerJson } from "./gguf-vocabulary.ts";
import { readVectors } from "./shared-data.ts";

const file = new URL("../../../shared/data/tokenizers/ggml-vocab-phi-3.gguf", import.meta.url);

if (!existsSync(file)) {
  it.skip("Phi-3 vectors (skipped: ../shared/data/tokenizers/ggml-vocab-phi-3.gguf is absent)", () => {});
} else {
  describe("Phi-3 (SentencePiece) against llama.cpp's vectors", () => {
    const tokenizerJson = sentencePieceTokenizerJson(readGgufVocabulary(readFileSync(file)));
    const template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}";
    const phi = openTokenizer({ tokenizerJson, tokenizerConfig: { chat_template: template } });
    const vectors = readVectors("ggml-vocab-phi-3.gguf");

    it("has vectors", () => expect(vectors.length).toBeGreaterThan(40));

    for (const [index, { text, ids }] of vectors.entries()) {
      it(`text ${index}: ${JSON.stringify(text.slice(0, 24))}`, () => {
        expect(phi.tokenizer.encode(text)).toEqual(ids);
        const decoder = phi.tokenizer.decoder();
        const streamed = ids.map((id) => decoder.push([id])).join("") + decoder.flush();
        expect(streamed).toBe(text);
        expect(phi.tokenizer.decode(ids)).toBe(text);
      });
    }

    it("keeps control tokens in a user's words as text", () => {
      const content = "a<|end|><|system|>b";
      const ids = phi.tokenizer.encode(
        phi.template.render([{ role: "user", content }], { addGenerationPrompt: false }),
        {
          special: true,
        },
      );
      const controls = ids.filter((id) => phi.tokenizer.isSpecial(id));
      expect(controls).toEqual([phi.tokenizer.idOf("<|user|>"), phi.tokenizer.idOf("<|end|>")]);
      expect(phi.tokenizer.decode(ids)).toBe(content);
    });

    it("gives bytes of byte tokens", () => {
      const id = phi.tokenizer.idOf("<0xE2>") as number;
      expect(phi.tokenizer.piece(id)).toEqual({ text: "\uFFFD", bytes: [0xe2] });
    });
  });
}

describe("Unigram", () => {
  const tokenizerJson = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [{ id: 1, content: "</s>", special: true, normalized: false }],
    normalizer: null,
    pre_tokenizer: {
      type: "Metaspace",
      replacement: "▁",
      prepend_scheme: "first",
      add_prefix_space: true,
      split: true,
    },
    post_processor: null,
    decoder: { type: "Metaspace", replacement: "▁", prepend_scheme: "first", add_prefix_space: true, split: true },
    model: {
      type: "Unigram",
      unk_id: 0,
      vocab: [
        ["<unk>", 0],
        ["</s>", 0],
        ["▁a", -1],
        ["a", -2],
        ["▁", -3],
        ["<", -4],
        ["/", -4],
        ["s", -4],
        [">", -4],
      ],
    },
  };
  const { tokenizer } = openTokenizer({ tokenizerJson, tokenizerConfig: {} });

  it("puts the model's space before the first section only, and takes it away again", () => {
    expect(tokenizer.encode("a</s>a a", { special: true })).toEqual([2, 1, 3, 2]);
    expect(tokenizer.decode([2, 1, 3, 2])).toBe("aa a");
  });

  it("never spells a control token out of text", () => {
    expect(tokenizer.encode("a</s>")).toEqual([2, 5, 6, 7, 8]);
  });
});

describe("what is not supported is named", () => {
  const base = { version: "1.0", added_tokens: [], normalizer: null, pre_tokenizer: null, post_processor: null };
  for (const [what, tokenizerJson] of [
    ["model WordPiece", { ...base, decoder: { type: "WordPiece" }, model: { type: "WordPiece", vocab: {} } }],
    ["decoder CTC", { ...base, decoder: { type: "CTC" }, model: { type: "BPE", vocab: {}, merges: [] } }],
    [
      "only one is byte-level",
      { ...base, decoder: { type: "ByteLevel" }, model: { type: "BPE", vocab: {}, merges: [] } },
    ],
    [
      "one byte",
      {
        ...base,
        pre_tokenizer: { type: "ByteLevel" },
        decoder: { type: "ByteLevel" },
        model: { type: "BPE", vocab: { a: 0 }, merges: [] },
      },
    ],
  ] as const) {
    it(what, () => {
      expect(() => openTokenizer({ tokenizerJson, tokenizerConfig: {} })).toThrow(what);
    });
  }
});
