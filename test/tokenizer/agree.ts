/** Comparison with the JavaScript reference. */
import type { Tokenizer as Oracle } from "@huggingface/tokenizers";
import { expect } from "vitest";
import type { Tokenizer } from "../../tokenizer/contract.ts";

/** What the reference is opened with. */
export type OracleOptions = NonNullable<ConstructorParameters<typeof Oracle>[1]>;

/** Expects equal ids on every text and returns how many there were. */
export function agreeOn(texts: readonly string[], ours: Tokenizer, oracle: Oracle): number {
  let tokenCount = 0;
  for (const text of texts) {
    const ids = ours.encode(text);
    const expected = oracle.encode(text, { add_special_tokens: false }).ids;
    // Comparing arrays with expect costs more than encoding them.
    if (ids.length !== expected.length || ids.some((id, index) => id !== expected[index])) {
      expect(ids, JSON.stringify(text)).toEqual(expected);
    }
    tokenCount += ids.length;
  }
  return tokenCount;
}
