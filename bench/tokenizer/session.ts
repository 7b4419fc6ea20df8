/** What is measured, without a clock: the same code runs in Node and in workerd, where time stands still during work. */
import { Tokenizer as Library } from "@huggingface/tokenizers";
import { openTokenizer } from "../../tokenizer/open.ts";

/** Whose code encodes: ours from compiled tables, or @huggingface/tokenizers from JSON. */
export type Implementation = "quire" | "library";

/** One tokenizer at a time, and texts to encode. */
export class TokenizerSession {
  #encode: ((text: string) => readonly number[]) | undefined;
  #texts: string[] = [];

  /** Opens a tokenizer of the bytes of its file, with empty caches. */
  open(implementation: Implementation, file: ArrayBuffer): void {
    if (implementation === "quire") {
      const { tokenizer } = openTokenizer({ tokenizerTables: file, tokenizerConfig: {} });
      this.#encode = (text) => tokenizer.encode(text);
      return;
    }
    const library = new Library(JSON.parse(new TextDecoder().decode(file)), { clean_up_tokenization_spaces: false });
    this.#encode = (text) => library.encode(text, { add_special_tokens: false }).ids;
  }

  /** Keeps the texts that {@link encode} names by index. */
  setTexts(texts: string[]): void {
    this.#texts = texts;
  }

  /** Encodes a text `times` times; the ids of the last time, as a count and a sum that tells orders apart. */
  encode(index: number, times: number): { tokens: number; sum: number } {
    if (this.#encode === undefined) throw new Error("no tokenizer is open");
    let ids: readonly number[] = [];
    for (let time = 0; time < times; time++) ids = this.#encode(this.#texts[index] ?? "");
    let sum = 0;
    for (const id of ids) sum = (Math.imul(sum, 31) + id) | 0;
    return { tokens: ids.length, sum };
  }
}
