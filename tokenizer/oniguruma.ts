/**
 * Regular expressions of tokenizer.json are written for Oniguruma; this writes them for JavaScript with equal meaning, or
 * says that it cannot. The differences that matter: JavaScript's `\s` takes U+FEFF and not U+0085, its `\d`, `\w` are ASCII.
 */
import { QuireError } from "../protocol/errors.ts";
import type { JsonObject } from "./json.ts";

const WORD_SET = "\\p{L}\\p{M}\\p{N}\\p{Pc}";
/** Escapes that mean the same in both. */
const SAME_ESCAPES = new Set("ntrfv0123456789^$\\.*+?()[]{}|/");

/**
 * A pattern of tokenizer.json: `{"Regex": ...}` or `{"String": ...}` (taken literally), with flags `gu`.
 * @throws {QuireError} `internal` for one that is missing or has no equal here.
 */
export function compilePattern(pattern: JsonObject): RegExp {
  if (typeof pattern.Regex === "string") return fromOniguruma(pattern.Regex);
  if (typeof pattern.String === "string" && pattern.String !== "") {
    return new RegExp(pattern.String.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "gu");
  }
  throw new QuireError("internal", "tokenizer.json: a pattern is missing");
}

/**
 * @throws {QuireError} `internal` for what has no equal here (possessive quantifiers, line anchors, `\b`, nested sets).
 */
export function fromOniguruma(source: string): RegExp {
  let pattern = "";
  let inSet = false;
  for (let at = 0; at < source.length; at++) {
    const char = source.charAt(at);
    if (char === "\\") {
      const sequence = readEscape(source, at);
      pattern += writeEscape(sequence, inSet, source);
      at += sequence.length - 1;
    } else if (inSet) {
      if (char === "[" || source.startsWith("&&", at)) throw unsupported(source);
      if (char === "]") inSet = false;
      pattern += char;
    } else if (char === "[") {
      inSet = true;
      const negated = source.charAt(at + 1) === "^";
      pattern += negated ? "[^" : "[";
      if (negated) at++;
    } else if (char === "^" || char === "$") {
      throw unsupported(source);
    } else {
      pattern += char === "." ? "[^\\n]" : char;
    }
  }
  try {
    return new RegExp(pattern, "gu");
  } catch (cause) {
    throw unsupported(source, cause);
  }
}

function readEscape(source: string, at: number): string {
  const property = /^\\[pP]\{[^}]*\}/.exec(source.slice(at, at + 64));
  if (property !== null) return property[0];
  const unit = /^\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})/.exec(source.slice(at, at + 6));
  return unit === null ? source.slice(at, at + 2) : unit[0];
}

function writeEscape(sequence: string, inSet: boolean, source: string): string {
  const letter = sequence.charAt(1);
  if (sequence.length > 2) return letter === "p" || letter === "P" ? writeProperty(sequence) : sequence;
  switch (letter) {
    case "s":
      return "\\p{White_Space}";
    case "S":
      return "\\P{White_Space}";
    case "d":
      return "\\p{Nd}";
    case "D":
      return "\\P{Nd}";
    case "w":
      return inSet ? WORD_SET : `[${WORD_SET}]`;
    case "W":
      if (inSet) throw unsupported(source);
      return `[^${WORD_SET}]`;
    default:
      if (SAME_ESCAPES.has(letter) || (inSet && letter === "-")) return sequence;
      if (/^[^A-Za-z]$/.test(letter)) return letter;
      throw unsupported(source);
  }
}

/** `\p{Han}` is a script in JavaScript's terms, `\p{L}` a category. */
function writeProperty(sequence: string): string {
  const head = sequence.slice(0, 3);
  const name = sequence.slice(3, -1);
  for (const candidate of [name, `Script=${name}`]) {
    try {
      new RegExp(`\\p{${candidate}}`, "u");
      return `${head}${candidate}}`;
    } catch {
      // Not a property under this name: the next candidate, or the compiler's own complaint.
    }
  }
  return sequence;
}

function unsupported(source: string, cause?: unknown): QuireError {
  return new QuireError("internal", `tokenizer.json: this regular expression is not supported: ${source}`, { cause });
}
