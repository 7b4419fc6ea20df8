/** Compiles tokenizer.json of a byte-pair encoding into flat tables. */
import { QuireError } from "../protocol/errors.ts";
import { isId, readAddedTokens } from "./added-token-list.ts";
import type { AddedToken } from "./added-tokens.ts";
import type { BpeTables } from "./bpe-tables.ts";
import { BYTE_TO_CHAR, tokenToBytes } from "./byte-alphabet.ts";
import { buildCharSlots } from "./char-table.ts";
import { asArray, asObject, isObject, type JsonObject } from "./json.ts";
import { buildMergeSlots } from "./merge-table.ts";
import { endsInBytes } from "./pre-tokenize.ts";
import { byteOfToken, readDecoder } from "./token-bytes.ts";
import { buildTokenSlots, layOutByteStrings } from "./token-table.ts";

/** True when tokenizer.json describes a byte-pair encoding, supported here or not. */
export function isBpe(tokenizerJson: unknown): boolean {
  return isObject(tokenizerJson) && isObject(tokenizerJson.model) && tokenizerJson.model.type === "BPE";
}

/**
 * Keeps nothing of the vocabulary; `settings` shares the rest of `tokenizerJson`. Special tokens are left out of the tables
 * that text is looked up in: no text becomes a control token by merging.
 * @throws {QuireError} `internal` naming what is malformed or not supported.
 */
export function buildTables(tokenizerJson: unknown): BpeTables {
  const root = asObject(tokenizerJson, "tokenizer.json");
  const model = asObject(root.model, "tokenizer.json: model");
  refuseUnsupported(model);
  const { vocab, merges, ...rest } = model;
  const idByContent = readVocabulary(vocab);
  const added = readAddedTokens(root.added_tokens);
  const specialIds = new Set(added.filter((token) => token.special).map((token) => token.id));
  const strings = layOutStrings(root, idByContent, added);
  const isBytes = strings.texts === strings.contents;
  return {
    kind: isBytes ? "bytes" : "characters",
    vocabularySize: strings.texts.offsets.length - 1,
    byteIds: isBytes ? alphabetIds(idByContent) : fallbackIds(idByContent),
    charSlots: isBytes ? new Int32Array(0) : buildCharSlots(readCharacters(idByContent, specialIds)),
    mergeSlots: buildMergeSlots(readMerges(merges, idByContent).filter((merge) => !specialIds.has(merge.merged))),
    tokenSlots: buildTokenSlots([...idByContent.values()], strings.contents),
    ...strings,
    settings: { ...root, model: rest },
  };
}

function refuseUnsupported(model: JsonObject): void {
  for (const field of ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]) {
    const value = model[field];
    if (value !== null && value !== undefined && value !== "" && value !== 0) {
      throw new QuireError("internal", `tokenizer.json: ${field} of a BPE model is not supported`);
    }
  }
}

function readVocabulary(vocab: unknown): Map<string, number> {
  const idByContent = new Map<string, number>();
  const idOf = asObject(vocab, "tokenizer.json: vocab");
  // Not by entries: those of a large vocabulary take twice as long.
  for (const token of Object.keys(idOf)) {
    const id = idOf[token];
    if (!isId(id)) throw new QuireError("internal", "tokenizer.json: an id of the vocabulary is not a number");
    idByContent.set(token, id);
  }
  return idByContent;
}

function readMerges(merges: unknown, idByContent: ReadonlyMap<string, number>) {
  return asArray(merges, "tokenizer.json: merges").map((merge) => {
    const pair = typeof merge === "string" ? merge.split(" ") : asArray(merge, "tokenizer.json: merge");
    const leftToken = String(pair[0]);
    const rightToken = String(pair[1]);
    const left = idByContent.get(leftToken);
    const right = idByContent.get(rightToken);
    const merged = idByContent.get(leftToken + rightToken);
    if (pair.length !== 2 || left === undefined || right === undefined || merged === undefined) {
      throw new QuireError("internal", "tokenizer.json: a merge is not of two tokens of the vocabulary into a third");
    }
    return { left, right, merged };
  });
}

/** Contents and texts are the same object where text is merged from bytes. */
function layOutStrings(root: JsonObject, idByContent: ReadonlyMap<string, number>, added: readonly AddedToken[]) {
  const decoding = readDecoder(root.decoder);
  const isBytes = endsInBytes(root.pre_tokenizer);
  if (isBytes !== (isObject(root.decoder) && root.decoder.type === "ByteLevel")) {
    throw new QuireError("internal", "tokenizer.json: of pre-tokenizer and decoder only one is byte-level");
  }
  const utf8 = new TextEncoder();
  const layOut = (bytesOf: (token: string) => Uint8Array) => {
    const byId: (Uint8Array | undefined)[] = [];
    for (const [token, id] of idByContent) byId[id] = bytesOf(token);
    for (const token of added) byId[token.id] = utf8.encode(token.content);
    return layOutByteStrings(Array.from(byId));
  };
  const texts = layOut(isBytes ? (token) => tokenToBytes(token) ?? utf8.encode(token) : decoding.bytesOf);
  return { texts, contents: isBytes ? texts : layOut((token) => utf8.encode(token)) };
}

function alphabetIds(idByContent: ReadonlyMap<string, number>): Int32Array {
  return Int32Array.from(BYTE_TO_CHAR, (char) => {
    const id = idByContent.get(char);
    if (id === undefined) throw new QuireError("internal", "tokenizer.json: the vocabulary lacks a token of one byte");
    return id;
  });
}

function fallbackIds(idByContent: ReadonlyMap<string, number>): Int32Array {
  const ids = new Int32Array(256).fill(-1);
  for (const [token, id] of idByContent) {
    const byte = byteOfToken(token);
    if (byte !== undefined) ids[byte] = id;
  }
  return ids;
}

function readCharacters(idByContent: ReadonlyMap<string, number>, specialIds: ReadonlySet<number>) {
  const entries: [number, number][] = [];
  for (const [token, id] of idByContent) {
    const codePoint = token.codePointAt(0);
    if (codePoint === undefined || token.length !== (codePoint > 0xffff ? 2 : 1) || specialIds.has(id)) continue;
    entries.push([codePoint, id]);
  }
  return entries;
}
