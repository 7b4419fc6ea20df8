/** A GGUF file's vocabulary as the `tokenizer.json` and `tokenizer_config.json` that the same model has on the hub. */
import type { GgufFile } from "./gguf.ts";
import { GgufFields } from "./gguf-fields.ts";

/** Both files, as JSON would parse them. */
export interface TokenizerFiles {
  tokenizerJson: object;
  tokenizerConfig: object;
}

/** llama.cpp's token types. */
const TYPE_UNKNOWN = 2;
const TYPE_CONTROL = 3;
const TYPE_USER_DEFINED = 4;

const GPT2_SPLIT = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const LLAMA3_SPLIT =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const QWEN2_SPLIT = LLAMA3_SPLIT.replace("\\p{N}{1,3}", "\\p{N}");

interface ByteLevelKind {
  split: string;
  /** Digits stand alone before the split. */
  digits?: boolean;
  normalizer?: object;
  ignoreMerges?: boolean;
  /** A raw text begins with the beginning token where the file does not say. */
  addsBos?: boolean;
}

const PRE_TOKENIZER = "tokenizer.ggml.pre";

/** {@link PRE_TOKENIZER} by name. */
const BYTE_LEVEL_KINDS: Readonly<Record<string, ByteLevelKind>> = {
  "gpt-2": { split: GPT2_SPLIT },
  default: { split: GPT2_SPLIT },
  "llama-bpe": { split: LLAMA3_SPLIT, ignoreMerges: true, addsBos: true },
  llama3: { split: LLAMA3_SPLIT, ignoreMerges: true, addsBos: true },
  qwen2: { split: QWEN2_SPLIT, normalizer: { type: "NFC" } },
  smollm: { split: GPT2_SPLIT, digits: true },
};

/**
 * Byte-level BPE (`gpt2`) and SentencePiece BPE with byte fallback (`llama`).
 * @throws {QuireError} `invalid_request`, one line with the file's name: another model or pre-tokenizer, or lists that do not match.
 */
export function ggufTokenizer(file: Pick<GgufFile, "name" | "metadata">): TokenizerFiles {
  const fields = new GgufFields(file);
  const key = (name: string) => `tokenizer.ggml.${name}`;
  const tokens = fields.texts(key("tokens"));
  const types = fields.optionalNumbers(key("token_type"), tokens.length) ?? tokens.map(() => 1);
  const model = fields.text(key("model"));
  const special = (name: string) => {
    const id = fields.tokenId(key(`${name}_token_id`), tokens.length);
    return id === undefined ? {} : { [`${name}_token`]: tokens[id]! };
  };
  const template = fields.optionalText("tokenizer.chat_template");
  const addBosToken = fields.optionalFlag(key("add_bos_token")) ?? addsBosUnsaid(model, fields);
  const tokenizerConfig = {
    ...special("bos"),
    ...special("eos"),
    add_bos_token: addBosToken,
    ...(template === undefined ? {} : { chat_template: template }),
    clean_up_tokenization_spaces: false,
  };
  const common = { version: "1.0", truncation: null, padding: null, post_processor: null };
  const added = { added_tokens: addedTokens(tokens, types) };
  if (model === "gpt2") {
    const tokenizerJson = { ...common, ...added, ...byteLevel(fields, key, tokens) };
    return { tokenizerJson, tokenizerConfig };
  }
  if (model === "llama") {
    const scores = fields.optionalNumbers(key("scores"), tokens.length);
    if (scores === undefined) return fields.fail(key("scores"), "is missing");
    const addPrefixSpace = fields.optionalFlag(key("add_space_prefix")) ?? true;
    const tokenizerJson = { ...common, ...added, ...sentencePiece({ tokens, types, scores, addPrefixSpace }) };
    return { tokenizerJson, tokenizerConfig };
  }
  return fields.fail(key("model"), `${JSON.stringify(model.slice(0, 80))} is not supported, only "gpt2" and "llama"`);
}

