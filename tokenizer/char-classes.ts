/** Classes of code points as pre-tokenizers tell them apart; each code point has exactly one. */

/** `\p{L}` */
export const LETTER = 1;
/** `\p{N}` */
export const NUMBER = 2;
/** Neither letter, number nor white space. */
export const OTHER = 3;
/** White space (Unicode's `White_Space`, Oniguruma's `\s`) but CR and LF. Classes from here on are white space. */
export const SPACE = 4;
/** CR and LF. */
export const NEWLINE = 5;

const CODE_POINT_COUNT = 0x110000;

/** Remembers the class of every code point it was asked about: a byte each, filled as texts need them. */
export class CharClasses {
  readonly #known = new Uint8Array(CODE_POINT_COUNT);

  /** The class of a code point. */
  of(codePoint: number): number {
    return (this.#known[codePoint] as number) || this.#classify(codePoint);
  }

  /** The first place in `units[at..end]` whose code point is not of class `wanted`, or `end`. */
  runEnd(units: Uint16Array, range: { at: number; end: number }, wanted: number): number {
    const { end } = range;
    let at = range.at;
    while (at < end) {
      const codePoint = codePointAt(units, at);
      if (this.of(codePoint) !== wanted) break;
      at += codePoint > 0xffff ? 2 : 1;
    }
    return at;
  }

  #classify(codePoint: number): number {
    const char = String.fromCodePoint(codePoint);
    let found = OTHER;
    if (/\p{L}/u.test(char)) found = LETTER;
    else if (/\p{N}/u.test(char)) found = NUMBER;
    else if (char === "\n" || char === "\r") found = NEWLINE;
    else if (/\p{White_Space}/u.test(char)) found = SPACE;
    this.#known[codePoint] = found;
    return found;
  }
}

/** The code point at a place of well-formed UTF-16 that is not the second half of a pair. */
export function codePointAt(units: Uint16Array, at: number): number {
  const unit = units[at] as number;
  if ((unit & 0xfc00) !== 0xd800) return unit;
  return 0x10000 + ((unit & 0x3ff) << 10) + ((units[at + 1] as number) & 0x3ff);
}
