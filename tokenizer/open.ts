/** Chooses the tokenizer of a model: the only place that knows more than the contract. */
import { readAddedTokens } from "./added-token-list.ts";
import { Bpe } from "./bpe.ts";
import { buildTables, isBpe } from "./build-tables.ts";
import { compileChatTemplate } from "./chat-template.ts";
import type { ChatTemplate, Tokenizer } from "./contract.ts";
import { openFallback } from "./fallback.ts";
import { asObject, isObject, type JsonObject } from "./json.ts";
import type { Normalize } from "./normalize.ts";
import { type Frame, readFrame } from "./post-processor.ts";
import { readTables, writeTables } from "./tables-file.ts";

/** The files of a model: its tokenizer, compiled or as parsed JSON, and the parsed `tokenizer_config.json`. */
export type TokenizerFiles = ({ tokenizerJson: unknown } | { tokenizerTables: ArrayBuffer }) & {
  /** Read here: `chat_template`, `bos_token`, `eos_token`. */
  tokenizerConfig: unknown;
};

/** What a model's files say about its texts. */
export interface OpenedTokenizer {
  tokenizer: Tokenizer;
  template: ChatTemplate;
  /** Tokens around a raw text; chat templates write their own. */
  frame: Frame;
}

/** A compiled tokenizer as {@link compileTokenizer} writes it lies beside `tokenizer.json` under this name. */
export const TOKENIZER_TABLES_NAME = "tokenizer.tables";

/**
 * Opens the tokenizer and the chat template of a model. Synchronous and without I/O. From JSON a large vocabulary takes about
 * a second, compiled some milliseconds; callers keep the result. Nothing of the JSON is changed; `tokenizerTables` is kept
 * and must not change.
 * @throws {QuireError} `internal` naming what is malformed, damaged or not supported.
 */
export function openTokenizer(files: TokenizerFiles): OpenedTokenizer {
  const config = asObject(files.tokenizerConfig, "tokenizer_config.json");
  const { tokenizer, settings, normalize } = openModel(files);
  const specials = readAddedTokens(settings.added_tokens).filter((token) => token.special);
  const isNormalized = normalize !== undefined && specials.some((token) => token.normalized);
  const template = compileChatTemplate({
    source: templateSource(config.chat_template),
    bosToken: tokenContent(config, "bos_token"),
    eosToken: tokenContent(config, "eos_token"),
    specials: specials.map(({ content, normalized }) => (normalized ? (normalize?.(content) ?? content) : content)),
    normalize: isNormalized ? normalize : undefined,
  });
  return { tokenizer, template, frame: readFrame(settings.post_processor) };
}

/**
 * Compiles `tokenizer.json` to the bytes of `docs/tokenizer-format.md`; they give the ids that the JSON gives.
 * @returns undefined for a model that is no byte-pair encoding, which has no compiled form.
 * @throws {QuireError} `internal` naming what is malformed or not supported.
 */
export function compileTokenizer(tokenizerJson: unknown): Uint8Array<ArrayBuffer> | undefined {
  if (!isBpe(tokenizerJson)) return undefined;
  const tables = buildTables(tokenizerJson);
  // Settings that cannot be served are refused here and not where the file is used.
  openTables(tables);
  return writeTables(tables);
}

interface OpenedModel {
  tokenizer: Tokenizer;
  /** tokenizer.json, with or without the vocabulary. */
  settings: JsonObject;
  normalize: Normalize | undefined;
}

function openModel(files: TokenizerFiles): OpenedModel {
  if ("tokenizerTables" in files) return openTables(readTables(files.tokenizerTables));
  const { tokenizerJson } = files;
  if (isBpe(tokenizerJson)) return openTables(buildTables(tokenizerJson));
  const settings = asObject(tokenizerJson, "tokenizer.json");
  const tokenizer = openFallback(settings, readAddedTokens(settings.added_tokens));
  return { tokenizer, settings, normalize: undefined };
}

function openTables(tables: ReturnType<typeof buildTables>): OpenedModel {
  const tokenizer = new Bpe(tables);
  readFrame(tables.settings.post_processor);
  return { tokenizer, settings: tables.settings, normalize: tokenizer.normalize };
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