/** As llama.cpp takes it: many files of Llama 3 do not say. */
function addsBosUnsaid(model: string, fields: GgufFields): boolean {
  if (model === "llama") return true;
  const pre = fields.optionalText(PRE_TOKENIZER) ?? "";
  return Object.hasOwn(BYTE_LEVEL_KINDS, pre) && BYTE_LEVEL_KINDS[pre]?.addsBos === true;
}

function addedTokens(tokens: readonly string[], types: readonly number[]): object[] {
  return tokens.flatMap((content, id) => {
    if (types[id] !== TYPE_CONTROL && types[id] !== TYPE_USER_DEFINED && types[id] !== TYPE_UNKNOWN) return [];
    const special = types[id] !== TYPE_USER_DEFINED;
    return [{ id, content, special, normalized: false, lstrip: false, rstrip: false, single_word: false }];
  });
}

function byteLevel(fields: GgufFields, key: (name: string) => string, tokens: readonly string[]): object {
  const pre = fields.optionalText(PRE_TOKENIZER) ?? "default";
  const kind = Object.hasOwn(BYTE_LEVEL_KINDS, pre) ? BYTE_LEVEL_KINDS[pre] : undefined;
  if (kind === undefined) {
    const known = Object.keys(BYTE_LEVEL_KINDS).join(", ");
    return fields.fail(PRE_TOKENIZER, `${JSON.stringify(pre.slice(0, 80))} is not supported, only ${known}`);
  }
  const split = { type: "Split", pattern: { Regex: kind.split }, behavior: "Isolated", invert: false };
  const digits = { type: "Digits", individual_digits: true };
  const bytes = { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: false };
  return {
    normalizer: kind.normalizer ?? null,
    pre_tokenizer: { type: "Sequence", pretokenizers: [...(kind.digits ? [digits] : []), split, bytes] },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      ignore_merges: kind.ignoreMerges === true,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: fields.texts(key("merges")).map((merge) => merge.split(" ")),
    },
  };
}

interface Pieces {
  tokens: readonly string[];
  types: readonly number[];
  scores: readonly number[];
  addPrefixSpace: boolean;
}

/** SentencePiece keeps a score per piece instead of merges: a merge is as good as the piece it makes, as in HF's own conversion. */
function sentencePiece({ tokens, types, scores, addPrefixSpace }: Pieces): object {
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const merges: { pair: [string, string]; score: number }[] = [];
  for (const [id, token] of tokens.entries()) {
    if (types[id] !== 1) continue;
    const cuts: [string, string][] = [];
    for (let cut = 1; cut < token.length; cut++) {
      const pair: [string, string] = [token.slice(0, cut), token.slice(cut)];
      if (ids.has(pair[0]) && ids.has(pair[1])) cuts.push(pair);
    }
    cuts.sort((a, b) => ids.get(a[0])! - ids.get(b[0])! || ids.get(a[1])! - ids.get(b[1])!);
    merges.push(...cuts.map((pair) => ({ pair, score: scores[id]! })));
  }
  merges.sort((a, b) => b.score - a.score);
  const replace = (from: string, to: string) => ({ type: "Replace", pattern: { String: from }, content: to });
  const prepend = addPrefixSpace ? [{ type: "Prepend", prepend: "▁" }] : [];
  const strip = addPrefixSpace ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : [];
  return {
    normalizer: { type: "Sequence", normalizers: [...prepend, replace(" ", "▁")] },
    pre_tokenizer: null,
    decoder: {
      type: "Sequence",
      decoders: [replace("▁", " "), { type: "ByteFallback" }, { type: "Fuse" }, ...strip],
    },
    model: {
      type: "BPE",
      unk_token: tokens[types.indexOf(TYPE_UNKNOWN)] ?? null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries(ids),
      merges: merges.map(({ pair }) => pair),
    },
  };
}
