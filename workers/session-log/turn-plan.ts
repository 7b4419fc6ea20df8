/** How a transcript continues a log: which ids stay and which are appended. Pure. */

/** A place where log and rendered text are known to agree: the first `tokens` ids are the first `textLength` characters. */
export interface Checkpoint {
  tokens: number;
  textLength: number;
}

/** The log as it is, and the text that it shall stand for. */
export interface PlanInput {
  log: Uint32Array;
  /** Ascending. */
  checkpoints: readonly Checkpoint[];
  /** The rendered text that the log stands for. */
  oldText: string;
  /** The rendered text of the new transcript. */
  newText: string;
  /** Tokenizes rendered text, control tokens included. */
  encode: (text: string) => number[];
}

/** `log[0, keep)` stays; `appended` follows. */
export interface TurnPlan {
  keep: number;
  appended: number[];
}

/**
 * Continues the log at the last checkpoint that both texts share, tokenizes only what is behind it, and keeps what those ids have in
 * common with the log. So a reply keeps its exact ids, an end token that the model generated is not repeated, a reply that ended early
 * gets its end tokens, and a changed transcript cuts the log at the last common token.
 */
export function planTurn(input: PlanInput): TurnPlan {
  const shared = commonPrefixLength(input.oldText, input.newText);
  let start: Checkpoint = { tokens: 0, textLength: 0 };
  for (const checkpoint of input.checkpoints) {
    if (checkpoint.textLength <= shared && checkpoint.tokens <= input.log.length) start = checkpoint;
  }
  const ids = input.encode(input.newText.slice(start.textLength));
  let common = 0;
  while (common < ids.length && input.log[start.tokens + common] === ids[common]) common += 1;
  return { keep: start.tokens + common, appended: ids.slice(common) };
}

/** How many leading UTF-16 units two strings share. */
export function commonPrefixLength(a: string, b: string): number {
  if (b.startsWith(a)) return a.length;
  // Halving with native comparisons: a transcript has a megabyte, and most of it is equal.
  let low = 0;
  let high = Math.min(a.length, b.length);
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (a.slice(low, middle) === b.slice(low, middle)) low = middle;
    else high = middle - 1;
  }
  return low;
}
