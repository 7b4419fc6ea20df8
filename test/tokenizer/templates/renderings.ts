/** What HF transformers renders of chat templates (make-renderings.py). */
import { readFileSync } from "node:fs";
import type { ChatMessage } from "../../../tokenizer/contract.ts";
import { type OpenedTokenizer, openTokenizer } from "../../../tokenizer/open.ts";
import { smallTokenizer } from "./small-tokenizer.ts";

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

/** {@link smallTokenizer} of a family. */
export function smallTokenizerJson(family: Family): unknown {
  return smallTokenizer(read("../../../weights/house-0/tokenizer.json"), family);
}

/** Tokenizer and template of a family, opened as a model's files are. */
export function openFamily(family: Family): OpenedTokenizer {
  const tokenizerConfig = { ...family.tokens, chat_template: family.source };
  return openTokenizer({ tokenizerJson: smallTokenizerJson(family), tokenizerConfig });
}
