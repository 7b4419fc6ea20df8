import { readFileSync } from "node:fs";
import { Tokenizer as Oracle } from "@huggingface/tokenizers";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { openTokenizer } from "../../tokenizer/open.ts";
import { agreeOn, type OracleOptions } from "./agree.ts";
import { mixedTexts } from "./mixed-text.ts";
import { loadSharedModel, SHARED_MODELS } from "./shared-data.ts";

const SEED = 20261122;
/** Of each of the three shared vocabularies: a million characters in all. */
const CHAR_COUNT = 340_000;
const house = JSON.parse(readFileSync(new URL("../../weights/house-0/tokenizer.json", import.meta.url), "utf8"));
const options: OracleOptions = { clean_up_tokenization_spaces: false };

describe("encode equals @huggingface/tokenizers", () => {
  it("house-0, text without control tokens", () => {
    const { tokenizer } = openTokenizer({ tokenizerJson: house, tokenizerConfig: {} });
    expect(agreeOn(mixedTexts(SEED, 30_000), tokenizer, new Oracle(house, options))).toBeGreaterThan(30_000);
  });

  it("house-0, control tokens anywhere", () => {
    const { tokenizer } = openTokenizer({ tokenizerJson: house, tokenizerConfig: {} });
    const oracle = new Oracle(house, options);
    const controls = fc.constantFrom("<|bos|>", "<|user|>", "<|assistant|>", "<|end|>", "<|", "|>", "<|<|end|>end|>");
    const texts = fc.constantFrom(...mixedTexts(SEED + 1, 4_000).map((text) => text.slice(0, 40)));
    let controlCount = 0;
    fc.assert(
      fc.property(fc.array(fc.oneof(texts, controls), { maxLength: 16 }), (parts) => {
        const sample = parts.join("").toWellFormed();
        const ids = tokenizer.encode(sample, { special: true });
        expect(ids).toEqual(oracle.encode(sample, { add_special_tokens: false }).ids);
        controlCount += ids.filter((id) => tokenizer.isSpecial(id)).length;
      }),
      { seed: SEED, numRuns: 400 },
    );
    expect(controlCount).toBeGreaterThan(400);
  });

  for (const model of SHARED_MODELS) {
    const shared = loadSharedModel(model);
    if (typeof shared === "string") {
      it.skip(`${model} (${shared})`, () => {});
      continue;
    }
    const open = () => ({
      tokenizer: openTokenizer({ tokenizerJson: shared.tokenizerJson, tokenizerConfig: {} }).tokenizer,
      oracle: new Oracle(shared.tokenizerJson as object, options),
    });

    it(`${model}: mixed texts, there and back; long words as short ones`, { timeout: 120_000 }, () => {
      const { tokenizer, oracle } = open();
      const mixed = mixedTexts(SEED, CHAR_COUNT);
      expect(mixed.reduce((sum, text) => sum + text.length, 0)).toBeGreaterThanOrEqual(CHAR_COUNT);
      expect(agreeOn(mixed, tokenizer, oracle)).toBeGreaterThan(CHAR_COUNT / 5);
      if (model !== "Phi-3")
        expect(mixed.filter((text) => tokenizer.decode(tokenizer.encode(text)) !== text)).toEqual([]);
      const letters = fc.string({ unit: fc.constantFrom(..."aaaabcdeinotrsh"), minLength: 40, maxLength: 300 });
      fc.assert(
        fc.property(letters, (word) => {
          expect(agreeOn([word], tokenizer, oracle)).toBeGreaterThan(0);
        }),
        { seed: SEED, numRuns: 60 },
      );
    });
  }
});
