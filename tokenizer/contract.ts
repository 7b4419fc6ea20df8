/** Turns text into ids and back. Runs at the edge; no I/O, no globals. */
export interface Tokenizer {
  /** One more than the largest id that has a text. A model's logits may be wider; such ids decode to nothing. */
  readonly vocabularySize: number;
  /**
   * Ids of `text`; nothing is added in front or behind. Special tokens written in `text` become control ids only with
   * `special: true`, and never where they overlap text that {@link ChatTemplate} marked as a user's words.
   * `special: true` is for rendered templates and for text of the operator: it also takes {@link ChatTemplate}'s marks out
   * (runs of six U+FDD0..U+FDDF), so text that never went through a template is encoded without it.
   * Unpaired surrogates become U+FFFD, as in `TextEncoder`. Time is near-linear in the length of `text`, whatever it says.
   * With `countMax` it may stop behind that many ids; then there are more than that, and the last of them mean nothing.
   */
  encode(text: string, options?: EncodeOptions): number[];
  /** Whole text of `ids`; special tokens are left out unless `special`. Bytes that are not UTF-8 become U+FFFD. */
  decode(ids: ArrayLike<number>, options?: { special?: boolean }): string;
  /** Id of a token by its exact content ("<|end|>"). */
  idOf(token: string): number | undefined;
  isSpecial(id: number): boolean;
  /** The bytes or characters one id stands for, for `logprobs` (OpenAI's `token` and `bytes`). */
  piece(id: number): { text: string; bytes: number[] };
  /** A decoder for a stream: its deltas joined equal the whole decode, and no delta ends in half a character. */
  decoder(): IncrementalDecoder;
}

/** How {@link Tokenizer.encode} reads a text. */
export interface EncodeOptions {
  special?: boolean;
  /** Who wants no more than this many ids need not be given the rest of a text that has more. */
  countMax?: number;
}

/** Decodes the ids of one stream as they come; one decoder per stream. */
export interface IncrementalDecoder {
  /** Text that is complete after these ids. */
  push(ids: ArrayLike<number>): string;
  /** What is left at the end (an incomplete character becomes U+FFFD). The decoder is as new afterwards. */
  flush(): string;
}

/** A message as templates see it; `content` is one text. */
export interface ChatMessage {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content: string;
  name?: string;
}

/** The words around the messages, as the model was trained on them. */
export interface ChatTemplate {
  /**
   * Renders the model's chat template; `developer` is rendered as `system`. Special tokens inside message content are
   * broken by marks, so that {@link Tokenizer.encode} with `special: true` reads them as text; `encode` takes the marks out.
   * The output is for `encode` only. Work is bounded by the messages (limits of the edge) times the template's own loops.
   * @throws {QuireError} `invalid_request` when the template refuses the messages (its own words are passed on).
   */
  render(messages: readonly ChatMessage[], options: { addGenerationPrompt: boolean }): string;
}
