/**
 * The pre-tokenizer patterns that nearly all byte-level models are published with, as scanners: the same pieces as the
 * regular expressions, several times faster, one pass, and independent of a runtime's Unicode case folding. All of them
 * cover a text without gaps.
 */
import { CharClasses, codePointAt, LETTER, NEWLINE, NUMBER, OTHER, SPACE } from "./char-classes.ts";
import type { Bounds, Splitter, Text } from "./splitters.ts";

/** Where the published patterns differ. */
interface Dialect {
  /** `(?i:'s|'t|...)` instead of `'s|'t|...`. */
  contractionsIgnoreCase: boolean;
  /** GPT-2: a space goes with the letters or digits behind it, and line breaks are as other white space. */
  gpt2: boolean;
  /** Digits of one piece. */
  digitsMax: number;
}

const GPT2_PATTERN = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const withDigits = (digits: string): string =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|` +
  "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const DIALECTS: ReadonlyMap<string, Dialect> = new Map([
  [GPT2_PATTERN, { contractionsIgnoreCase: false, gpt2: true, digitsMax: Number.POSITIVE_INFINITY }],
  // cl100k (GPT-4) and Llama 3.
  [withDigits("\\p{N}{1,3}"), { contractionsIgnoreCase: true, gpt2: false, digitsMax: 3 }],
  // Qwen2, Qwen2.5, Qwen3.
  [withDigits("\\p{N}"), { contractionsIgnoreCase: true, gpt2: false, digitsMax: 1 }],
]);

const APOSTROPHE = 0x27;
const BLANK = 0x20;
/** Folds to `s`: `(?i:'s)` takes it too. */
const LONG_S = 0x17f;

/** The scanner of a published pattern, or undefined for one that is not known. */
export function scannerOf(pattern: string): Splitter | undefined {
  const dialect = DIALECTS.get(pattern);
  return dialect === undefined ? undefined : new WordScanner(dialect);
}

/** The scanner of GPT-2's pattern, which `ByteLevel` with `use_regex` stands for. */
export function gpt2Scanner(): Splitter {
  return scannerOf(GPT2_PATTERN) as Splitter;
}

class WordScanner implements Splitter {
  readonly #dialect: Dialect;
  readonly #classes = new CharClasses();

  constructor(dialect: Dialect) {
    this.#dialect = dialect;
  }

  split({ units }: Text, range: { from: number; end: number }, out: Bounds): void {
    const { end } = range;
    for (let at = range.from; at < end; ) {
      at = this.#dialect.gpt2 ? this.#pieceEndGpt2(units, at, end) : this.#pieceEnd(units, at, end);
      out.push(at);
    }
  }

  #pieceEndGpt2(units: Uint16Array, at: number, end: number): number {
    const unit = units[at] as number;
    if (unit === APOSTROPHE) {
      const contraction = contractionEnd(units, { at, end }, false);
      if (contraction > 0) return contraction;
    }
    const body = unit === BLANK && at + 1 < end ? at + 1 : at;
    const found = this.#classes.of(codePointAt(units, body));
    if (found < SPACE) return this.#classes.runEnd(units, { at: body, end }, found);
    return this.#blankEnd(at, this.#whiteEnd(units, at, end), end);
  }

  #pieceEnd(units: Uint16Array, at: number, end: number): number {
    const classes = this.#classes;
    const codePoint = codePointAt(units, at);
    if (codePoint === APOSTROPHE) {
      const contraction = contractionEnd(units, { at, end }, this.#dialect.contractionsIgnoreCase);
      if (contraction > 0) return contraction;
    }
    const found = classes.of(codePoint);
    if (found === LETTER) return classes.runEnd(units, { at, end }, LETTER);
    if (found === NUMBER) return this.#digitsEnd(units, at, end);
    const next = at + (codePoint > 0xffff ? 2 : 1);
    const nextFound = next < end ? classes.of(codePointAt(units, next)) : 0;
    if (found !== NEWLINE && nextFound === LETTER) return classes.runEnd(units, { at: next, end }, LETTER);
    if (found === OTHER || (codePoint === BLANK && nextFound === OTHER)) {
      const marks = classes.runEnd(units, { at: found === OTHER ? at : next, end }, OTHER);
      return classes.runEnd(units, { at: marks, end }, NEWLINE);
    }
    const white = this.#whiteEnd(units, at, end);
    for (let last = white - 1; last >= at; last--) {
      const candidate = units[last] as number;
      if (candidate === 0x0a || candidate === 0x0d) return last + 1;
    }
    return this.#blankEnd(at, white, end);
  }

  #digitsEnd(units: Uint16Array, from: number, end: number): number {
    let at = from;
    for (let count = 0; count < this.#dialect.digitsMax && at < end; count++) {
      const codePoint = codePointAt(units, at);
      if (this.#classes.of(codePoint) !== NUMBER) break;
      at += codePoint > 0xffff ? 2 : 1;
    }
    return at;
  }

  /** White space is never outside of the basic plane: units do. */
  #whiteEnd(units: Uint16Array, from: number, end: number): number {
    let at = from;
    while (at < end && this.#classes.of(units[at] as number) >= SPACE) at++;
    return at;
  }

  /** `\s+(?!\S)|\s+`: the last white space before a word goes with the word, unless it is alone. */
  #blankEnd(at: number, white: number, end: number): number {
    return white === end || white - at === 1 ? white : white - 1;
  }
}

/** Where a contraction that begins with the apostrophe at `at` ends, or 0. */
function contractionEnd(units: Uint16Array, { at, end }: { at: number; end: number }, ignoreCase: boolean): number {
  const lower = (index: number): number => {
    const unit = index < end ? (units[index] as number) : 0;
    if (!ignoreCase) return unit;
    if (unit === LONG_S) return 0x73;
    return unit >= 0x41 && unit <= 0x5a ? unit + 0x20 : unit;
  };
  switch (String.fromCharCode(lower(at + 1))) {
    case "s":
    case "t":
    case "m":
    case "d":
      return at + 2;
    case "r":
    case "v":
      return lower(at + 2) === 0x65 ? at + 3 : 0;
    case "l":
      return lower(at + 2) === 0x6c ? at + 3 : 0;
    default:
      return 0;
  }
}
