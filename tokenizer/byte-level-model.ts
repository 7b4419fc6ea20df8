/** Compiles tokenizer.json of a byte-level BPE model into flat tables. */
import { QuireError } from "../protocol/errors.ts";
import type { AddedToken } from "./added-tokens.ts";
import { BYTE_TO_CHAR, tokenToBytes } from "./byte-alphabet.ts";
import { asArray, asObject, isObject, type JsonObject } from "./json.ts";
import { hasMarkCharacters } from "./marks.ts";
import { MergeTable } from "./merge-table.ts";
import { compileNormalizer, compilePreTokenizer, type Normalize, type PreTokenize } from "./pre-tokenize.ts";

/** A compiled model: what encoding and decoding read, and nothing else. */
export interface ByteLevelModel {
  /** Tokens of the vocabulary in the byte alphabet, and added tokens as they are. */
  idByContent: ReadonlyMap<string, number>;
  /** Id of each byte. [256] */
  byteIds: Int32Array;
  merges: MergeTable;
  /** A piece that is a token as a whole is that token, whatever the merges say. */
  ignoreMerges: boolean;
  /** Bytes of id i are `bytes[offsets[i]..offsets[i + 1]]`. offsets: [vocabularySize + 1] */
  offsets: Uint32Array;
  bytes: Uint8Array;
  addedTokens: readonly AddedToken[];
  specialIds: ReadonlySet<number>;
  normalize: Normalize | undefined;
  preTokenize: PreTokenize | undefined;
}

/** True when tokenizer.json describes a byte-level BPE model, supported here or not. */
export function isByteLevelBpe(tokenizerJson: unknown): boolean {
  if (!isObject(tokenizerJson) || !isObject(tokenizerJson.model) || tokenizerJson.model.type !== "BPE") return false;
  const decoder = tokenizerJson.decoder;
  return isObject(decoder) && decoder.type === "ByteLevel";
}

/**
 * Keeps nothing of `tokenizerJson`.
 * @throws {QuireError} `internal` naming what is malformed or not supported.
 */
export function compileByteLevelModel(tokenizerJson: unknown): ByteLevelModel {
  const root = asObject(tokenizerJson, "tokenizer.json");
  const model = asObject(root.model, "tokenizer.json: model");
  refuseUnsupported(model);
  const idByContent = readVocabulary(model.vocab);
  const byteIds = Int32Array.from(BYTE_TO_CHAR, (char) => {
    const id = idByContent.get(char);
    if (id === undefined) throw new QuireError("internal", "tokenizer.json: the vocabulary lacks a token of one byte");
    return id;
  });
  const merges = new MergeTable(readMerges(model.merges, idByContent));
  const addedTokens = readAddedTokens(root.added_tokens);
  const { offsets, bytes } = layOutBytes(idByContent, addedTokens);
  for (const token of addedTokens) idByContent.set(token.content, token.id);
  return {
    idByContent,
    byteIds,
    merges,
    ignoreMerges: model.ignore_merges === true,
    offsets,
    bytes,
    addedTokens,
    specialIds: new Set(addedTokens.filter((token) => token.special).map((token) => token.id)),
    normalize: compileNormalizer(root.normalizer),
    preTokenize: compilePreTokenizer(root.pre_tokenizer),
  };
}

/**
 * Reads `added_tokens`.
 * @throws {QuireError} `internal` for an entry that is malformed or holds characters that marks are written in.
 */
export function readAddedTokens(list: unknown): AddedToken[] {
  return asArray(list, "tokenizer.json: added_tokens").map((entry) => {
    const token = asObject(entry, "tokenizer.json: added token");
    const { id, content } = token;
    if (typeof content !== "string" || content === "" || !isId(id)) {
      throw new QuireError("internal", "tokenizer.json: an added token has no content or id");
    }
    if (hasMarkCharacters(content)) {
      throw new QuireError("internal", "tokenizer.json: an added token with U+FDD0 to U+FDDF is not supported");
    }
    return {
      id,
      content,
      special: token.special === true,
      normalized: token.normalized === true,
      lstrip: token.lstrip === true,
      rstrip: token.rstrip === true,
      singleWord: token.single_word === true,
    };
  });
}

function refuseUnsupported(model: JsonObject): void {
  for (const field of ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]) {
    const value = model[field];
    if (value !== null && value !== undefined && value !== "" && value !== 0) {
      throw new QuireError("internal", `tokenizer.json: ${field} of a byte-level model is not supported`);
    }
  }
}

function readVocabulary(vocab: unknown): Map<string, number> {
  const idByContent = new Map<string, number>();
  for (const [token, id] of Object.entries(asObject(vocab, "tokenizer.json: vocab"))) {
    if (!isId(id)) throw new QuireError("internal", "tokenizer.json: an id of the vocabulary is not a number");
    idByContent.set(token, id);
  }
  return idByContent;
}

function readMerges(merges: unknown, idByContent: ReadonlyMap<string, number>) {
  return asArray(merges, "tokenizer.json: merges").map((merge) => {
    const pair = typeof merge === "string" ? merge.split(" ") : asArray(merge, "tokenizer.json: merge");
    const [leftToken, rightToken] = pair;
    const left = idByContent.get(String(leftToken));
    const right = idByContent.get(String(rightToken));
    const merged = idByContent.get(`${leftToken}${rightToken}`);
    if (pair.length !== 2 || left === undefined || right === undefined || merged === undefined) {
      throw new QuireError("internal", "tokenizer.json: a merge is not of two tokens of the vocabulary into a third");
    }
    return { left, right, merged };
  });
}

function layOutBytes(idByContent: ReadonlyMap<string, number>, addedTokens: readonly AddedToken[]) {
  const utf8 = new TextEncoder();
  const bytesById: (Uint8Array | undefined)[] = [];
  for (const [token, id] of idByContent) bytesById[id] = tokenToBytes(token) ?? utf8.encode(token);
  for (const token of addedTokens) bytesById[token.id] = utf8.encode(token.content);
  const offsets = new Uint32Array(bytesById.length + 1);
  for (let id = 0; id < bytesById.length; id++)
    offsets[id + 1] = (offsets[id] as number) + (bytesById[id]?.length ?? 0);
  const bytes = new Uint8Array(offsets[bytesById.length] as number);
  for (const [id, piece] of bytesById.entries()) if (piece !== undefined) bytes.set(piece, offsets[id]);
  return { offsets, bytes };
}

function isId(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value < 2 ** 24;
}
