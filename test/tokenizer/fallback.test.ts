import { describe, expect, it } from "vitest";
import { openTokenizer } from "../../tokenizer/open.ts";

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
