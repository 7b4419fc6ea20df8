/** Reads `added_tokens` of tokenizer.json. */
import { QuireError } from "../protocol/errors.ts";
import type { AddedToken } from "./added-tokens.ts";
import { VOCABULARY_SIZE_MAX } from "./bpe-tables.ts";
import { asArray, asObject } from "./json.ts";
import { hasMarkCharacters } from "./marks.ts";

/** @throws {QuireError} `internal` for an entry that is malformed or holds characters that marks are written in. */
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

/** True for a number that can be an id of a vocabulary. */
export function isId(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value < VOCABULARY_SIZE_MAX;
}
