/**
 * SentencePiece-style models (BPE with byte fallback, Unigram) through @huggingface/tokenizers: slow, but right. The library
 * only encodes text between added tokens; splitting, marks and decoding are ours, so that streams and control tokens keep
 * the contract's promises.
 */
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { QuireError } from "../protocol/errors.ts";
import { type AddedToken, AddedTokenSplitter } from "./added-tokens.ts";
import type { IncrementalDecoder, Tokenizer } from "./contract.ts";
import { asArray, asObject, isObject, type JsonObject } from "./json.ts";
import { unmark } from "./marks.ts";
import { Utf8Decoder } from "./utf8-decoder.ts";

/** Far below every real score: a Unigram model never spells a control token out of a user's text. */
const UNREACHABLE_SCORE = -1e9;

/**
 * Opens a model that is not byte-level BPE.
 * @throws {QuireError} `internal` naming the model type, decoder or normalized added token that is not supported.
 */
export function openFallback(tokenizerJson: unknown, addedTokens: readonly AddedToken[]): Tokenizer {
  return new SentencePieceTokenizer(asObject(tokenizerJson, "tokenizer.json"), addedTokens);
}

class SentencePieceTokenizer implements Tokenizer {
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

  encode(text: string, options: { special?: boolean } = {}): number[] {
    const special = options.special === true;
    const ids: number[] = [];
    for (const [index, section] of (special ? this.#all : this.#plain).split(text.toWellFormed()).entries()) {
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
  } else if (model.type === "BPE") {
    for (const [token, id] of Object.entries(asObject(model.vocab, "tokenizer.json: vocab")))
      ids.set(token, Number(id));
  } else {
    throw new QuireError("internal", `tokenizer.json: model ${model.type} is not supported`);
  }
  return ids;
}

function withoutSpecials(model: unknown, specials: ReadonlySet<string>): JsonObject {
  const fields = asObject(model, "tokenizer.json: model");
  if (fields.type !== "Unigram") return fields;
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

interface Decoding {
  bytesOf(token: string): Uint8Array;
  /** One space at the very start of a decoded text is the model's own and left out. */
  dropsFirstSpace: boolean;
}

/** Reads the decoders that work token by token: Replace, ByteFallback, Fuse, Strip of one leading space; or Metaspace. */
function readDecoder(config: unknown): Decoding {
  const replacements: [string, string][] = [];
  let byteFallback = false;
  let dropsFirstSpace = false;
  for (const step of flattenDecoder(config)) {
    const pattern = isObject(step.pattern) ? step.pattern.String : undefined;
    if (step.type === "Replace" && typeof pattern === "string") {
      replacements.push([pattern, String(step.content)]);
    } else if (step.type === "Metaspace") {
      replacements.push([String(step.replacement), " "]);
      dropsFirstSpace = step.prepend_scheme !== "never" && step.add_prefix_space !== false;
    } else if (step.type === "ByteFallback") {
      byteFallback = true;
    } else if (step.type === "Strip" && step.content === " " && step.start === 1 && step.stop === 0) {
      dropsFirstSpace = true;
    } else if (step.type !== "Fuse") {
      throw new QuireError("internal", `tokenizer.json: decoder ${step.type} is not supported`);
    }
  }
  const utf8 = new TextEncoder();
  return {
    dropsFirstSpace,
    bytesOf: (token) => {
      const byte = byteFallback ? /^<0x([0-9A-F]{2})>$/.exec(token) : null;
      if (byte !== null) return Uint8Array.of(Number.parseInt(byte[1] as string, 16));
      return utf8.encode(replacements.reduce((text, [from, to]) => text.replaceAll(from, to), token));
    },
  };
}

function flattenDecoder(config: unknown): JsonObject[] {
  const decoder = asObject(config, "tokenizer.json: decoder");
  if (decoder.type !== "Sequence") return [decoder];
  return asArray(decoder.decoders, "tokenizer.json: decoders").flatMap(flattenDecoder);
}
