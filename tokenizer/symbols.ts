/** What the merging of a piece starts from: the ids of its bytes, or of its characters. */
import type { BpeTables } from "./bpe-tables.ts";
import { codePointAt } from "./char-classes.ts";
import { CharTable } from "./char-table.ts";
import type { JsonObject } from "./json.ts";
import type { TokenTable } from "./token-table.ts";

/** Starts pieces: ranges `units[from..end]` of well-formed UTF-16. Buffers are used again. */
export interface Symbols {
  /** Writes the ids that merging starts from and returns how many; `out` has room for three a unit. */
  fill(units: Uint16Array, from: number, end: number, out: Int32Array): number;
  /** The piece in UTF-8: the first {@link byteLength} of what is returned, until the next call. */
  bytesOf(units: Uint16Array, from: number, end: number): Uint8Array;
  readonly byteLength: number;
  /** True when every character becomes an id. */
  readonly isTotal: boolean;
}

class Utf8Piece {
  bytes = new Uint8Array(256);
  byteLength = 0;

  bytesOf(units: Uint16Array, from: number, end: number): Uint8Array {
    if (this.bytes.length < (end - from) * 3) this.bytes = new Uint8Array((end - from) * 3);
    const { bytes } = this;
    let count = 0;
    for (let at = from; at < end; ) {
      const codePoint = codePointAt(units, at);
      at += codePoint > 0xffff ? 2 : 1;
      count = writeUtf8(codePoint, bytes, count);
    }
    this.byteLength = count;
    return bytes;
  }
}

/** Byte-level models. */
export class ByteSymbols extends Utf8Piece implements Symbols {
  readonly #byteIds: Int32Array;
  readonly isTotal = true;

  constructor({ byteIds }: BpeTables) {
    super();
    this.#byteIds = byteIds;
  }

  fill(units: Uint16Array, from: number, end: number, out: Int32Array): number {
    const bytes = this.bytesOf(units, from, end);
    for (let at = 0; at < this.byteLength; at++) out[at] = this.#byteIds[bytes[at] as number] as number;
    return this.byteLength;
  }
}

/**
 * Models of characters. One that is not in the vocabulary becomes bytes where the model has all of them, otherwise the
 * unknown token, of which `fuse_unk` makes one for neighbours; without an unknown token it is left out.
 */
export class CharSymbols extends Utf8Piece implements Symbols {
  readonly isTotal: boolean;
  readonly #chars: CharTable;
  readonly #byteIds: Int32Array;
  readonly #byteFallback: boolean;
  readonly #unknownId: number;
  readonly #fuses: boolean;
  readonly #one = new Uint8Array(4);

  /** `model`: of tokenizer.json; `tokens` finds its unknown token. */
  constructor({ charSlots, byteIds }: BpeTables, model: JsonObject, tokens: TokenTable) {
    super();
    this.#chars = new CharTable(charSlots);
    this.#byteIds = byteIds;
    this.#byteFallback = model.byte_fallback === true;
    const unknown = typeof model.unk_token === "string" ? new TextEncoder().encode(model.unk_token) : undefined;
    this.#unknownId = unknown === undefined ? -1 : tokens.find(unknown, unknown.length);
    this.#fuses = model.fuse_unk === true;
    this.isTotal = this.#unknownId >= 0 || (this.#byteFallback && byteIds.every((id) => id >= 0));
  }

  fill(units: Uint16Array, from: number, end: number, out: Int32Array): number {
    let count = 0;
    // As in the reference, an unknown token is written when a known character or the end follows: behind bytes in between.
    let unknownWaits = false;
    for (let at = from; at < end; ) {
      const codePoint = codePointAt(units, at);
      at += codePoint > 0xffff ? 2 : 1;
      const id = this.#chars.find(codePoint);
      if (id >= 0) {
        if (unknownWaits) out[count++] = this.#unknownId;
        unknownWaits = false;
        out[count++] = id;
        continue;
      }
      const byteCount = this.#byteFallback ? this.#fillBytes(codePoint, out, count) : 0;
      count += byteCount;
      if (byteCount > 0 || this.#unknownId < 0) continue;
      if (unknownWaits && !this.#fuses) out[count++] = this.#unknownId;
      unknownWaits = true;
    }
    if (unknownWaits) out[count++] = this.#unknownId;
    return count;
  }

  #fillBytes(codePoint: number, out: Int32Array, at: number): number {
    const count = writeUtf8(codePoint, this.#one, 0);
    for (let index = 0; index < count; index++) {
      const id = this.#byteIds[this.#one[index] as number] as number;
      if (id < 0) return 0;
      out[at + index] = id;
    }
    return count;
  }
}

/** Writes the UTF-8 of a code point and returns where the next one goes. */
function writeUtf8(codePoint: number, out: Uint8Array, from: number): number {
  let at = from;
  if (codePoint < 0x80) {
    out[at++] = codePoint;
    return at;
  }
  if (codePoint < 0x800) {
    out[at++] = 0xc0 | (codePoint >> 6);
  } else {
    if (codePoint < 0x10000) {
      out[at++] = 0xe0 | (codePoint >> 12);
    } else {
      out[at++] = 0xf0 | (codePoint >> 18);
      out[at++] = 0x80 | ((codePoint >> 12) & 0x3f);
    }
    out[at++] = 0x80 | ((codePoint >> 6) & 0x3f);
  }
  out[at++] = 0x80 | (codePoint & 0x3f);
  return at;
}
