/**
 * Unigram models (SentencePiece's other kind) through @huggingface/tokenizers: slow, but right. The library
 * only encodes text between added tokens; splitting, marks and decoding are ours, so that streams and control tokens keep
 * the contract's promises.
 */
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { QuireError } from "../protocol/errors.ts";
import { type AddedToken, AddedTokenSplitter } from "./added-tokens.ts";
import type { EncodeOptions, IncrementalDecoder, Tokenizer } from "./contract.ts";
import { asArray, asObject, isObject, type JsonObject } from "./json.ts";
import { unmark } from "./marks.ts";
import { readDecoder } from "./token-bytes.ts";
import { Utf8Decoder } from "./utf8-decoder.ts";

/** Far below every real score: a Unigram model never spells a control token out of a user's text. */
const UNREACHABLE_SCORE = -1e9;

/**
 * Opens a model that is no byte-pair encoding.
 * @throws {QuireError} `internal` naming the model type, decoder or normalized added token that is not supported.
 */
export function openFallback(tokenizerJson: unknown, addedTokens: readonly AddedToken[]): Tokenizer {
  return new UnigramTokenizer(asObject(tokenizerJson, "tokenizer.json"), addedTokens);
}

class UnigramTokenizer implements Tokenizer {
  readonly vocabularySize: number;
  readonly #first: HuggingFaceTokenizer;
  readonly #later: HuggingFaceTokenizer;
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
    this.#ids = vocabulary;
    const utf8 = new TextEncoder();
    for (const [token, id] of vocabulary) this.#bytes[id] = decoding.bytesOf(token);
    for (const { id, content } of addedTokens) {
      this.#ids.set(content, id);
      this.#bytes[id] = utf8.encode(content);
    }
    this.vocabularySize = this.#bytes.length;
    this.#specialIds = new Set(addedTokens.filter((token) => token.special).map((token) => token.id));
    this.#dropsFirstSpace = decoding.dropsFirstSpace;
    this.#all = new AddedTokenSplitter(addedTokens);
    this.#plain = new AddedTokenSplitter(addedTokens.filter((token) => !token.special));
    const specials = new Set(addedTokens.filter((token) => token.special).map((token) => token.content));
    const plainRoot = { ...root, added_tokens: [], post_processor: null, model: withoutSpecials(root.model, specials) };
    const options = { clean_up_tokenization_spaces: false };
    this.#first = new HuggingFaceTokenizer(plainRoot, options);
    const laterPreTokenizer = afterFirstSection(root.pre_tokenizer);
    this.#later =
      laterPreTokenizer === root.pre_tokenizer
        ? this.#first
        : new HuggingFaceTokenizer({ ...plainRoot, pre_tokenizer: laterPreTokenizer }, options);
  }

  encode(text: string, { special = false, countMax = Number.POSITIVE_INFINITY }: EncodeOptions = {}): number[] {
    const ids: number[] = [];
    for (const [index, section] of (special ? this.#all : this.#plain).split(text.toWellFormed()).entries()) {
      if (ids.length > countMax) break;
      if (typeof section === "number") {
        ids.push(section);
        continue;
      }
      const library = index === 0 ? this.#first : this.#later;
      const plain = special ? unmark(section) : section;
      for (const id of library.encode(plain, { add_special_tokens: false }).ids) ids.push(id);
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

function readVocabulary(model: JsonObject): Map<string, number> {
  const ids = new Map<string, number>();
  if (model.type === "Unigram") {
    for (const [id, entry] of asArray(model.vocab, "tokenizer.json: vocab").entries()) {
      ids.set(String(asArray(entry, "tokenizer.json: vocab entry")[0]), id);
    }
  } else {
    throw new QuireError("internal", `tokenizer.json: model ${model.type} is not supported`);
  }
  return ids;
}

function withoutSpecials(model: unknown, specials: ReadonlySet<string>): JsonObject {
  const fields = asObject(model, "tokenizer.json: model");
  const vocab = asArray(fields.vocab, "tokenizer.json: vocab").map((entry) => {
    const [token, score] = asArray(entry, "tokenizer.json: vocab entry");
    return specials.has(String(token)) ? [token, UNREACHABLE_SCORE] : [token, score];
  });
  return { ...fields, vocab };
}

/** A `Metaspace` that puts its space in front of the first section only puts none in front of later ones. */
function afterFirstSection(preTokenizer: unknown): unknown {
  if (!isObject(preTokenizer)) return preTokenizer;
  if (preTokenizer.type === "Metaspace" && preTokenizer.prepend_scheme === "first") {
    return { ...preTokenizer, prepend_scheme: "never", add_prefix_space: false };
  }
  if (preTokenizer.type !== "Sequence") return preTokenizer;
  const steps = asArray(preTokenizer.pretokenizers, "tokenizer.json: pretokenizers");
  const later = steps.map(afterFirstSection);
  return later.every((step, index) => step === steps[index]) ? preTokenizer : { ...preTokenizer, pretokenizers: later };
}
