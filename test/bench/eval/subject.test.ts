import { expect, it } from "vitest";
import { documentsOf } from "../../../bench/eval/subject.ts";
import type { Tokenizer } from "../../../tokenizer/contract.ts";

/** An id a character. */
const tokenizer = { encode: (text: string) => Array.from(text, (char) => char.codePointAt(0)) } as unknown as Tokenizer;
const written = (ids: readonly number[]) => String.fromCodePoint(...ids);

it("pieces of a text begin at words, spread over all of it", () => {
  const text = "one two three four five six seven";
  const pieces = documentsOf(text, { tokenizer }, { count: 2, tokens: 6 });
  expect(pieces.map(written)).toEqual([" two t", " five "]);
});

it("pieces of a text without spaces begin at whole characters", () => {
  const text = "\u6587\u{20000}".repeat(21);
  const pieces = documentsOf(text, { tokenizer }, { count: 4, tokens: 8 });
  expect(pieces).toHaveLength(4);
  for (const ids of pieces) expect(text).toContain(written(ids));
});

it("a text that is too short is refused", () => {
  expect(() => documentsOf("one two three", { tokenizer }, { count: 2, tokens: 8 })).toThrow(/more than there is/);
});
