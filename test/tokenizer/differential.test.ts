import { readFileSync } from "node:fs";
import { Tokenizer as Oracle } from "@huggingface/tokenizers";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Tokenizer } from "../../tokenizer/contract.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import { loadShared } from "./shared-data.ts";

const SEED = 20261122;
const house = JSON.parse(readFileSync(new URL("../../weights/house-0/tokenizer.json", import.meta.url), "utf8"));

/** Words, spaces, digits, accents in both forms, emoji sequences, scripts without spaces, controls, odd bytes. */
const fragment = fc.oneof(
  fc.constantFrom(
    ..."the The code of Badoru is 4821 don't WE'LL I'm it's 's 'S ’s _a_ foo(bar) => {} // 3.14 1,000".split(" "),
  ),
  fc.constantFrom(" ", "  ", "   ", "\n", "\n\n", "\r\n", " \n ", "\t", "\u00a0", "\u3000", "\u2028"),
  fc.constantFrom(
    "é",
    "e\u0301",
    "ﬁ",
    "Å",
    "A\u030a",
    "क्षि",
    "漢字かな",
    "안녕",
    "👩‍👩‍👧‍👦",
    "🇩🇪",
    "½",
    "²",
    "\u0000",
    "\u200d",
    "\ufffd",
  ),
  fc.string({ unit: "grapheme", maxLength: 8 }),
  fc.string({ unit: "binary", maxLength: 6 }),
);
/** The oracle's `\s` is JavaScript's: U+FEFF and U+0085 are tested on their own, against Oniguruma's meaning. */
const text = fc.array(fragment, { maxLength: 24 }).map((parts) =>
  parts
    .join("")
    .toWellFormed()
    .replace(/[\ufeff\u0085]/g, ""),
);

function agree(ours: Tokenizer, oracle: Oracle, special: boolean): void {
  let tokenCount = 0;
  fc.assert(
    fc.property(text, (sample) => {
      const expected = oracle.encode(sample, { add_special_tokens: false }).ids;
      const ids = ours.encode(sample, { special });
      expect(ids).toEqual(expected);
      tokenCount += ids.length;
    }),
    { seed: SEED, numRuns: 1_500 },
  );
  expect(tokenCount).toBeGreaterThan(10_000);
}

describe("encode equals @huggingface/tokenizers", () => {
  const options = { clean_up_tokenization_spaces: false };

  it("house-0, text without control tokens", () => {
    const { tokenizer } = openTokenizer({ tokenizerJson: house, tokenizerConfig: {} });
    agree(tokenizer, new Oracle(house, options), false);
  });

  it("house-0, control tokens anywhere", () => {
    const { tokenizer } = openTokenizer({ tokenizerJson: house, tokenizerConfig: {} });
    const oracle = new Oracle(house, options);
    const controls = fc.constantFrom(
      "<|bos|>",
      "<|user|>",
      "<|assistant|>",
      "<|end|>",
      "<|",
      "|>",
      "<|end",
      "<|<|end|>end|>",
    );
    let controlCount = 0;
    fc.assert(
      fc.property(fc.array(fc.oneof(fragment, controls), { maxLength: 16 }), (parts) => {
        const sample = parts.join("").toWellFormed();
        const ids = tokenizer.encode(sample, { special: true });
        expect(ids).toEqual(oracle.encode(sample, { add_special_tokens: false }).ids);
        controlCount += ids.filter((id) => tokenizer.isSpecial(id)).length;
      }),
      { seed: SEED, numRuns: 1_500 },
    );
    expect(controlCount).toBeGreaterThan(1_000);
  });

  for (const [model, json, vectors] of [
    ["GPT-2", "gpt2.tokenizer.json", "ggml-vocab-gpt-2.gguf"],
    ["Qwen2", "qwen2.tokenizer.json.xz", "ggml-vocab-qwen2.gguf"],
  ] as const) {
    const shared = loadShared(json, vectors);
    if (typeof shared === "string") {
      it.skip(`${model} (${shared})`, () => {});
      continue;
    }
    it(model, () => {
      const { tokenizer } = openTokenizer({ tokenizerJson: shared.tokenizerJson, tokenizerConfig: {} });
      agree(tokenizer, new Oracle(shared.tokenizerJson as object, options), false);
    });

    it(`${model}: long pieces merge as short ones do`, () => {
      const { tokenizer } = openTokenizer({ tokenizerJson: shared.tokenizerJson, tokenizerConfig: {} });
      const oracle = new Oracle(shared.tokenizerJson as object, options);
      fc.assert(
        fc.property(
          fc.string({ unit: fc.constantFrom(..."aaaabcdeinotrsh"), minLength: 40, maxLength: 400 }),
          (sample) => {
            expect(tokenizer.encode(sample)).toEqual(oracle.encode(sample, { add_special_tokens: false }).ids);
          },
        ),
        { seed: SEED, numRuns: 300 },
      );
    });
  }
});
