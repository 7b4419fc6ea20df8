/** From text to pieces: normalizer, added tokens, marks, pre-tokenizer. What is behind sees only ordinary text, in pieces. */
import { type AddedToken, AddedTokenSplitter } from "./added-tokens.ts";
import type { JsonObject } from "./json.ts";
import { unmark } from "./marks.ts";
import { compileNormalizer, type Normalizer } from "./normalize.ts";
import { compilePreTokenizer, type PreTokenizer } from "./pre-tokenize.ts";
import { type Bounds, type Splitter, splitInSteps, type Text } from "./splitters.ts";

/** What a front calls: an id of an added token, or a text with the ends of its pieces. */
export interface FrontSink {
  token(id: number): void;
  pieces(text: Text, bounds: Bounds): void;
  /** The rest of the text is not wanted. */
  isFull(): boolean;
}

interface Splitters {
  all: AddedTokenSplitter;
  plain: AddedTokenSplitter;
}

/** Buffers up to this size are used again. */
const KEPT_UNIT_COUNT_MAX = 262_144;

/** Takes texts apart as the settings of a tokenizer.json say. One call at a time. */
export class TextFront {
  readonly normalizer: Normalizer | undefined;
  readonly #preTokenizer: PreTokenizer;
  readonly #steps: readonly Splitter[];
  /** Added tokens looked for before normalizing. */
  readonly #early: Splitters;
  /** Added tokens looked for after normalizing, if only between those before; undefined where there are none. */
  readonly #late: Splitters | undefined;
  #units = new Uint16Array(4096);

  /**
   * `lastStep` splits the pieces of the pre-tokenizer once more.
   * @throws {QuireError} `internal` naming what is not supported.
   */
  constructor(settings: JsonObject, added: readonly AddedToken[], lastStep: Splitter | undefined) {
    this.normalizer = compileNormalizer(settings.normalizer);
    this.#preTokenizer = compilePreTokenizer(settings.pre_tokenizer);
    this.#steps = lastStep === undefined ? this.#preTokenizer.steps : [...this.#preTokenizer.steps, lastStep];
    // A normalizer that puts something in front would put it in front of the token too, and hide it inside of texts.
    const isLate = (token: AddedToken): boolean => token.normalized && this.normalizer?.prepends !== true;
    const late = added.filter(isLate).map((token) => ({
      ...token,
      content: this.normalizer?.normalize(token.content) ?? token.content,
    }));
    this.#early = splittersOf(added.filter((token) => !isLate(token)));
    this.#late = late.length === 0 ? undefined : splittersOf(late);
  }

  /** Takes `text` apart, in order; `special` as in the contract's `encode`. */
  run(text: string, special: boolean, sink: FrontSink): void {
    const kind = special ? "all" : "plain";
    for (const [index, section] of this.#early[kind].split(text.toWellFormed()).entries()) {
      if (sink.isFull()) return;
      if (typeof section === "number") {
        sink.token(section);
      } else if (this.#late === undefined) {
        const plain = special ? unmark(section) : section;
        this.#ordinary(this.normalizer?.normalize(plain) ?? plain, index === 0, sink);
      } else {
        this.#lateSection(this.#late[kind], section, { special, isFirst: index === 0 }, sink);
      }
    }
  }

  #lateSection(
    late: AddedTokenSplitter,
    section: string,
    { special, isFirst }: { special: boolean; isFirst: boolean },
    sink: FrontSink,
  ): void {
    const normalized = this.normalizer?.normalize(section) ?? section;
    for (const [index, part] of late.split(normalized).entries()) {
      if (typeof part === "number") {
        sink.token(part);
        continue;
      }
      // A mark kept its neighbours from composing, so what is left after taking marks out is normalized once more.
      const plain = special ? unmark(part) : part;
      const text = plain === part ? part : (this.normalizer?.again(plain) ?? plain);
      this.#ordinary(text, isFirst && index === 0, sink);
    }
  }

  #ordinary(normalized: string, isFirst: boolean, sink: FrontSink): void {
    if (normalized === "") return;
    const string = this.#preTokenizer.prepare?.(normalized, isFirst) ?? normalized;
    const { length } = string;
    let units = this.#units;
    if (units.length < length) {
      units = new Uint16Array(length);
      if (length <= KEPT_UNIT_COUNT_MAX) this.#units = units;
    }
    for (let at = 0; at < length; at++) units[at] = string.charCodeAt(at);
    const text = { string, units, length };
    sink.pieces(text, splitInSteps(this.#steps, text));
  }
}

function splittersOf(tokens: readonly AddedToken[]): Splitters {
  return {
    all: new AddedTokenSplitter(tokens),
    plain: new AddedTokenSplitter(tokens.filter((token) => !token.special)),
  };
}
