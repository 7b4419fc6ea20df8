/** The compiled form of a byte-pair encoding: flat tables, and what little is left of tokenizer.json. */
import { QuireError } from "../protocol/errors.ts";
import { faultOfCharSlots } from "./char-table.ts";
import type { JsonObject } from "./json.ts";
import { faultOfMergeSlots } from "./merge-table.ts";
import { type ByteStrings, faultOfByteStrings, faultOfTokenSlots } from "./token-table.ts";

/** What encoding and decoding read. Ids are below `vocabularySize`. */
export interface BpeTables {
  /** What merging starts from: bytes (GPT-2 and its family) or characters (SentencePiece's family). */
  kind: "bytes" | "characters";
  vocabularySize: number;
  /** Id of each byte; -1 where there is none (only with characters, which fall back to bytes). [256] */
  byteIds: Int32Array;
  /** {@link CharTable}: ids of single characters; empty with bytes. */
  charSlots: Int32Array;
  /** {@link MergeTable}. */
  mergeSlots: Int32Array;
  /** {@link TokenTable} over `contents`: the vocabulary, without added tokens that are only added. */
  tokenSlots: Int32Array;
  /** Tokens as the vocabulary writes them, in UTF-8; with bytes they are `texts`. */
  contents: ByteStrings;
  /** Bytes that each id decodes to. */
  texts: ByteStrings;
  /** tokenizer.json without `model.vocab` and `model.merges`. */
  settings: JsonObject;
}

/** The most ids a vocabulary may have here. */
export const VOCABULARY_SIZE_MAX = 2 ** 22;

/**
 * Checks tables that were read from a file: after this every look-up ends and stays inside of them.
 * @throws {QuireError} `internal` naming the first fault.
 */
export function checkTables(tables: BpeTables): void {
  const { vocabularySize: size } = tables;
  const fault =
    (tables.byteIds.length === 256 ? undefined : "there are not 256 bytes") ??
    faultOfByteIds(tables.byteIds, tables.kind === "bytes" ? 0 : -1, size) ??
    (tables.kind === "characters" ? faultOfCharSlots(tables.charSlots, size) : undefined) ??
    faultOfMergeSlots(tables.mergeSlots, size) ??
    faultOfTokenSlots(tables.tokenSlots, size) ??
    faultOfStrings(tables.contents, size) ??
    faultOfStrings(tables.texts, size);
  if (fault !== undefined) throw new QuireError("internal", `The compiled tokenizer cannot be used: ${fault}.`);
}

function faultOfByteIds(ids: Int32Array, least: number, size: number): string | undefined {
  return ids.every((id) => id >= least && id < size) ? undefined : "a byte has an id outside of the vocabulary";
}

function faultOfStrings(strings: ByteStrings, size: number): string | undefined {
  return strings.offsets.length === size + 1 ? faultOfByteStrings(strings) : "there are not as many tokens as ids";
}
