/** From chances to a choice. The edge's router and the benchmark that sets its price share it. */

/** A choice, and what it is expected to read per token of question and reply: a straight line over the length of the prompt. */
export interface PricedChoice {
  policy: string;
  budgetTokens: number;
  bytes: number;
  bytesPerChar: number;
}

/** What each choice is expected to read for a prompt of so many characters; none more than a later one, which attends to more. */
export function expectedBytes(choices: readonly PricedChoice[], chars: number): number[] {
  const bytes = choices.map((choice) => choice.bytes + choice.bytesPerChar * chars);
  for (let index = bytes.length - 2; index >= 0; index--) {
    bytes[index] = Math.min(bytes[index] as number, bytes[index + 1] as number);
  }
  return bytes;
}

/**
 * The choice with the best of `chance - price * megabytes`; the last one, dense, keeps its own answer for certain. A price is how much of an
 * answer a megabyte per token is worth: all choices that keep so many answers at this cost and no fewer come from one price.
 */
export function bestChoice(chances: ArrayLike<number>, bytes: readonly number[], price: number): number {
  const last = bytes.length - 1;
  const worth = bytes.map((each, index) => (index === last ? 1 : (chances[index] as number)) - (price * each) / 1e6);
  return worth.reduce((best, value, index) => (value > (worth[best] as number) ? index : best), last);
}
