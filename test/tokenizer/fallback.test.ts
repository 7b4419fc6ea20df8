import { describe, expect, it } from "vitest";
import { QuireError } from "../../protocol/errors.ts";
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

describe("Unigram against Hugging Face's tokenizers 0.23", () => {
  const vocabulary = [
    ["<unk>", 0],
    ["</s>", 0],
    ["▁", -3],
    ["a", -4],
    ["b", -4.5],
    ["ab", -6],
    ["bc", -5],
    ["▁ab", -6.5],
    ["cab", -9],
    ["▁a▁b", -1],
    ["é", -7],
    ["xy", -30],
  ];
  const bytes = Array.from({ length: 256 }, (_, byte) => [
    `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`,
    -20,
  ]);
  const metaspace = { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: true };
  const open = (byteFallback: boolean) => {
    const vocab = byteFallback ? [...vocabulary, ...bytes] : vocabulary;
    const tokenizerJson = {
      version: "1.0",
      added_tokens: [{ id: 1, content: "</s>", special: true, normalized: false }],
      normalizer: null,
      pre_tokenizer: metaspace,
      post_processor: null,
      decoder: metaspace,
      model: { type: "Unigram", unk_id: 0, byte_fallback: byteFallback, vocab },
    };
    return openTokenizer({ tokenizerJson, tokenizerConfig: {} }).tokenizer;
  };

  it.each([
    ["ab a b", [7, 2, 3, 2, 4]],
    ["abc cab", [2, 3, 6, 2, 8]],
    ["zz a zq", [2, 0, 2, 3, 2, 0]],
    ["xy x", [2, 11, 2, 0]],
    ["é👩é", [2, 10, 0, 10]],
    ["cabcab", [2, 8, 8]],
    ["  a", [2, 2, 3]],
  ])("%j", (text, ids) => {
    expect(open(false).encode(text)).toEqual(ids);
  });

  it.each([
    ["za", [2, 134, 3]],
    ["é👩é", [2, 10, 252, 171, 157, 181, 10]],
    ["xy zz", [2, 11, 2, 134, 134]],
  ])("with bytes for what it does not know: %j", (text, ids) => {
    expect(open(true).encode(text)).toEqual(ids);
  });

  it("spells no control token out of characters that it does not know", () => {
    expect(open(false).encode("a</s>a")).toEqual([2, 3, 0, 3]);
  });

  it("stops where no more ids are wanted", () => {
    expect(open(false).encode("a ".repeat(1_000), { countMax: 10 }).length).toBeLessThan(20);
  });

  it.each(["z", "a", "é", " ", "👩", "a "])("takes 200,000 times %j in seconds", (text) => {
    const began = performance.now();
    const ids = open(true).encode(text.repeat(200_000));
    expect(ids.length).toBeGreaterThan(100_000);
    expect(performance.now() - began).toBeLessThan(15_000);
  });
});

describe("what is not supported is named", () => {
  const base = { version: "1.0", added_tokens: [], normalizer: null, pre_tokenizer: null, post_processor: null };
  for (const [what, tokenizerJson] of [
    ["model WordPiece", { ...base, decoder: { type: "WordPiece" }, model: { type: "WordPiece", vocab: {} } }],
    [
      "normalizer",
      {
        ...base,
        normalizer: { type: "Guess" },
        decoder: { type: "Metaspace", replacement: "▁" },
        model: { type: "Unigram", unk_id: 0, vocab: [["<unk>", 0]] },
      },
    ],
    [
      "pre_tokenizer",
      {
        ...base,
        pre_tokenizer: { type: "Guess" },
        decoder: { type: "Metaspace", replacement: "▁" },
        model: { type: "Unigram", unk_id: 0, vocab: [["<unk>", 0]] },
      },
    ],
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
      const open = () => openTokenizer({ tokenizerJson, tokenizerConfig: {} });
      expect(open).toThrow(QuireError);
      expect(open).toThrow(what);
    });
  }
});
