/** Vocabularies out of GGUF files, opened as the edge opens tokenizer.json; ids as llama.cpp has them. */
import { existsSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { openGguf } from "../../models/gguf.ts";
import type { GgufValue } from "../../models/gguf-cursor.ts";
import { ggufTokenizer } from "../../models/gguf-tokenizer.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import { readVectors } from "../tokenizer/shared-data.ts";

const SHARED = "../shared/data/tokenizers";
const absent = ["ggml-vocab-gpt-2.gguf", "ggml-vocab-phi-3.gguf", "gpt2.tokenizer.json"].find(
  (name) => !existsSync(`${SHARED}/${name}`),
);
const skipped = absent === undefined ? "" : ` (skipped: ${SHARED}/${absent} is absent)`;

async function metadataOf(path: string) {
  const file = await openGguf(path);
  await file.close();
  return file;
}

describe.skipIf(absent !== undefined)(`vocabularies of llama.cpp${skipped}`, () => {
  it.each(["gpt-2", "phi-3"])("%s: ids equal llama.cpp's vectors", async (name) => {
    const file = `ggml-vocab-${name}.gguf`;
    const { tokenizer } = openTokenizer(ggufTokenizer(await metadataOf(`${SHARED}/${file}`)));
    const vectors = readVectors(file);
    expect(vectors.length).toBeGreaterThan(40);
    for (const { text, ids } of vectors) expect(tokenizer.encode(text), JSON.stringify(text)).toEqual(ids);
  });

  it("GPT-2: the same vocabulary and merges as tokenizer.json on the hub", async () => {
    const hub = JSON.parse(readFileSync(`${SHARED}/gpt2.tokenizer.json`, "utf8"));
    const { tokenizerJson } = ggufTokenizer(await metadataOf(`${SHARED}/ggml-vocab-gpt-2.gguf`));
    const { model } = tokenizerJson as { model: { vocab: object; merges: string[][] } };
    const pairs = hub.model.merges.map((merge: string | string[]) => (Array.isArray(merge) ? merge : merge.split(" ")));
    expect(model.merges).toEqual(pairs);
    expect(model.vocab).toEqual(hub.model.vocab);
  });

  it("Phi-3: control tokens and the chat template come along", async () => {
    const files = ggufTokenizer(await metadataOf(`${SHARED}/ggml-vocab-phi-3.gguf`));
    expect(files.tokenizerConfig).toMatchObject({ bos_token: "<s>", eos_token: "<|endoftext|>" });
    const { tokenizer, template } = openTokenizer(files);
    const text = template.render([{ role: "user", content: "Hi" }], { addGenerationPrompt: true });
    const ids = tokenizer.encode(text, { special: true });
    expect(ids).toContain(tokenizer.idOf("<|user|>"));
    expect(ids.at(-1)).not.toBe(tokenizer.idOf("<|user|>"));
  });
});

describe("the tokenizer of a GGUF file", () => {
  const file = "test/models/vectors/fixtures/llama-mixed.gguf";

  it("merges, keeps control tokens apart and renders the template", async () => {
    const { tokenizer, template } = openTokenizer(ggufTokenizer(await metadataOf(file)));
    // "Ġt" is 256 and "he" 257, bytes stand for themselves.
    expect(tokenizer.encode(" the é")).toEqual([256, 257, 32, 195, 169]);
    expect(tokenizer.decode(tokenizer.encode(" the é"))).toBe(" the é");
    expect(tokenizer.isSpecial(258)).toBe(true);
    expect(tokenizer.isSpecial(263)).toBe(false);
    const text = template.render([{ role: "user", content: "he" }], { addGenerationPrompt: true });
    expect(tokenizer.encode(text, { special: true })).toEqual([258, 260, 257, 259, 261]);
  });

  it.each<[says: string, pre: string, flag: boolean | undefined, adds: boolean]>([
    ["nothing, Llama 3's pre-tokenizer", "llama-bpe", undefined, true],
    ["no, Llama 3's pre-tokenizer", "llama-bpe", false, false],
    ["nothing, another pre-tokenizer", "qwen2", undefined, false],
    ["yes, another pre-tokenizer", "qwen2", true, true],
  ])("has a raw text begin as llama.cpp has it where the file says %s", async (_, pre, flag, adds) => {
    const { name, metadata } = await metadataOf(file);
    const changed = new Map<string, GgufValue>([...metadata, ["tokenizer.ggml.pre", pre]]);
    changed.delete("tokenizer.ggml.add_bos_token");
    if (flag !== undefined) changed.set("tokenizer.ggml.add_bos_token", flag);
    expect(ggufTokenizer({ name, metadata: changed }).tokenizerConfig).toMatchObject({ add_bos_token: adds });
  });

  const broken: [what: string, change: [key: string, value: GgufValue | undefined], message: RegExp][] = [
    ["another model", ["tokenizer.ggml.model", "t5"], /tokenizer\.ggml\.model: "t5" is not supported/],
    [
      "another pre-tokenizer",
      ["tokenizer.ggml.pre", "deepseek-llm"],
      /pre: "deepseek-llm" is not supported, only gpt-2/,
    ],
    ["no tokens", ["tokenizer.ggml.tokens", undefined], /tokens: is missing/],
    ["no merges", ["tokenizer.ggml.merges", undefined], /merges: is missing/],
    ["types of other tokens", ["tokenizer.ggml.token_type", [1, 1]], /token_type: is not a list of 264 numbers/],
    ["an end token that is none", ["tokenizer.ggml.eos_token_id", 264], /264 is not a token id below 264/],
  ];
  it.each(broken)("is refused in one line with %s", async (_, [key, value], message) => {
    const { name, metadata } = await metadataOf(file);
    const changed = new Map(metadata);
    if (value === undefined) changed.delete(key);
    else changed.set(key, value);
    expect(() => ggufTokenizer({ name, metadata: changed })).toThrow(message);
  });
});
