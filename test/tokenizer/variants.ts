/** Variants of real vocabularies, and what Hugging Face's own (Rust) implementation makes of texts with them. */
import { readFileSync } from "node:fs";
import type { JsonObject } from "../../tokenizer/json.ts";
import type { SHARED_MODELS } from "./shared-data.ts";

/** A vocabulary with other settings. */
export interface Variant {
  name: string;
  base: (typeof SHARED_MODELS)[number];
  /** Fields of tokenizer.json that are different. */
  root?: JsonObject;
  /** Fields of its `model` that are different. */
  model?: JsonObject;
  /** Tokens of the vocabulary with another content. */
  renamed?: Record<string, string>;
}

/** A variant with the reference's ids and texts. */
export interface VariantVectors extends Variant {
  /** Ids of each text, no special tokens added. */
  ids: number[][];
}

/** `fixtures/variants.json`. */
export interface VariantFile {
  about: string;
  texts: string[];
  variants: VariantVectors[];
}

/** Reads the vectors. */
export function readVariants(): VariantFile {
  return JSON.parse(readFileSync(new URL("./fixtures/variants.json", import.meta.url), "utf8")) as VariantFile;
}

/** tokenizer.json of a variant; `base` is left alone. */
export function applyVariant(base: unknown, { root, model, renamed }: Variant): JsonObject {
  const newNames = new Map(Object.entries(renamed ?? {}));
  const original = base as JsonObject & { model: JsonObject & { vocab: Record<string, number> } };
  const vocab = Object.fromEntries(
    Object.entries(original.model.vocab).map(([token, id]) => [newNames.get(token) ?? token, id]),
  );
  return { ...original, ...root, model: { ...original.model, vocab, ...model } };
}
