/** Where a text stops being JSON: the parser's own message does not always say, and would quote the text. */

/** In UTF-16 code units, from 0 on; undefined for a text that is JSON. Recurses as deep as the text is nested: bound that before. */
export function jsonErrorIndex(text: string): number | undefined {
  const scanner = { text, index: 0 };
  if (!skipValue(scanner)) return scanner.index;
  skipSpace(scanner);
  return scanner.index < text.length ? scanner.index : undefined;
}

interface Scanner {
  readonly text: string;
  /** Of what is looked at next; where a skip failed, of the first character that cannot be there. */
  index: number;
}

const SPACE = /[ \t\n\r]*/y;
const WORD = /true|false|null/y;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;

function skipPattern(scanner: Scanner, pattern: RegExp): boolean {
  pattern.lastIndex = scanner.index;
  const isThere = pattern.test(scanner.text);
  if (isThere) scanner.index = pattern.lastIndex;
  return isThere;
}

function skipSpace(scanner: Scanner): void {
  skipPattern(scanner, SPACE);
}

/** One character, behind spaces. */
function skipMark(scanner: Scanner, mark: string): boolean {
  skipSpace(scanner);
  if (scanner.text[scanner.index] !== mark) return false;
  scanner.index += 1;
  return true;
}

function skipValue(scanner: Scanner): boolean {
  if (skipMark(scanner, "{")) return skipList(scanner, "}", skipMember);
  if (skipMark(scanner, "[")) return skipList(scanner, "]", skipValue);
  if (scanner.text[scanner.index] === '"') return skipString(scanner);
  return skipPattern(scanner, WORD) || skipPattern(scanner, NUMBER);
}

function skipList(scanner: Scanner, end: string, skipOne: (scanner: Scanner) => boolean): boolean {
  if (skipMark(scanner, end)) return true;
  do {
    if (!skipOne(scanner)) return false;
  } while (skipMark(scanner, ","));
  return skipMark(scanner, end);
}

function skipMember(scanner: Scanner): boolean {
  skipSpace(scanner);
  return skipString(scanner) && skipMark(scanner, ":") && skipValue(scanner);
}

/** By hand: a pattern would remember every character of a text of megabytes. */
function skipString(scanner: Scanner): boolean {
  const { text } = scanner;
  if (text[scanner.index] !== '"') return false;
  for (scanner.index += 1; scanner.index < text.length; scanner.index++) {
    const code = text.charCodeAt(scanner.index);
    if (code < 0x20) return false;
    if (code === 0x22) {
      scanner.index += 1;
      return true;
    }
    if (code !== 0x5c) continue;
    scanner.index += 1;
    const escaped = text[scanner.index] ?? "";
    if (escaped === "u" && /^[0-9a-fA-F]{4}$/.test(text.slice(scanner.index + 1, scanner.index + 5)))
      scanner.index += 4;
    else if (escaped === "" || !'"\\/bfnrt'.includes(escaped)) return false;
  }
  return false;
}
