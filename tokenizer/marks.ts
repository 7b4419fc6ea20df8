/**
 * Marks: how text of a user travels through a chat template without ever becoming a control token.
 *
 * A mark is one code point written as six noncharacters, U+FDD0 + one hexadecimal digit each. No special token contains
 * noncharacters, so a marked code point belongs to no special token. In every text the marks are put
 * - on the first code point of each occurrence of a special token,
 * - on the first and last code point of the text (and of the trimmed text) where it could be part of a special token that
 *   begins or ends outside of it, in the template or in a neighbouring text,
 * - on each of the sixteen noncharacters themselves, so that {@link unmark} gives back exactly what was there.
 * Marks are stateless: nothing but the text has to cross from rendering to encoding.
 */
const MARK_FIRST = 0xfdd0;
const MARK_DIGITS = 6;
const MARK_RUN = /[\uFDD0-\uFDDF]{6}/g;
const MARK_ANY = /[\uFDD0-\uFDDF]/;

/** True when `text` holds a character that marks are written in: such a token or template cannot be served. */
export function hasMarkCharacters(text: string): boolean {
  return MARK_ANY.test(text);
}

/**
 * Marks `text` (well-formed UTF-16) against the special tokens `specials` (non-empty, without mark characters).
 * Holds for templates that place the text whole, trimmed, or split at something: not for one that deletes from its middle.
 */
export function markText(text: string, specials: readonly string[]): string {
  const marked = new Set<number>();
  for (const special of specials) {
    for (let at = text.indexOf(special); at >= 0; at = text.indexOf(special, at + 1)) marked.add(at);
  }
  const from = text.length - text.trimStart().length;
  const to = text.trimEnd().length;
  for (const [start, end] of [
    [0, text.length],
    [from, to],
  ] as const) {
    if (start < end) markEnds(text, { start, end }, specials, marked);
  }
  if (marked.size === 0 && !MARK_ANY.test(text)) return text;
  return rewrite(text, marked);
}

/** Takes the marks out: the inverse of {@link markText}. */
export function unmark(text: string): string {
  return MARK_ANY.test(text) ? text.replace(MARK_RUN, unmarkOne) : text;
}

function markEnds(
  text: string,
  range: { start: number; end: number },
  specials: readonly string[],
  marked: Set<number>,
): void {
  const { start, end } = range;
  const headLengthMax = Math.max(0, ...specials.map((special) => special.length));
  const head = text.slice(start, Math.min(end, start + headLengthMax));
  const tail = text.slice(Math.max(start, end - headLengthMax), end);
  for (const special of specials) {
    for (let cut = 1; cut < special.length; cut++) {
      const rest = special.slice(cut);
      if (head.startsWith(rest) || (head.length === end - start && rest.startsWith(head))) marked.add(start);
      if (tail.endsWith(special.slice(0, cut))) marked.add(lastCodePointAt(text, end));
    }
  }
}

function lastCodePointAt(text: string, end: number): number {
  const unit = text.charCodeAt(end - 1);
  return unit >= 0xdc00 && unit <= 0xdfff && end >= 2 ? end - 2 : end - 1;
}

function rewrite(text: string, marked: ReadonlySet<number>): string {
  const parts: string[] = [];
  let copied = 0;
  const cuts = [...marked];
  for (const match of text.matchAll(/[\uFDD0-\uFDDF]/g)) cuts.push(match.index);
  cuts.sort((a, b) => a - b);
  for (const at of cuts) {
    if (at < copied) continue;
    const codePoint = text.codePointAt(at) as number;
    parts.push(text.slice(copied, at), markOne(codePoint));
    copied = at + (codePoint > 0xffff ? 2 : 1);
  }
  parts.push(text.slice(copied));
  return parts.join("");
}

function markOne(codePoint: number): string {
  let mark = "";
  for (let shift = (MARK_DIGITS - 1) * 4; shift >= 0; shift -= 4) {
    mark += String.fromCharCode(MARK_FIRST + ((codePoint >>> shift) & 15));
  }
  return mark;
}

function unmarkOne(mark: string): string {
  let codePoint = 0;
  for (let digit = 0; digit < MARK_DIGITS; digit++) codePoint = codePoint * 16 + (mark.charCodeAt(digit) - MARK_FIRST);
  return codePoint > 0x10ffff ? mark : String.fromCodePoint(codePoint);
}
