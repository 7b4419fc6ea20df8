/** Finds plain text in a rendered template, where it may stand with marks in it (`tokenizer/contract.ts`, ChatTemplate). */
import { unmark } from "../../tokenizer/marks.ts";

/** Made for each search: a sticky expression remembers where it was. */
const mark = () => /[\uFDD0-\uFDDF]{6}/y;

/**
 * How many UTF-16 units of `rendered` from `from` on stand for `plain`.
 * @returns undefined when something else stands there: the template trimmed or changed the text
 */
export function renderedLength(rendered: string, from: number, plain: string): number | undefined {
  const marks = mark();
  let at = from;
  let index = 0;
  while (index < plain.length) {
    marks.lastIndex = at;
    const run = marks.exec(rendered)?.[0];
    const units = run === undefined ? rendered.charAt(at) : unmark(run);
    if (units === "" || !plain.startsWith(units, index)) return undefined;
    index += units.length;
    at += run?.length ?? 1;
  }
  return at - from;
}
