/** Added tokens: found in the text before anything else looks at it, leftmost first, longest among equals. */

/** An entry of `added_tokens` in tokenizer.json; the flags mean what they mean there. */
export interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  /** Looked for after normalizing instead of before. */
  normalized: boolean;
  /** Takes the white space to its left (right) with it. */
  lstrip: boolean;
  rstrip: boolean;
  /** Counts only between characters that are not part of a word. */
  singleWord: boolean;
}

/** Part of a text: what is between added tokens, or the id of one. */
export type Section = string | number;

/** `\w` of Rust's regular expressions, which is not Oniguruma's. */
const WORD_END = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]$/u;
const WORD_START = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const SPACE = /^\p{White_Space}$/u;

/** Splits texts at the tokens it was made with. */
export class AddedTokenSplitter {
  readonly #tokens: ReadonlyMap<string, AddedToken>;
  readonly #pattern: RegExp | undefined;

  constructor(tokens: readonly AddedToken[]) {
    this.#tokens = new Map(tokens.map((token) => [token.content, token]));
    const contents = [...this.#tokens.keys()].filter((content) => content !== "");
    contents.sort((a, b) => b.length - a.length);
    this.#pattern = contents.length === 0 ? undefined : new RegExp(contents.map(escapeForRegExp).join("|"), "g");
  }

  /** Sections of `text` in order; texts between tokens are never empty. */
  split(text: string): Section[] {
    if (this.#pattern === undefined) return text === "" ? [] : [text];
    const sections: Section[] = [];
    let copied = 0;
    for (const match of text.matchAll(this.#pattern)) {
      const token = this.#tokens.get(match[0]) as AddedToken;
      let start = match.index;
      let end = start + match[0].length;
      if (start < copied) continue;
      if (token.singleWord && (WORD_END.test(around(text, start, -1)) || WORD_START.test(around(text, end, 1))))
        continue;
      if (token.lstrip) while (start > copied && SPACE.test(text.charAt(start - 1))) start--;
      if (token.rstrip) while (end < text.length && SPACE.test(text.charAt(end))) end++;
      if (start > copied) sections.push(text.slice(copied, start));
      sections.push(token.id);
      copied = end;
    }
    if (copied < text.length) sections.push(text.slice(copied));
    return sections;
  }
}

/** The code point before (-1) or after (1) a border, as two units at most. */
function around(text: string, at: number, direction: -1 | 1): string {
  return direction < 0 ? text.slice(Math.max(0, at - 2), at) : text.slice(at, at + 2);
}

function escapeForRegExp(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&");
}
