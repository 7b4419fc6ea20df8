import { Tokenizer as Oracle } from "@huggingface/tokenizers";
import { expect, it } from "vitest";
import { openTokenizer } from "../../tokenizer/open.ts";
import { agreeOn } from "./agree.ts";
import { mixedTexts } from "./mixed-text.ts";
import { loadSharedModel, SHARED_MODELS } from "./shared-data.ts";

const CHAR_COUNT = 1_000_000;

for (const model of SHARED_MODELS) {
  const shared = loadSharedModel(model);
  if (typeof shared === "string") {
    it.skip(`${model}: a million characters (${shared})`, () => {});
    continue;
  }
  it(`${model}: a million characters as @huggingface/tokenizers has them`, { timeout: 600_000 }, () => {
    const { tokenizer } = openTokenizer({ tokenizerJson: shared.tokenizerJson, tokenizerConfig: {} });
    const oracle = new Oracle(shared.tokenizerJson as object, { clean_up_tokenization_spaces: false });
    const texts = mixedTexts(7, CHAR_COUNT);
    expect(texts.join("").length).toBeGreaterThanOrEqual(CHAR_COUNT);
    expect(agreeOn(texts, tokenizer, oracle)).toBeGreaterThan(CHAR_COUNT / 5);
  });
}
