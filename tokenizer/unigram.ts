/**
 * SentencePiece's Unigram model: of all ways to write a piece as tokens the one with the best sum of scores (Kudo 2018), as Hugging Face's
 * tokenizers finds it: forward over the text, one best token ending at each place.
 */
import { byteOfToken } from "./token-bytes.ts";

/** By how much an unknown character is worse than the worst token. */
const UNKNOWN_PENALTY = 10;
const UNKNOWN = -1;
/** Longer pieces are cut: only there ids can differ from the reference. */
const PART_LENGTH_MAX = 2 ** 20;

/** What a model is made of. */
export interface UnigramParts {
  /** Tokens with their scores, by id. */
  vocabulary: readonly (readonly [token: string, score: number])[];
  /** Id of what has no token; -1: it is left out. */
  unknownId: number;
  /** Unknown characters become tokens of their bytes, where there are all of them. */
  byteFallback: boolean;
  /** Tokens that no text spells. */
  unspelled: ReadonlySet<string>;
}

/** A token that text can spell. */
interface Spelled {
  id: number;
  score: number;
}

/** Encodes pieces. One call at a time: buffers are used again. */
export class Unigram {
  readonly #tokens = new Map<string, Spelled>();
  /** Lengths of the tokens that begin with a unit, ascending. */
  readonly #lengths = new Map<number, number[]>();
  readonly #byteIds: readonly number[] | undefined;
  readonly #unknownId: number;
  readonly #unknownScore: number;
  /** Of the best way up to each place: its score, and its last token with where that begins. */
  #scores = new Float64Array(0);
  #starts = new Int32Array(0);
  #ids = new Int32Array(0);

  constructor({ vocabulary, unknownId, byteFallback, unspelled }: UnigramParts) {
    const byteIds = new Array<number>(256).fill(UNKNOWN);
    let lowest = Number.POSITIVE_INFINITY;
    const lengths = new Map<number, Set<number>>();
    for (const [id, [token, score]] of vocabulary.entries()) {
      lowest = Math.min(lowest, score);
      const byte = byteOfToken(token);
      if (byte !== undefined) byteIds[byte] = id;
      if (token === "" || unspelled.has(token)) continue;
      this.#tokens.set(token, { id, score });
      const unit = token.charCodeAt(0);
      const known = lengths.get(unit) ?? new Set();
      lengths.set(unit, known.add(token.length));
    }
    for (const [unit, each] of lengths) {
      this.#lengths.set(
        unit,
        [...each].sort((a, b) => a - b),
      );
    }
    this.#byteIds = byteFallback ? byteIds : undefined;
    this.#unknownId = unknownId;
    this.#unknownScore = lowest - UNKNOWN_PENALTY;
  }

  /** Appends the ids of a piece of well-formed text to `ids`; neighbours that are unknown become one. */
  encode(piece: string, ids: number[]): void {
    for (let from = 0; from < piece.length; ) {
      let end = Math.min(piece.length, from + PART_LENGTH_MAX);
      if (end < piece.length && (piece.charCodeAt(end) & 0xfc00) === 0xdc00) end--;
      this.#encodePart(from === 0 && end === piece.length ? piece : piece.slice(from, end), ids);
      from = end;
    }
  }

  #encodePart(text: string, ids: number[]): void {
    this.#findBest(text);
    const starts = this.#starts;
    const ends: number[] = [];
    for (let end = text.length; end > 0; end = starts[end] as number) ends.push(end);
    let unknownFrom = -1;
    for (let index = ends.length - 1; index >= 0; index--) {
      const end = ends[index] as number;
      const id = this.#ids[end] as number;
      const isUnknown = id === UNKNOWN || id === this.#unknownId;
      if (isUnknown && unknownFrom < 0) unknownFrom = starts[end] as number;
      if (isUnknown) continue;
      if (unknownFrom >= 0) this.#writeUnknown(text.slice(unknownFrom, starts[end]), ids);
      unknownFrom = -1;
      ids.push(id);
    }
    if (unknownFrom >= 0) this.#writeUnknown(text.slice(unknownFrom), ids);
  }

  /** Fills the buffers for every place of `text` that is the end of a token. */
  #findBest(text: string): void {
    const { length } = text;
    if (this.#starts.length <= length) {
      this.#scores = new Float64Array(length + 1);
      this.#starts = new Int32Array(length + 1);
      this.#ids = new Int32Array(length + 1);
    }
    const [scores, starts] = [this.#scores, this.#starts];
    starts.fill(-1, 0, length + 1);
    scores[0] = 0;
    for (let at = 0; at < length; ) {
      const unit = text.charCodeAt(at);
      const charLength = (unit & 0xfc00) === 0xd800 ? 2 : 1;
      let isCharKnown = false;
      for (const tokenLength of this.#lengths.get(unit) ?? []) {
        if (at + tokenLength > length) break;
        const found = this.#tokens.get(text.slice(at, at + tokenLength));
        if (found === undefined) continue;
        this.#offer(at, at + tokenLength, found);
        isCharKnown ||= tokenLength === charLength;
      }
      if (!isCharKnown) this.#offer(at, at + charLength, { id: UNKNOWN, score: this.#unknownScore });
      at += charLength;
    }
  }

  #offer(start: number, end: number, { id, score }: Spelled): void {
    const sum = score + (this.#scores[start] as number);
    if ((this.#starts[end] as number) >= 0 && sum <= (this.#scores[end] as number)) return;
    this.#scores[end] = sum;
    this.#starts[end] = start;
    this.#ids[end] = id;
  }

  #writeUnknown(text: string, ids: number[]): void {
    const known = this.#tokens.get(text);
    if (known !== undefined) {
      ids.push(known.id);
      return;
    }
    const bytes =
      this.#byteIds && Array.from(new TextEncoder().encode(text), (byte) => this.#byteIds?.[byte] as number);
    if (bytes?.every((id) => id !== UNKNOWN)) for (const id of bytes) ids.push(id);
    else if (this.#unknownId >= 0) ids.push(this.#unknownId);
  }
}
