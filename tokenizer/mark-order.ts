/**
 * Keeps Unicode normalization linear. Normalizers put combining marks in order by insertion, which is quadratic in the length
 * of a run of them: a text of 80,000 alternating marks holds a Worker for seconds. Long runs are therefore put in order here,
 * by merge sort, before the runtime sees them; the result is canonically (compatibly) equivalent, so its normal form is the same.
 */

/** A normalization form as `String.prototype.normalize` names it. */
export type NormalForm = "NFC" | "NFD" | "NFKC" | "NFKD";

/** Shorter runs cost the runtime little. The two halfwidth letters become combining marks in the compatibility forms. */
const LONG_RUN = /[\p{M}\uFF9E\uFF9F]{32,}/gu;
/** Below U+0300 there are no combining marks. */
const ANY_MARK_POSSIBLE = /[^\0-\u02ff]{32}/;

/** Combining classes 240 and 1, the highest and the lowest there are. */
const HIGHEST = "\u0345";
const LOWEST = "\u0334";

/** Equals `text.normalize(form)`, in near-linear time. */
export function normalizeText(text: string, form: NormalForm): string {
  if (!ANY_MARK_POSSIBLE.test(text)) return text.normalize(form);
  const decomposing = form === "NFKC" || form === "NFKD" ? "NFKD" : "NFD";
  return text.replace(LONG_RUN, (run) => orderMarks(run, decomposing)).normalize(form);
}

function orderMarks(run: string, form: "NFD" | "NFKD"): string {
  const marks = Array.from(run, (char) => char.normalize(form)).flatMap((chars) => [...chars]);
  const ranks = rankMarks(new Set(marks), form);
  const ordered: string[] = [];
  for (let from = 0; from < marks.length; ) {
    let end = from;
    while (end < marks.length && ranks.has(marks[end] as string)) end++;
    const slice = marks.slice(from, end);
    slice.sort((a, b) => (ranks.get(a) as number) - (ranks.get(b) as number));
    for (const mark of slice) ordered.push(mark);
    if (end < marks.length) ordered.push(marks[end] as string);
    from = end + 1;
  }
  return ordered.join("");
}

/** Ranks in the order of combining classes, equal for equal classes; what is not reordered (class 0) has none. */
function rankMarks(distinct: ReadonlySet<string>, form: "NFD" | "NFKD"): Map<string, number> {
  const isAfter = (left: string, right: string): boolean => (left + right).normalize(form) !== left + right;
  const reordered = [...distinct].filter((mark) => isAfter(HIGHEST, mark) || isAfter(mark, LOWEST));
  reordered.sort((a, b) => Number(isAfter(a, b)) - Number(isAfter(b, a)));
  const ranks = new Map<string, number>();
  let rank = 0;
  for (const [index, mark] of reordered.entries()) {
    if (index > 0 && isAfter(mark, reordered[index - 1] as string)) rank++;
    ranks.set(mark, rank);
  }
  return ranks;
}
