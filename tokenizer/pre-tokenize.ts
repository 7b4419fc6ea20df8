/** Pre-tokenizers of tokenizer.json, compiled to a change of the text and steps that split it. */
import { QuireError } from "../protocol/errors.ts";
import { asArray, asObject, type JsonObject } from "./json.ts";
import { compilePattern } from "./oniguruma.ts";
import { BorderSplitter, PatternSplitter, type SplitBehavior, type Splitter } from "./splitters.ts";
import { gpt2Scanner, scannerOf } from "./word-scanner.ts";

/** A compiled pre-tokenizer. */
export interface PreTokenizer {
  /** Applied before splitting; `isFirst` for a text with nothing in front of it, not even an added token. */
  prepare: ((text: string, isFirst: boolean) => string) | undefined;
  /** Each splits the pieces of the one before. */
  steps: readonly Splitter[];
}

const BEHAVIORS: ReadonlySet<string> = new Set([
  "Isolated",
  "Contiguous",
  "MergedWithPrevious",
  "MergedWithNext",
] satisfies SplitBehavior[]);
const PUNCTUATION = /[!-/:-@[-`{-~\p{P}]/gu;

/**
 * Compiles `pre_tokenizer`.
 * @throws {QuireError} `internal` naming a pre-tokenizer that is not supported.
 */
export function compilePreTokenizer(config: unknown): PreTokenizer {
  let prepare: PreTokenizer["prepare"];
  const steps = flatten(config).flatMap((step, index) => {
    const ownPrepare = compilePrepare(step);
    if (ownPrepare !== undefined) {
      if (index > 0) throw unsupported(`${step.type} that changes the text, behind another,`);
      prepare = ownPrepare;
    }
    return compileStep(step);
  });
  return { prepare, steps };
}

/** True when the last step writes text in the alphabet of bytes. */
export function endsInBytes(config: unknown): boolean {
  return flatten(config).at(-1)?.type === "ByteLevel";
}

function flatten(config: unknown): JsonObject[] {
  if (config === null || config === undefined) return [];
  const step = asObject(config, "tokenizer.json: pre_tokenizer");
  if (step.type !== "Sequence") return [step];
  return asArray(step.pretokenizers, "tokenizer.json: pretokenizers").flatMap(flatten);
}

function compilePrepare(step: JsonObject): PreTokenizer["prepare"] {
  if (step.type === "ByteLevel" && step.add_prefix_space === true) {
    return (text) => (text.startsWith(" ") ? text : ` ${text}`);
  }
  if (step.type !== "Metaspace") return undefined;
  const space = metaspaceOf(step);
  const scheme = prependScheme(step);
  return (text, isFirst) => {
    const replaced = text.replaceAll(" ", space);
    const wanted = scheme === "always" || (scheme === "first" && isFirst);
    return wanted && !replaced.startsWith(space) ? space + replaced : replaced;
  };
}

/** Where a `Metaspace` puts its space in front: "always", "first" or "never". Old files have a flag instead. */
export function prependScheme(step: JsonObject): string {
  if (step.add_prefix_space === false) return "never";
  return typeof step.prepend_scheme === "string" ? step.prepend_scheme : "always";
}

function metaspaceOf(step: JsonObject): string {
  if (typeof step.replacement === "string" && step.replacement.length === 1) return step.replacement;
  throw unsupported("Metaspace without a replacement of one character");
}

function compileStep(step: JsonObject): Splitter[] {
  switch (step.type) {
    case "ByteLevel":
      return step.use_regex === false ? [] : [gpt2Scanner()];
    case "Metaspace":
      return step.split === false ? [] : [new BorderSplitter(metaspaceOf(step), { runs: false })];
    case "Split":
      return [compileSplit(step)];
    case "Digits":
      return [
        new PatternSplitter(/\p{N}/gu, {
          behavior: step.individual_digits === true ? "Isolated" : "Contiguous",
          invert: false,
        }),
      ];
    case "Punctuation":
      return [new PatternSplitter(PUNCTUATION, { behavior: behaviorOf(step, "Isolated"), invert: false })];
    default:
      throw unsupported(String(step.type));
  }
}

function compileSplit(step: JsonObject): Splitter {
  const pattern = asObject(step.pattern, "tokenizer.json: Split pattern");
  const scanner = typeof pattern.Regex === "string" ? scannerOf(pattern.Regex) : undefined;
  const isIsolated = step.behavior === "Isolated" && step.invert !== true;
  // Nothing is between the matches of these patterns, so removing what does not match is the same.
  const isInverse = step.behavior === "Removed" && step.invert === true;
  if (scanner !== undefined && (isIsolated || isInverse)) return scanner;
  return new PatternSplitter(compilePattern(pattern), { behavior: behaviorOf(step), invert: step.invert === true });
}

function behaviorOf(step: JsonObject, fallback?: SplitBehavior): SplitBehavior {
  const behavior = step.behavior ?? fallback;
  if (typeof behavior === "string" && BEHAVIORS.has(behavior)) return behavior as SplitBehavior;
  throw unsupported(`${step.type} with behavior ${behavior}`);
}

function unsupported(what: string): QuireError {
  return new QuireError("internal", `tokenizer.json: pre-tokenizer ${what} is not supported`);
}
