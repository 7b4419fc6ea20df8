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
 * What marks texts (well-formed UTF-16) against the special tokens `specials` (non-empty, without mark characters).
 * Holds for templates that place the text whole, trimmed, or split at something: not for one that deletes from its middle.
 */
export function textMarker(specials: readonly string[]): (text: string) => string {
  const parts = partsOf(specials);
  return (text) => {
    const marked = new Set<number>();
    for (const special of specials) {
      for (let at = text.indexOf(special); at >= 0; at = text.indexOf(special, at + 1)) marked.add(at);
    }
    const start = text.length - text.trimStart().length;
    const end = text.trimEnd().length;
    if (text.length > 0) markEnds(text, { start: 0, end: text.length }, parts, marked);
    const isTrimmed = start > 0 || end < text.length;
    if (isTrimmed && start < end) markEnds(text, { start, end }, parts, marked);
    if (marked.size === 0 && !MARK_ANY.test(text)) return text;
    return rewrite(text, marked);
  };
}

/** Proper parts of special tokens, by the code unit that shows whether a text can meet them: few texts can, and there are hundreds of parts. */
interface SpecialParts {
  /** What such a token goes on with behind its beginning, by its first unit. */
  rests: ReadonlyMap<number, readonly string[]>;
  /** What such a token begins with, by its last unit. */
  beginnings: ReadonlyMap<number, readonly string[]>;
}

function partsOf(specials: readonly string[]): SpecialParts {
  const rests = new Map<number, string[]>();
  const beginnings = new Map<number, string[]>();
  const add = (map: Map<number, string[]>, unit: number, part: string): void => {
    const parts = map.get(unit);
    if (parts) parts.push(part);
    else map.set(unit, [part]);
  };
  for (const special of specials) {
    for (let cut = 1; cut < special.length; cut++) {
      add(rests, special.charCodeAt(cut), special.slice(cut));
      add(beginnings, special.charCodeAt(cut - 1), special.slice(0, cut));
    }
  }
  return { rests, beginnings };
}

/** Takes the marks out: the inverse of {@link textMarker}. */
export function unmark(text: string): string {
  return MARK_ANY.test(text) ? text.replace(MARK_RUN, unmarkOne) : text;
}

/** `start < end`. */
function markEnds(
  text: string,
  { start, end }: { start: number; end: number },
  { rests, beginnings }: SpecialParts,
  marked: Set<number>,
): void {
  for (const rest of rests.get(text.charCodeAt(start)) ?? []) {
    const length = Math.min(rest.length, end - start);
    if (text.startsWith(rest.slice(0, length), start)) marked.add(start);
  }
  for (const beginning of beginnings.get(text.charCodeAt(end - 1)) ?? []) {
    const from = end - beginning.length;
    if (from >= start && text.startsWith(beginning, from)) marked.add(lastCodePointAt(text, end));
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
