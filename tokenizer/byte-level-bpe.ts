/** Byte-level byte-pair encoding (GPT-2 and its family: Qwen2, Llama-3, house-0), as Hugging Face's tokenizers does it. */
import { AddedTokenSplitter } from "./added-tokens.ts";
import { bytesToToken } from "./byte-alphabet.ts";
import type { ByteLevelModel } from "./byte-level-model.ts";
import type { IncrementalDecoder, Tokenizer } from "./contract.ts";
import { unmark } from "./marks.ts";
import { mergePiece } from "./merge-piece.ts";
import { PieceCache } from "./piece-cache.ts";
import { Utf8Decoder } from "./utf8-decoder.ts";

/** Longer pieces are rare and not remembered. */
const CACHED_PIECE_LENGTH_MAX = 64;
const CACHED_PIECE_COUNT_MAX = 16_384;

/** A {@link Tokenizer} over a compiled model. One call at a time (it is synchronous); state is caches only. */
export class ByteLevelBpe implements Tokenizer {
  readonly vocabularySize: number;
  readonly #model: ByteLevelModel;
  /** Added tokens looked for before normalizing; with special ones and without. */
  readonly #early: { all: AddedTokenSplitter; plain: AddedTokenSplitter };
  /** Added tokens looked for after normalizing. */
  readonly #late: { all: AddedTokenSplitter; plain: AddedTokenSplitter };
  readonly #cache = new PieceCache(CACHED_PIECE_COUNT_MAX);
  readonly #utf8 = new TextEncoder();

  constructor(model: ByteLevelModel) {
    this.#model = model;
    this.vocabularySize = model.offsets.length - 1;
    const splitters = (normalized: boolean) => {
      const tokens = model.addedTokens.filter((token) => token.normalized === normalized);
      const plain = tokens.filter((token) => !token.special);
      return { all: new AddedTokenSplitter(tokens), plain: new AddedTokenSplitter(plain) };
    };
    this.#early = splitters(false);
    this.#late = splitters(true);
  }

  encode(text: string, options: { special?: boolean } = {}): number[] {
    const kind = options.special === true ? "all" : "plain";
    const normalize = this.#model.normalize ?? ((same: string) => same);
    const ids: number[] = [];
    for (const section of this.#early[kind].split(text.toWellFormed())) {
      if (typeof section === "number") {
        ids.push(section);
        continue;
      }
      for (const part of this.#late[kind].split(normalize(section))) {
        if (typeof part === "number") ids.push(part);
        else if (options.special === true) this.#encodeOrdinary(unmarkAndNormalize(part, normalize), ids);
        else this.#encodeOrdinary(part, ids);
      }
    }
    return ids;
  }

  decode(ids: ArrayLike<number>, options: { special?: boolean } = {}): string {
    const bytes = this.#bytesOf(ids, options.special === true);
    return new TextDecoder("utf-8", { fatal: false, ignoreBOM: true }).decode(bytes);
  }

  idOf(token: string): number | undefined {
    return this.#model.idByContent.get(token);
  }

  isSpecial(id: number): boolean {
    return this.#model.specialIds.has(id);
  }

  piece(id: number): { text: string; bytes: number[] } {
    const bytes = this.#bytesOf([id], true);
    return { text: new TextDecoder("utf-8", { fatal: false, ignoreBOM: true }).decode(bytes), bytes: [...bytes] };
  }

  decoder(): IncrementalDecoder {
    const utf8 = new Utf8Decoder();
    return {
      push: (ids) => utf8.push(this.#bytesOf(ids, false)),
      flush: () => utf8.flush(),
    };
  }

  #encodeOrdinary(text: string, ids: number[]): void {
    if (text === "") return;
    if (this.#model.preTokenize === undefined) {
      this.#encodePiece(text, ids);
      return;
    }
    for (const piece of this.#model.preTokenize(text)) {
      if (piece.length > CACHED_PIECE_LENGTH_MAX) {
        this.#encodePiece(piece, ids);
        continue;
      }
      const known = this.#cache.get(piece);
      if (known !== undefined) {
        for (const id of known) ids.push(id);
        continue;
      }
      const first = ids.length;
      this.#encodePiece(piece, ids);
      this.#cache.set(piece, ids.slice(first));
    }
  }

  #encodePiece(piece: string, ids: number[]): void {
    const bytes = this.#utf8.encode(piece);
    if (this.#model.ignoreMerges) {
      const whole = this.#model.idByContent.get(bytesToToken(bytes));
      if (whole !== undefined) {
        ids.push(whole);
        return;
      }
    }
    const { byteIds, merges } = this.#model;
    if (merges.count === 0) {
      for (const byte of bytes) ids.push(byteIds[byte] as number);
      return;
    }
    const work = new Int32Array(bytes.length);
    for (let at = 0; at < bytes.length; at++) work[at] = byteIds[bytes[at] as number] as number;
    const count = mergePiece(work, bytes.length, merges);
    for (let at = 0; at < count; at++) ids.push(work[at] as number);
  }

  #bytesOf(ids: ArrayLike<number>, special: boolean): Uint8Array {
    const { offsets, bytes, specialIds } = this.#model;
    const kept = Array.from(ids).filter(
      (id) => id >= 0 && id < this.vocabularySize && (special || !specialIds.has(id)),
    );
    let length = 0;
    for (const id of kept) length += (offsets[id + 1] as number) - (offsets[id] as number);
    const text = new Uint8Array(length);
    let at = 0;
    for (const id of kept) {
      const piece = bytes.subarray(offsets[id], offsets[id + 1]);
      text.set(piece, at);
      at += piece.length;
    }
    return text;
  }
}

/** A mark kept its neighbours from composing, so what is left after taking marks out is normalized once more. */
function unmarkAndNormalize(text: string, normalize: (text: string) => string): string {
  const plain = unmark(text);
  return plain === text ? text : normalize(plain);
}
