/** Normalizers of tokenizer.json. */
import { QuireError } from "../protocol/errors.ts";
import { asArray, asObject, type JsonObject } from "./json.ts";
import { type NormalForm, normalizeText } from "./mark-order.ts";
import { compilePattern } from "./oniguruma.ts";

/** Text to text. */
export type Normalize = (text: string) => string;

/** A compiled normalizer. */
export interface Normalizer {
  normalize: Normalize;
  /** The same without what is put in front: for text that was normalized and has changed since. */
  again: Normalize;
  /** True when something is put in front of texts. */
  prepends: boolean;
}

const FORMS: ReadonlySet<string> = new Set(["NFC", "NFD", "NFKC", "NFKD"] satisfies NormalForm[]);

/**
 * Compiles `normalizer`; undefined when there is none.
 * @throws {QuireError} `internal` naming a normalizer that is not supported.
 */
export function compileNormalizer(config: unknown): Normalizer | undefined {
  const steps = flatten(config).map((step) => ({ run: compileStep(step), prepends: step.type === "Prepend" }));
  if (steps.length === 0) return undefined;
  const chain =
    (kept: typeof steps): Normalize =>
    (text) =>
      kept.reduce((done, step) => step.run(done), text);
  const again = steps.filter((step) => !step.prepends);
  return { normalize: chain(steps), again: chain(again), prepends: again.length < steps.length };
}

function flatten(config: unknown): JsonObject[] {
  if (config === null || config === undefined) return [];
  const step = asObject(config, "tokenizer.json: normalizer");
  if (step.type !== "Sequence") return [step];
  return asArray(step.normalizers, "tokenizer.json: normalizers").flatMap(flatten);
}

function compileStep(step: JsonObject): Normalize {
  const type = String(step.type);
  if (FORMS.has(type)) return (text) => normalizeText(text, type as NormalForm);
  switch (type) {
    case "Lowercase":
      return lowercase;
    case "Prepend": {
      const front = String(step.prepend);
      return (text) => (text === "" ? "" : front + text);
    }
    case "Replace": {
      const pattern = asObject(step.pattern, "tokenizer.json: Replace pattern");
      const content = String(step.content);
      if (typeof pattern.String === "string") {
        const from = pattern.String;
        return (text) => text.replaceAll(from, () => content);
      }
      const regex = compilePattern(pattern);
      return (text) => text.replace(regex, () => content);
    }
    default:
      throw new QuireError("internal", `tokenizer.json: normalizer ${type} is not supported`);
  }
}

/** Each character on its own: JavaScript alone would write a sigma at the end of a word in another way. */
function lowercase(text: string): string {
  return text
    .split("Σ")
    .map((part) => part.toLowerCase())
    .join("σ");
}
