/** What a resumed session is about: seeded KV and tokens, or a text that a model has read. */
import { openModelFolder } from "../../cli/model-folder.ts";
import { UsageError } from "../../cli/usage-error.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { openTokenizer } from "../../tokenizer/open.ts";
import { type BenchModel, CHUNK_ROWS } from "../decode/bench-model.ts";
import { type FilledKeys, fillRandom } from "../decode/fill-random.ts";
import { documentsOf, readText } from "../eval/subject.ts";
import { seededRandom } from "../random.ts";
import { type ShapeName, shapeConfig } from "../shapes.ts";
import type { ResumeCase } from "./measure-resume.ts";

/** Distinct ids of a prompt over drifting keys: the queries of a text's prompt resemble each other, those of random ids do not. */
const PROMPT_IDS = 4;
/** Read densely; behind it with the selection of the turns, which is quicker. */
const DENSE_TOKENS = 2048;

/** Tokens, and how the KV of the context comes to be. */
export interface Content {
  description: string;
  context(tokenCount: number): number[];
  /** Of the n-th turn behind a context. */
  prompt(contextTokens: number, index: number, tokenCount: number): number[];
  /** Undefined: the context is read. */
  filled: { seed: number; keys: FilledKeys } | undefined;
}

/** What to be about. */
export interface ContentOptions {
  shape: ShapeName;
  model?: string | undefined;
  text?: string | undefined;
  /** What names the text, for messages; default `--text`. */
  textFlag?: string;
  seed: number;
  keys: FilledKeys;
}

/** @throws {UsageError} for a text that cannot be read or is too short. */
export async function contentOf(options: ContentOptions, tokenCount: number): Promise<Content> {
  const { model, text, textFlag, seed, keys } = options;
  if (text !== undefined && model !== undefined) {
    return await textContent(model, { path: text, flag: textFlag }, tokenCount);
  }
  if (model !== undefined) throw new UsageError("--model: needs a --text to read");
  const { vocabularySize } = shapeConfig(options.shape);
  const ids = (stream: number, count: number, distinct: number): number[] => {
    const random = seededRandom(seed, stream);
    const some = Array.from({ length: distinct }, () => Math.floor(random() * vocabularySize));
    return Array.from({ length: count }, (_, index) => some[index % distinct] as number);
  };
  const promptIds = keys === "drift" ? PROMPT_IDS : Number.POSITIVE_INFINITY;
  const kept = `a part that stays for some hundred tokens, a part common to a KV head, the rest alone; prompts of ${PROMPT_IDS} ids`;
  return {
    description: keys === "drift" ? `seeded KV whose keys drift: ${kept}` : "seeded KV, every key drawn alone",
    context: (count) => ids(7, count, count),
    prompt: (_contextTokens, index, count) => ids(8 + index, count, Math.min(count, promptIds)),
    filled: { seed, keys },
  };
}

async function textContent(
  model: string,
  { path, flag = "--text" }: { path: string; flag: string | undefined },
  tokenCount: number,
): Promise<Content> {
  const { readEdgeFile } = await openModelFolder(model);
  const readJson = async (name: string) => JSON.parse(new TextDecoder().decode(await readEdgeFile(name)));
  const { tokenizer } = openTokenizer({
    tokenizerJson: await readJson("tokenizer.json"),
    tokenizerConfig: await readJson("tokenizer_config.json"),
  });
  const [ids] = documentsOf(await readText(path, flag), { tokenizer }, { count: 1, tokens: tokenCount, flag });
  return {
    description: `the first ${tokenCount} tokens of ${path}, read by the model`,
    context: (count) => ids!.slice(0, count),
    prompt: (contextTokens, index, count) => ids!.slice(contextTokens + index * count).slice(0, count),
    filled: undefined,
  };
}

/** Leaves the KV of a context in the model's pool. */
export async function fillContext(
  model: BenchModel,
  content: Content,
  contextTokens: number,
  { policy, budgetTokens }: ResumeCase["selection"],
): Promise<void> {
  const { filled } = content;
  if (filled !== undefined) return await fillRandom(model, filled.seed, contextTokens, filled.keys);
  const { plan, groupTokens } = policyNamed(policy);
  const tokens = Uint32Array.from(content.context(contextTokens));
  const denseEnd = Math.min(contextTokens, Math.max(DENSE_TOKENS, budgetTokens));
  for (let position = 0; position < contextTokens; position += CHUNK_ROWS) {
    const chunk = tokens.subarray(position, position + CHUNK_ROWS);
    const selected = position >= denseEnd;
    const how = selected ? plan(budgetTokens) : ({ kind: "dense" } as const);
    await model.step({ position, tokens: chunk, plan: how, groupTokens, samples: false });
  }
}
