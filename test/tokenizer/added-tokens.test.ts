import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { openTokenizer } from "../../tokenizer/open.ts";

const house = JSON.parse(readFileSync("weights/house-0/tokenizer.json", "utf8")) as { added_tokens: object[] };
const plain = { single_word: false, lstrip: false, rstrip: false, special: false };

/** house-0's bytes, without a normalizer, and three more tokens. */
const tokenizerJson = {
  ...house,
  added_tokens: [
    ...house.added_tokens,
    { ...plain, id: 260, content: "<a>", normalized: false, rstrip: true },
    { ...plain, id: 261, content: "b<a", normalized: true },
    { ...plain, id: 262, content: "word", normalized: true, single_word: true },
  ],
};

describe("added tokens without a normalizer", () => {
  const { tokenizer } = openTokenizer({ tokenizerJson, tokenizerConfig: {} });

  // Ids of Hugging Face's tokenizers 0.23.
  it.each([
    ["b<a>", [98, 260]],
    ["<a>word", [260, 262]],
    ["word<a> word", [262, 260, 262]],
    ["b<a b<a>  word.", [261, 32, 98, 260, 262, 46]],
    ["sword", [..."sword"].map((letter) => letter.charCodeAt(0))],
  ])("those that are normalized are looked for between the others: %j", (text, ids) => {
    expect(tokenizer.encode(text)).toEqual(ids);
  });
});
