import { describe, expect, it } from "vitest";
import { Bpe } from "../../tokenizer/bpe.ts";
import { buildTables } from "../../tokenizer/build-tables.ts";
import { loadSharedModel, SHARED_MODELS } from "./shared-data.ts";
import { applyVariant, readVariants } from "./variants.ts";

const { texts, variants } = readVariants();

for (const model of SHARED_MODELS) {
  const shared = loadSharedModel(model);
  if (typeof shared === "string") {
    it.skip(`variants of ${model} against Hugging Face's Rust implementation (${shared})`, () => {});
    continue;
  }
  describe(`variants of ${model} against Hugging Face's Rust implementation`, () => {
    const tables = buildTables(shared.tokenizerJson);
    for (const variant of variants.filter(({ base }) => base === model)) {
      it(variant.name, () => {
        const tokenizerJson = applyVariant(shared.tokenizerJson, variant);
        // Building takes a second; other settings over the same vocabulary have the same tables.
        const isSameVocabulary = variant.renamed === undefined && variant.root?.added_tokens === undefined;
        const own = isSameVocabulary ? { ...tables, settings: tokenizerJson } : buildTables(tokenizerJson);
        const tokenizer = new Bpe(own);
        expect(variant.ids).toHaveLength(texts.length);
        for (const [index, text] of texts.entries()) {
          expect(tokenizer.encode(text, { special: true }), JSON.stringify(text)).toEqual(variant.ids[index]);
        }
      });
    }
  });
}
