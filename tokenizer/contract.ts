/** Turns text into ids and back. Runs at the edge; no I/O, no globals. */
export interface Tokenizer {
  readonly vocabularySize: number;
  /**
   * Ids of `text`. Special tokens written in it become control ids only with `special: true`, and never where they overlap
   * text that {@link ChatTemplate} marked as a user's words.
   */
  encode(text: string, options?: { special?: boolean }): number[];
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

export interface IncrementalDecoder {
  /** Text that is complete after these ids. */
  push(ids: ArrayLike<number>): string;
  /** What is left at the end (an incomplete character becomes U+FFFD). */
  flush(): string;
}

export interface ChatMessage {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content: string;
  name?: string;
}

export interface ChatTemplate {
  /**
   * Renders the model's chat template. Special tokens inside message content are broken by a marker, so that
   * {@link Tokenizer.encode} with `special: true` reads them as text; `encode` drops the marker.
   * @throws {QuireError} `invalid_request` when the template refuses the messages (its own words are passed on).
   */
  render(messages: readonly ChatMessage[], options: { addGenerationPrompt: boolean }): string;
}
