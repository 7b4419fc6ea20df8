/** Other people's vocabularies and their vectors: read from beside the repository, never part of it. */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { readGgufVocabulary, sentencePieceTokenizerJson } from "./gguf-vocabulary.ts";

const FOLDER = "../../../shared/data/tokenizers";
const path = (name: string): string => fileURLToPath(new URL(`${FOLDER}/${name}`, import.meta.url));

/** A vocabulary and what an independent implementation makes of it. */
export interface SharedTokenizer {
  tokenizerJson: unknown;
  /** Texts and their ids as llama.cpp has them, no special tokens added. */
  vectors: { text: string; ids: number[] }[];
}

/** The data, or the reason (for the name of the skipped test) why it cannot be had. */
export function loadShared(json: string, vectors: string): SharedTokenizer | string {
  for (const name of [json, `${vectors}.inp`, `${vectors}.out`]) {
    if (!existsSync(path(name))) return `skipped: ../shared/data/tokenizers/${name} is absent`;
  }
  let source: string;
  if (json.endsWith(".xz")) {
    const unpacked = spawnSync("xz", ["-dc", path(json)], { maxBuffer: 64 * 1024 * 1024 });
    if (unpacked.status !== 0) return "skipped: the program xz is absent";
    source = unpacked.stdout.toString("utf8");
  } else {
    source = readFileSync(path(json), "utf8");
  }
  return { tokenizerJson: JSON.parse(source), vectors: readVectors(vectors) };
}

/** Pairs the texts of `name`.inp with the lines of ids in `name`.out. */
export function readVectors(name: string): SharedTokenizer["vectors"] {
  const texts = readFileSync(path(`${name}.inp`), "utf8").split("\n__ggml_vocab_test__\n");
  const lines = readFileSync(path(`${name}.out`), "utf8").split("\n");
  if (lines.at(-1) === "") lines.pop();
  if (texts.at(-1) === "") texts.pop();
  if (texts.length !== lines.length) throw new Error(`${name}: ${texts.length} texts, ${lines.length} lines of ids`);
  return texts.map((text, index) => ({ text, ids: (lines[index] as string).split(" ").filter(Boolean).map(Number) }));
}

/** The models whose vocabularies are shared: GPT-2 and Qwen2 are byte-level, Phi-3 is in the manner of SentencePiece. */
export const SHARED_MODELS = ["GPT-2", "Qwen2", "Phi-3"] as const;

/** {@link loadShared} by the model's name. */
export function loadSharedModel(model: (typeof SHARED_MODELS)[number]): SharedTokenizer | string {
  if (model === "GPT-2") return loadShared("gpt2.tokenizer.json", "ggml-vocab-gpt-2.gguf");
  if (model === "Qwen2") return loadShared("qwen2.tokenizer.json.xz", "ggml-vocab-qwen2.gguf");
  const name = "ggml-vocab-phi-3.gguf";
  if (!existsSync(path(name))) return `skipped: ../shared/data/tokenizers/${name} is absent`;
  const tokenizerJson = sentencePieceTokenizerJson(readGgufVocabulary(readFileSync(path(name))));
  return { tokenizerJson, vectors: readVectors(name) };
}
