/** Byte-pair encoding over compiled tables, byte-level or in the manner of SentencePiece, as Hugging Face's tokenizers does it. */
import { readAddedTokens } from "./added-token-list.ts";
import type { BpeTables } from "./bpe-tables.ts";
import { tokenToBytes } from "./byte-alphabet.ts";
import { CharTable } from "./char-table.ts";
import type { EncodeOptions, IncrementalDecoder, Tokenizer } from "./contract.ts";
import { asObject } from "./json.ts";
import { MergeTable } from "./merge-table.ts";
import type { Normalize } from "./normalize.ts";
import { PieceCache } from "./piece-cache.ts";
import { PieceMerger } from "./piece-merger.ts";
import { BorderSplitter, type Bounds, type Splitter, type Text } from "./splitters.ts";
import { ByteSymbols, CharSymbols, type Symbols } from "./symbols.ts";
import { type FrontSink, TextFront } from "./text-front.ts";
import { readDecoder } from "./token-bytes.ts";
import { TokenTable } from "./token-table.ts";
import { Utf8Decoder } from "./utf8-decoder.ts";

/** SentencePiece writes spaces as this. */
const METASPACE = "\u2581";
/**
 * Longer pieces are cut in parts of this many units, and those in parts of as many symbols: only there ids can differ from
 * the reference. Merging takes 28 bytes a symbol, and a Worker that runs out of memory takes other requests with it.
 */
const PART_LENGTH_MAX = 2 ** 20;
/** Buffers up to this size are used again. */
const KEPT_SYMBOL_COUNT_MAX = 262_144;

/** A {@link Tokenizer} over compiled tables. One call at a time (it is synchronous); state is caches and buffers only. */
export class Bpe implements Tokenizer {
  readonly vocabularySize: number;
  /** What texts go through before normalized special tokens are looked for in them; undefined for nothing. */
  readonly normalize: Normalize | undefined;
  readonly #tables: BpeTables;
  readonly #front: TextFront;
  readonly #symbols: Symbols;
  readonly #merger: PieceMerger;
  readonly #tokens: TokenTable;
  readonly #ignoreMerges: boolean;
  readonly #addedIds: ReadonlyMap<string, number>;
  readonly #specialIds: ReadonlySet<number>;
  readonly #dropsFirstSpace: boolean;
  readonly #cache = new PieceCache();
  readonly #utf8 = new TextEncoder();
  #work = new Int32Array(1024);

  /**
   * Keeps `tables`, which are sound (built here, or checked).
   * @throws {QuireError} `internal` naming a setting that is malformed or not supported.
   */
  constructor(tables: BpeTables) {
    const { settings } = tables;
    const model = asObject(settings.model, "tokenizer.json: model");
    const added = readAddedTokens(settings.added_tokens);
    this.#tables = tables;
    this.vocabularySize = tables.vocabularySize;
    this.#tokens = new TokenTable(tables.tokenSlots, tables.contents);
    this.#symbols = tables.kind === "bytes" ? new ByteSymbols(tables) : new CharSymbols(tables, model, this.#tokens);
    this.#merger = new PieceMerger(new MergeTable(tables.mergeSlots));
    this.#ignoreMerges = model.ignore_merges === true;
    this.#addedIds = new Map(added.map((token) => [token.content, token.id]));
    this.#specialIds = new Set(added.filter((token) => token.special).map((token) => token.id));
    this.#dropsFirstSpace = readDecoder(settings.decoder).dropsFirstSpace;
    this.#front = new TextFront(settings, added, this.#ignoreMerges ? undefined : wordBorders(tables, this.#symbols));
    const { normalizer } = this.#front;
    this.normalize = normalizer?.prepends === true ? undefined : normalizer?.normalize;
  }

  encode(text: string, { special = false, countMax = Number.POSITIVE_INFINITY }: EncodeOptions = {}): number[] {
    const ids: number[] = [];
    const sink: FrontSink = {
      token: (id) => ids.push(id),
      pieces: (source, bounds) => this.#encodePieces(source, bounds, { ids, countMax }),
      isFull: () => ids.length > countMax,
    };
    this.#front.run(text, special, sink);
    return ids;
  }

  decode(ids: ArrayLike<number>, options: { special?: boolean } = {}): string {
    const special = options.special === true;
    const bytes = this.#bytesOf(ids, { special, atStart: this.#dropsFirstSpace });
    return new TextDecoder("utf-8", { fatal: false, ignoreBOM: true }).decode(bytes);
  }

  idOf(token: string): number | undefined {
    const added = this.#addedIds.get(token);
    if (added !== undefined) return added;
    const alphabet = this.#tables.kind === "bytes" ? tokenToBytes(token) : undefined;
    const bytes = alphabet ?? this.#utf8.encode(token);
    const id = this.#tokens.find(bytes, bytes.length);
    return id < 0 ? undefined : id;
  }

  isSpecial(id: number): boolean {
    return this.#specialIds.has(id);
  }

  piece(id: number): { text: string; bytes: number[] } {
    const bytes = this.#bytesOf([id], { special: true, atStart: false });
    return { text: new TextDecoder("utf-8", { fatal: false, ignoreBOM: true }).decode(bytes), bytes: [...bytes] };
  }

