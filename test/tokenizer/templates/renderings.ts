/** What HF transformers renders of chat templates (make-renderings.py), and a small tokenizer for each family. */
import { readFileSync } from "node:fs";
import type { ChatMessage } from "../../../tokenizer/contract.ts";
import { type OpenedTokenizer, openTokenizer } from "../../../tokenizer/open.ts";

/** A rendering, or the words in which the template refused. */
export type Rendering = { text: string } | { error: string };

/** A family of models: its template and the reference's renderings by conversation, without and with the prompt. */
export interface Family {
  name: string;
  source: string;
  tokens: { bos_token?: string; eos_token: string };
  specials: string[];
  renderings: Record<string, [Rendering, Rendering]>;
}

interface RenderingsFile {
  expressions: { messages: ChatMessage[]; rendered: [string, Rendering][] };
  conversations: Record<string, ChatMessage[]>;
  families: Record<string, Omit<Family, "name" | "source">>;
}

const read = (path: string): string => readFileSync(new URL(path, import.meta.url), "utf8");
const file = JSON.parse(read("./fixtures/renderings.json")) as RenderingsFile;

/** Conversations by name. */
export const CONVERSATIONS: Readonly<Record<string, ChatMessage[]>> = file.conversations;

/** Small templates, and what the reference renders of each with these messages. */
export const EXPRESSIONS: Readonly<RenderingsFile["expressions"]> = file.expressions;

/** Every family of the fixtures. */
export const FAMILIES: readonly Family[] = Object.entries(file.families).map(([name, family]) => ({
  ...family,
  name,
  source: read(`./jinja/${name}.jinja`),
}));

interface TokenizerJson {
  added_tokens: object[];
  model: { vocab: Record<string, number>; merges: string[][] };
}

/** Merges that reach over the borders between template, contents and replies: line breaks, spaces, words. */
const MERGES = [
  ["Ċ", "Ċ"],
  ["Ġ", "a"],
  ["a", "n"],
  ["an", "s"],
  ["Ċ", "a"],
  ["Ġ", "Ġ"],
  ["t", "h"],
  ["i", "n"],
  ["th", "in"],
] as const;

/**
 * The tokenizer.json of a family in little: bytes, {@link MERGES}, the family's special tokens, and Qwen3's two tokens for
 * thoughts, which are no special ones.
 */
export function smallTokenizerJson(family: Family): unknown {
  const json = JSON.parse(read("../../../weights/house-0/tokenizer.json")) as TokenizerJson;
  const { vocab } = json.model;
  let id = Math.max(...Object.values(vocab), ...json.added_tokens.map((token) => (token as { id: number }).id)) + 1;
  for (const [left, right] of MERGES) vocab[left + right] = id++;
  json.model.merges = MERGES.map((pair) => [...pair]);
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  const thoughts = family.name === "qwen3" ? ["<think>", "</think>"] : [];
  const added = [...family.specials, ...thoughts].map((content) => ({
    id: id++,
    content,
    ...flags,
    special: !thoughts.includes(content),
  }));
  json.added_tokens = added;
  return json;
}

/** Tokenizer and template of a family, opened as a model's files are. */
export function openFamily(family: Family): OpenedTokenizer {
  const tokenizerConfig = { ...family.tokens, chat_template: family.source };
  return openTokenizer({ tokenizerJson: smallTokenizerJson(family), tokenizerConfig });
}
