/** A reply as it grows: ids in, text out, and at the end the ids that the log keeps. */
import type { TokenLogprob } from "../../protocol/generate.ts";
import type { IncrementalDecoder, Tokenizer } from "../../tokenizer/contract.ts";
import type { TextLogprob } from "../turn-job.ts";
import { StopScanner } from "./stop-strings.ts";

/** What may be sent to the client now. */
export interface ReplyDelta {
  text: string;
  logprobs: TextLogprob[];
}

/** A reply as the log keeps it. */
export interface KeptReply {
  /** What the client was given. */
  content: string;
  /** Ids whose text was given whole, without an end token. */
  ids: number[];
  /** Text of `ids`: a prefix of `content` (a token that a stop string cut is in `content` in part and not in `ids`). */
  text: string;
  /** The end token that the model generated, where it did. */
  endToken: number | undefined;
}

/** What ends a reply, and what reads it. */
export interface ReplyOptions {
  tokenizer: Tokenizer;
  stopTokens: readonly number[];
  stopStrings: readonly string[];
}

/**
 * Detokenizes incrementally (never half a character), cuts at stop strings (across token borders), and knows which ids belong to the
 * text that was let out.
 */
export class Reply {
  readonly #tokenizer: Tokenizer;
  readonly #stopTokens: ReadonlySet<number>;
  readonly #decoder: IncrementalDecoder;
  readonly #scanner: StopScanner;
  readonly #ids: number[] = [];
  /** Length of the text that is complete after each id. */
  readonly #textEnds: number[] = [];
  readonly #logprobs: (TextLogprob | undefined)[] = [];
  #text = "";
  #releasedLength = 0;
  #releasedLogprobCount = 0;
  #endToken: number | undefined;
  #ended: "stop-string" | "end-token" | "length" | undefined;
  #generatedCount = 0;

  constructor(options: ReplyOptions) {
    this.#tokenizer = options.tokenizer;
    this.#stopTokens = new Set(options.stopTokens);
    this.#decoder = options.tokenizer.decoder();
    this.#scanner = new StopScanner(options.stopStrings);
  }

  /** How the reply ended, if it did: nothing that comes after is taken. */
  get ended(): "stop-string" | "end-token" | "length" | undefined {
    return this.#ended;
  }

  /** Ids that the engine generated up to the end, the end token included. */
  get generatedCount(): number {
    return this.#generatedCount;
  }

  /** Every id so far without the end token: what another engine would go on from. */
  get ids(): readonly number[] {
    return this.#ids;
  }

  /** Takes generated ids (and their logprobs, one per id) and returns what they set free. */
  push(ids: ArrayLike<number>, logprobs?: readonly TokenLogprob[]): ReplyDelta {
    let text = "";
    for (let index = 0; index < ids.length && this.#ended === undefined; index++) {
      const id = ids[index];
      if (id === undefined) break;
      this.#generatedCount += 1;
      if (this.#stopTokens.has(id)) {
        this.#endToken = id;
        this.#ended = "end-token";
        text += this.#release(this.#decoder.flush()) + this.#releaseHeld();
        break;
      }
      this.#ids.push(id);
      this.#logprobs.push(this.#inWords(id, logprobs?.[index]));
      const piece = this.#decoder.push([id]);
      this.#textEnds.push(this.#text.length + piece.length);
      text += this.#release(piece);
    }
    return { text, logprobs: this.#releaseLogprobs() };
  }

  /** The engine is done (its limit was reached, or it sent no end token): lets out what was held back. */
  finish(): ReplyDelta {
    if (this.#ended !== undefined) return { text: "", logprobs: [] };
    let text = this.#release(this.#decoder.flush());
    if (this.#ended === undefined) {
      this.#ended = "length";
      text += this.#releaseHeld();
    }
    return { text, logprobs: this.#releaseLogprobs() };
  }

  /** The reply that was let out so far, as the log keeps it. */
  kept(): KeptReply {
    const content = this.#text.slice(0, this.#releasedLength);
    if (this.#ended === "end-token" || this.#ended === "length") {
      return { content, ids: [...this.#ids], text: content, endToken: this.#endToken };
    }
    const count = this.#countWithin(this.#releasedLength);
    const text = this.#text.slice(0, this.#textEnds[count - 1] ?? 0);
    return { content, ids: this.#ids.slice(0, count), text, endToken: undefined };
  }

  #release(piece: string): string {
    if (piece === "") return "";
    this.#text += piece;
    const { released, stopped } = this.#scanner.push(piece);
    if (stopped) this.#ended = "stop-string";
    this.#releasedLength += released.length;
    return released;
  }

  #releaseHeld(): string {
    if (this.#ended === "stop-string") return "";
    const held = this.#scanner.flush();
    this.#releasedLength += held.length;
    return held;
  }

  /** Largest count of ids whose text ends within `length` and that decode to exactly that text (no half character behind it). */
  #countWithin(length: number): number {
    let count = this.#textEnds.length;
    while (count > 0 && (this.#textEnds[count - 1] ?? 0) > length) count -= 1;
    // Ids without text of their own are the first bytes of a character that lies behind the cut.
    while (count > 0 && this.#textEnds[count - 1] === (this.#textEnds[count - 2] ?? 0)) count -= 1;
    while (count > 0) {
      const text = this.#text.slice(0, this.#textEnds[count - 1]);
      if (this.#tokenizer.decode(this.#ids.slice(0, count)) === text) break;
      count -= 1;
    }
    return count;
  }

  #releaseLogprobs(): TextLogprob[] {
    let limit = this.#logprobs.length;
    if (this.#ended === "stop-string") limit = this.#countWithin(this.#releasedLength);
    const out: TextLogprob[] = [];
    while (this.#releasedLogprobCount < limit) {
      const at = this.#releasedLogprobCount;
      const held = (this.#textEnds[at] ?? 0) > this.#releasedLength;
      if (held && this.#ended === undefined) break;
      const logprob = this.#logprobs[at];
      if (logprob) out.push(logprob);
      // With 20 alternatives they take 2 KB a token: only those that wait for their text are kept.
      this.#logprobs[at] = undefined;
      this.#releasedLogprobCount += 1;
    }
    return out;
  }

  #inWords(id: number, logprob: TokenLogprob | undefined): TextLogprob | undefined {
    if (!logprob) return undefined;
    const { text: token, bytes } = this.#tokenizer.piece(id);
    const top = logprob.top.map(([topId, value]) => {
      const piece = this.#tokenizer.piece(topId);
      return { token: piece.text, logprob: value, bytes: piece.bytes };
    });
    return { token, logprob: logprob.logprob, bytes, top };
  }
}