  decoder(): IncrementalDecoder {
    const utf8 = new Utf8Decoder();
    let atStart = this.#dropsFirstSpace;
    return {
      push: (ids) => {
        const bytes = this.#bytesOf(ids, { special: false, atStart });
        atStart &&= !this.#hasText(ids);
        return utf8.push(bytes);
      },
      flush: () => {
        atStart = this.#dropsFirstSpace;
        return utf8.flush();
      },
    };
  }

  #encodePieces(
    { units }: Text,
    { ends, count }: Bounds,
    { ids, countMax }: { ids: number[]; countMax: number },
  ): void {
    let from = 0;
    for (let index = 0; index < count && ids.length <= countMax; index++) {
      const end = ends[index] as number;
      while (end - from > PART_LENGTH_MAX) {
        const cut = partEnd(units, from + PART_LENGTH_MAX);
        this.#encodePiece(units, from, cut, ids);
        if (ids.length > countMax) return;
        from = cut;
      }
      if (!this.#cache.get(units, from, end, ids)) {
        const first = ids.length;
        this.#encodePiece(units, from, end, ids);
        this.#cache.set(units, from, end, ids, first);
      }
      from = end;
    }
  }

  #encodePiece(units: Uint16Array, from: number, end: number, ids: number[]): void {
    const symbols = this.#symbols;
    if (this.#ignoreMerges) {
      const whole = this.#tokens.find(symbols.bytesOf(units, from, end), symbols.byteLength);
      if (whole >= 0 && !this.#specialIds.has(whole)) {
        ids.push(whole);
        return;
      }
    }
    // A unit is at most three bytes.
    const work = this.#workOf((end - from) * 3);
    const length = symbols.fill(units, from, end, work);
    for (let start = 0; start < length; start += PART_LENGTH_MAX) {
      const part = start === 0 ? work : work.subarray(start);
      const count = this.#merger.merge(part, Math.min(length - start, PART_LENGTH_MAX));
      for (let at = 0; at < count; at++) ids.push(part[at] as number);
    }
  }

  #workOf(length: number): Int32Array {
    if (this.#work.length >= length) return this.#work;
    const grown = new Int32Array(length);
    if (length <= KEPT_SYMBOL_COUNT_MAX) this.#work = grown;
    return grown;
  }

  #isText(id: number, special: boolean): boolean {
    return id >= 0 && id < this.vocabularySize && (special || !this.#specialIds.has(id));
  }

  #hasText(ids: ArrayLike<number>): boolean {
    const { offsets } = this.#tables.texts;
    return Array.from(ids).some((id) => this.#isText(id, false) && offsets[id] !== offsets[id + 1]);
  }

  /** Bytes of the ids; `atStart` leaves out one space at the front. */
  #bytesOf(ids: ArrayLike<number>, { special, atStart }: { special: boolean; atStart: boolean }): Uint8Array {
    const { offsets, bytes } = this.#tables.texts;
    let length = 0;
    for (let index = 0; index < ids.length; index++) {
      const id = ids[index] as number;
      if (this.#isText(id, special)) length += (offsets[id + 1] as number) - (offsets[id] as number);
    }
    const text = new Uint8Array(length);
    let at = 0;
    for (let index = 0; index < ids.length; index++) {
      const id = ids[index] as number;
      if (!this.#isText(id, special)) continue;
      const last = offsets[id + 1] as number;
      for (let from = offsets[id] as number; from < last; from++) text[at++] = bytes[from] as number;
    }
    return atStart && text[0] === 0x20 ? text.subarray(1) : text;
  }
}

/** `at`, or the place before it where a pair of surrogates would be cut. */
function partEnd(units: Uint16Array, at: number): number {
  return ((units[at] as number) & 0xfc00) === 0xdc00 ? at - 1 : at;
}

/**
 * SentencePiece-style models merge whole sections; where no token of theirs has a space behind something else, no merge
 * crosses the border before a word, and words can be encoded (and remembered) one by one with the same ids.
 */
function wordBorders(tables: BpeTables, symbols: Symbols): Splitter | undefined {
  if (tables.kind === "bytes") return undefined;
  // Unknown characters join across an unknown space, and those that are left out bring their neighbours together.
  if (!symbols.isTotal || new CharTable(tables.charSlots).find(METASPACE.charCodeAt(0)) < 0) return undefined;
  const { offsets, bytes } = tables.contents;
  const [first, second, third] = new TextEncoder().encode(METASPACE);
  for (const id of tables.tokenSlots) {
    if (id < 0) continue;
    const start = offsets[id] as number;
    const end = offsets[id + 1] as number;
    let isBehindOther = false;
    for (let at = start; at < end; ) {
      const isSpace = bytes[at] === first && bytes[at + 1] === second && bytes[at + 2] === third && at + 2 < end;
      if (isSpace && isBehindOther) return undefined;
      isBehindOther ||= !isSpace;
      at += isSpace ? 3 : 1;
    }
  }
  return new BorderSplitter(METASPACE, { runs: true });
}
