/**
 * Unigram models (SentencePiece's other kind). What normalizers and pre-tokenizers are not ours are those of @huggingface/tokenizers.
 */
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { QuireError } from "../protocol/errors.ts";
import { type AddedToken, AddedTokenSplitter } from "./added-tokens.ts";
import type { EncodeOptions, IncrementalDecoder, Tokenizer } from "./contract.ts";
import { asArray, asObject, type JsonObject } from "./json.ts";
import { unmark } from "./marks.ts";
import { compileNormalizer, type Normalize } from "./normalize.ts";
import { compilePreTokenizer } from "./pre-tokenize.ts";
import { splitInSteps } from "./splitters.ts";
import { readDecoder } from "./token-bytes.ts";
import { Unigram, type UnigramParts } from "./unigram.ts";
import { Utf8Decoder } from "./utf8-decoder.ts";

/**
 * Opens a model that is no byte-pair encoding.
 * @throws {QuireError} `internal` naming the model type, decoder or normalized added token that is not supported.
 */
export function openFallback(tokenizerJson: unknown, addedTokens: readonly AddedToken[]): Tokenizer {
  return new UnigramTokenizer(asObject(tokenizerJson, "tokenizer.json"), addedTokens);
}

class UnigramTokenizer implements Tokenizer {
  readonly vocabularySize: number;
  readonly #model: Unigram;
  readonly #normalize: Normalize;
  readonly #split: Split;
  readonly #all: AddedTokenSplitter;
  readonly #plain: AddedTokenSplitter;
  readonly #ids: Map<string, number>;
  readonly #bytes: Uint8Array[] = [];
  readonly #specialIds: ReadonlySet<number>;
  readonly #dropsFirstSpace: boolean;

  constructor(root: JsonObject, addedTokens: readonly AddedToken[]) {
    const vocabulary = readVocabulary(asObject(root.model, "tokenizer.json: model"));
    const decoding = readDecoder(root.decoder);
    if (addedTokens.some((token) => token.special && token.normalized && root.normalizer)) {
      throw new QuireError("internal", "tokenizer.json: normalized special tokens are not supported with this model");
    }
    this.#ids = new Map(vocabulary.map(([token], id) => [token, id]));
    const utf8 = new TextEncoder();
    for (const [id, [token]] of vocabulary.entries()) this.#bytes[id] = decoding.bytesOf(token);
    for (const { id, content } of addedTokens) {
      this.#ids.set(content, id);
      this.#bytes[id] = utf8.encode(content);
    }
    this.vocabularySize = this.#bytes.length;
    this.#specialIds = new Set(addedTokens.filter((token) => token.special).map((token) => token.id));
    this.#dropsFirstSpace = decoding.dropsFirstSpace;
    this.#all = new AddedTokenSplitter(addedTokens);
    this.#plain = new AddedTokenSplitter(addedTokens.filter((token) => !token.special));
    const unspelled = new Set(addedTokens.filter((token) => token.special).map((token) => token.content));
    this.#model = new Unigram({ vocabulary, ...readSettings(root.model as JsonObject, vocabulary.length), unspelled });
    this.#normalize = normalizerOf(root);
    this.#split = splitOf(root);
  }

