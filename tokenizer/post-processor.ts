/** Post-processors of tokenizer.json: which tokens the model expects around a text that is encoded on its own. */
import { QuireError } from "../protocol/errors.ts";
import { asArray, asObject, isObject, type JsonObject } from "./json.ts";

/** Ids in front of and behind a text (`<s>`, `</s>`). Encoding never adds them: whoever starts a log does. */
export interface Frame {
  before: readonly number[];
  after: readonly number[];
}

/**
 * Reads the template for one text of `TemplateProcessing`, alone or in a `Sequence`. `ByteLevel` concerns offsets only.
 * @throws {QuireError} `internal` naming a post-processor that is not supported, or a template that makes no sense.
 */
export function readFrame(postProcessor: unknown): Frame {
  const before: number[] = [];
  const after: number[] = [];
  for (const step of flatten(postProcessor)) {
    if (step.type === "ByteLevel") continue;
    if (step.type !== "TemplateProcessing") {
      throw new QuireError("internal", `tokenizer.json: post-processor ${step.type} is not supported`);
    }
    let side = before;
    for (const entry of asArray(step.single, "tokenizer.json: single")) {
      const item = asObject(entry, "tokenizer.json: template");
      if (isObject(item.Sequence)) side = after;
      else side.push(...idsOf(step, asObject(item.SpecialToken, "tokenizer.json: SpecialToken").id));
    }
  }
  return { before, after };
}

function flatten(config: unknown): JsonObject[] {
  if (config === null || config === undefined) return [];
  const step = asObject(config, "tokenizer.json: post_processor");
  if (step.type !== "Sequence") return [step];
  return asArray(step.processors, "tokenizer.json: processors").flatMap(flatten);
}

function idsOf(step: JsonObject, name: unknown): number[] {
  const tokens = asObject(step.special_tokens, "tokenizer.json: special_tokens");
  const token = asObject(tokens[String(name)], `tokenizer.json: special token ${name}`);
  return asArray(token.ids, "tokenizer.json: ids").map(Number);
}
