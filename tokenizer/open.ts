/** Chooses the tokenizer of a model: the only place that knows more than the contract. */
import { ByteLevelBpe } from "./byte-level-bpe.ts";
import { compileByteLevelModel, isByteLevelBpe, readAddedTokens } from "./byte-level-model.ts";
import { compileChatTemplate } from "./chat-template.ts";
import type { ChatTemplate, Tokenizer } from "./contract.ts";
import { openFallback } from "./fallback.ts";
import { asObject, isObject, type JsonObject } from "./json.ts";

/** The parsed files of a Hugging Face model. */
export interface TokenizerFiles {
  tokenizerJson: unknown;
  /** Read here: `chat_template`, `bos_token`, `eos_token`. */
  tokenizerConfig: unknown;
}

/**
 * Opens the tokenizer and the chat template of a model. Synchronous and without I/O; large vocabularies take about a second,
 * so callers keep the result. Nothing of the files is kept or changed.
 * @throws {QuireError} `internal` naming what is malformed or not supported.
 */
export function openTokenizer(files: TokenizerFiles): { tokenizer: Tokenizer; template: ChatTemplate } {
  const config = asObject(files.tokenizerConfig, "tokenizer_config.json");
  const addedTokens = readAddedTokens(asObject(files.tokenizerJson, "tokenizer.json").added_tokens);
  const specials = addedTokens.filter((token) => token.special);
  const model = isByteLevelBpe(files.tokenizerJson) ? compileByteLevelModel(files.tokenizerJson) : undefined;
  const tokenizer = model === undefined ? openFallback(files.tokenizerJson, addedTokens) : new ByteLevelBpe(model);
  const template = compileChatTemplate({
    source: templateSource(config.chat_template),
    bosToken: tokenContent(config, "bos_token"),
    eosToken: tokenContent(config, "eos_token"),
    specials: specials.map((token) => token.content),
    normalize: specials.some((token) => token.normalized) ? model?.normalize : undefined,
  });
  return { tokenizer, template };
}

/** Either one template, or a list of named ones of which "default" is for chat. */
function templateSource(chatTemplate: unknown): string | undefined {
  if (typeof chatTemplate === "string") return chatTemplate;
  if (!Array.isArray(chatTemplate)) return undefined;
  const chosen = chatTemplate.find((entry) => isObject(entry) && entry.name === "default");
  const source = isObject(chosen) ? chosen.template : undefined;
  return typeof source === "string" ? source : undefined;
}

/** Special tokens are written as a string or as an added token. */
function tokenContent(config: JsonObject, field: "bos_token" | "eos_token"): string {
  const token = config[field];
  const content = isObject(token) ? token.content : token;
  return typeof content === "string" ? content : "";
}
