/** Models that are not byte-level BPE. */
import { QuireError } from "../protocol/errors.ts";
import type { AddedToken } from "./added-tokens.ts";
import type { Tokenizer } from "./contract.ts";
import { asObject, type JsonObject } from "./json.ts";

/** @throws {QuireError} `internal` naming the model type. */
export function openFallback(tokenizerJson: unknown, _config: JsonObject, _added: readonly AddedToken[]): Tokenizer {
  const model = asObject(asObject(tokenizerJson, "tokenizer.json")["model"], "tokenizer.json: model");
  throw new QuireError("internal", `tokenizer.json: model ${model["type"]} with this decoder is not supported`);
}