  encode(text: string, { special = false, countMax = Number.POSITIVE_INFINITY }: EncodeOptions = {}): number[] {
    const ids: number[] = [];
    for (const [index, section] of (special ? this.#all : this.#plain).split(text.toWellFormed()).entries()) {
      if (ids.length > countMax) break;
      if (typeof section === "number") {
        ids.push(section);
        continue;
      }
      const text = this.#normalize(special ? unmark(section) : section);
      if (text === "") continue;
      for (const piece of this.#split(text, index === 0)) {
        if (ids.length > countMax) break;
        this.#model.encode(piece, ids);
      }
    }
    return ids;
  }

  decode(ids: ArrayLike<number>, options: { special?: boolean } = {}): string {
    const decoder = this.#decoder(options.special === true);
    return decoder.push(ids) + decoder.flush();
  }

  idOf(token: string): number | undefined {
    return this.#ids.get(token);
  }

  isSpecial(id: number): boolean {
    return this.#specialIds.has(id);
  }

  piece(id: number): { text: string; bytes: number[] } {
    const bytes = this.#bytes[id] ?? new Uint8Array(0);
    return { text: new TextDecoder("utf-8", { fatal: false, ignoreBOM: true }).decode(bytes), bytes: [...bytes] };
  }

  decoder(): IncrementalDecoder {
    return this.#decoder(false);
  }

  #decoder(special: boolean): IncrementalDecoder {
    const utf8 = new Utf8Decoder();
    let atStart = this.#dropsFirstSpace;
    return {
      push: (ids) => {
        let text = "";
        for (const id of Array.from(ids)) {
          const bytes = this.#bytes[id];
          if (bytes === undefined || bytes.length === 0 || (!special && this.#specialIds.has(id))) continue;
          text += utf8.push(atStart && bytes[0] === 0x20 ? bytes.subarray(1) : bytes);
          atStart = false;
        }
        return text;
      },
      flush: () => {
        atStart = this.#dropsFirstSpace;
        return utf8.flush();
      },
    };
  }
}

function readVocabulary(model: JsonObject): [string, number][] {
  if (model.type !== "Unigram") {
    throw new QuireError("internal", `tokenizer.json: model ${model.type} is not supported`);
  }
  return asArray(model.vocab, "tokenizer.json: vocab").map((entry) => {
    const [token, score] = asArray(entry, "tokenizer.json: vocab entry");
    if (typeof token === "string" && typeof score === "number") return [token, score];
    throw new QuireError("internal", "tokenizer.json: an entry of the vocabulary is not a token with its score");
  });
}

function readSettings(model: JsonObject, idCount: number): Pick<UnigramParts, "unknownId" | "byteFallback"> {
  const { unk_id: unknownId = null, byte_fallback: byteFallback } = model;
  if (unknownId === null) return { unknownId: -1, byteFallback: byteFallback === true };
  if (!Number.isInteger(unknownId) || (unknownId as number) < 0 || (unknownId as number) >= idCount) {
    throw new QuireError("internal", "tokenizer.json: unk_id is no id of the vocabulary");
  }
  return { unknownId: unknownId as number, byteFallback: byteFallback === true };
}

/** Pieces of a text; `isFirst` as in {@link compilePreTokenizer}. */
type Split = (text: string, isFirst: boolean) => Iterable<string>;

function normalizerOf(root: JsonObject): Normalize {
  const own = orUndefined(() => compileNormalizer(root.normalizer) ?? { normalize: (text: string) => text });
  if (own !== undefined) return own.normalize;
  const library = libraryOf({ normalizer: root.normalizer }).normalizer;
  return (text) => library?.normalize(text) ?? text;
}

function splitOf(root: JsonObject): Split {
  const own = orUndefined(() => compilePreTokenizer(root.pre_tokenizer));
  if (own === undefined) {
    const library = libraryOf({ pre_tokenizer: root.pre_tokenizer }).pre_tokenizer;
    return (text, isFirst) => library?.pre_tokenize(text, { section_index: isFirst ? 0 : 1 }) ?? [text];
  }
  return (text, isFirst) => {
    const string = own.prepare?.(text, isFirst) ?? text;
    const units = Uint16Array.from({ length: string.length }, (_, at) => string.charCodeAt(at));
    const { ends, count } = splitInSteps(own.steps, { string, units, length: string.length });
    return Array.from(ends.subarray(0, count), (end, index) => string.slice(index === 0 ? 0 : ends[index - 1], end));
  };
}

/** Undefined for what is not supported here. */
function orUndefined<T>(compile: () => T): T | undefined {
  try {
    return compile();
  } catch (error) {
    if (error instanceof QuireError) return undefined;
    throw error;
  }
}

/** The library with some of its parts, and next to no model. */
function libraryOf(parts: JsonObject): HuggingFaceTokenizer {
  const none = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, added_tokens: [] };
  const model = { type: "Unigram", unk_id: 0, vocab: [["<unk>", 0]] };
  try {
    return new HuggingFaceTokenizer({ version: "1.0", ...none, model, ...parts }, {});
  } catch (cause) {
    const what = Object.keys(parts).join(", ");
    throw new QuireError("internal", `tokenizer.json: this ${what} is not supported`, { cause });
  }
}
