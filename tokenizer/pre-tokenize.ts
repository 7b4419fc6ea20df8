/** Normalizers and pre-tokenizers of byte-level models, compiled from tokenizer.json. */
import { QuireError } from "../protocol/errors.ts";
import { asArray, asObject, type JsonObject } from "./json.ts";
import { fromOniguruma } from "./oniguruma.ts";

/** Text to text. */
export type Normalize = (text: string) => string;
/** Pieces of a text in order; joined they are the text (with a space in front where the model asks for it). */
export type PreTokenize = (text: string) => readonly string[];

const GPT2_PATTERN = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const FORMS = new Set(["NFC", "NFD", "NFKC", "NFKD"]);

/**
 * Compiles `normalizer`; undefined when there is none.
 * @throws {QuireError} `internal` naming a normalizer that is not supported.
 */
export function compileNormalizer(config: unknown): Normalize | undefined {
  if (config === null || config === undefined) return undefined;
  const normalizer = asObject(config, "tokenizer.json: normalizer");
  const type = String(normalizer.type);
  if (FORMS.has(type)) return (text) => text.normalize(type);
  if (type === "Sequence") {
    const steps = asArray(normalizer.normalizers, "tokenizer.json: normalizers").map(compileNormalizer);
    const present = steps.filter((step) => step !== undefined);
    return present.length === 0 ? undefined : (text) => present.reduce((done, step) => step(done), text);
  }
  throw new QuireError("internal", `tokenizer.json: normalizer ${type} is not supported`);
}

/**
 * Compiles `pre_tokenizer`, whose last step must be `ByteLevel`; undefined when it leaves texts whole.
 * @throws {QuireError} `internal` naming a pre-tokenizer that is not supported.
 */
export function compilePreTokenizer(config: unknown): PreTokenize | undefined {
  const steps = flatten(config);
  if (steps.at(-1)?.type !== "ByteLevel") {
    throw new QuireError("internal", "tokenizer.json: the pre-tokenizer is not byte-level");
  }
  const splits = steps.flatMap(compileStep);
  if (splits.length === 0) return undefined;
  return (text) => {
    let pieces: readonly string[] = [text];
    for (const split of splits) pieces = pieces.length === 1 ? split(pieces[0] as string) : pieces.flatMap(split);
    return pieces;
  };
}

function flatten(config: unknown): JsonObject[] {
  if (config === null || config === undefined) return [];
  const step = asObject(config, "tokenizer.json: pre_tokenizer");
  if (step.type !== "Sequence") return [step];
  return asArray(step.pretokenizers, "tokenizer.json: pretokenizers").flatMap(flatten);
}

function compileStep(step: JsonObject): PreTokenize[] {
  switch (step.type) {
    case "ByteLevel": {
      const splits: PreTokenize[] = [];
      if (step.add_prefix_space === true) splits.push((text) => [text.startsWith(" ") ? text : ` ${text}`]);
      if (step.use_regex !== false) splits.push(isolate(fromOniguruma(GPT2_PATTERN)));
      return splits;
    }
    case "Split": {
      if (step.behavior === "Isolated" && step.invert !== true) return [isolate(compilePattern(step.pattern))];
      throw new QuireError("internal", `tokenizer.json: Split with behavior ${step.behavior} is not supported`);
    }
    case "Digits":
      return [isolate(step.individual_digits === true ? /\p{N}/gu : /\p{N}+/gu)];
    default:
      throw new QuireError("internal", `tokenizer.json: pre-tokenizer ${step.type} is not supported`);
  }
}

function compilePattern(config: unknown): RegExp {
  const pattern = asObject(config, "tokenizer.json: Split pattern");
  if (typeof pattern.Regex === "string") return fromOniguruma(pattern.Regex);
  if (typeof pattern.String === "string" && pattern.String !== "") {
    return new RegExp(pattern.String.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "gu");
  }
  throw new QuireError("internal", "tokenizer.json: Split pattern is missing");
}

/** Each match is a piece, and each stretch between matches. */
function isolate(pattern: RegExp): PreTokenize {
  return (text) => {
    const pieces: string[] = [];
    let copied = 0;
    for (const match of text.matchAll(pattern)) {
      if (match[0] === "") continue;
      if (match.index > copied) pieces.push(text.slice(copied, match.index));
      copied = match.index + match[0].length;
      pieces.push(match[0]);
    }
    if (copied < text.length) pieces.push(text.slice(copied));
    return pieces;
  };
}
