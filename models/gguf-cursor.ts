/** Reads the front of a GGUF file value by value, with a window over it: a vocabulary is megabytes, the tensors behind it gigabytes. */
import { readSync } from "node:fs";
import { QuireError } from "../protocol/errors.ts";
import { failFile } from "./weights-file.ts";

const WINDOW_BYTES = 1024 * 1024;
/** Longest string: chat templates and tokens are far below. */
const STRING_BYTES_MAX = 16 * 1024 * 1024;
/** Most values of one array: vocabularies of a few hundred thousand, merges about twice that. */
const ARRAY_COUNT_MAX = 16 * 1024 * 1024;
/** All metadata together. */
const HEADER_BYTES_MAX = 512 * 1024 * 1024;
const SCALAR_BYTES = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
const TYPE_STRING = 8;
const TYPE_ARRAY = 9;

/** A value of the metadata; integers beyond 2^53 are bigints. */
export type GgufValue = number | bigint | boolean | string | GgufValue[];

/** Every read that the file is too short for is one error with the file's name. Reads block: they are few and at start-up. */
export class GgufCursor {
  readonly fileBytes: number;
  readonly #name: string;
  readonly #descriptor: number;
  readonly #utf8 = new TextDecoder("utf-8", { fatal: true });
  #window = new Uint8Array(0);
  #view = new DataView(this.#window.buffer);
  /** Where the window begins in the file, and the next byte in the window. */
  #windowOffset = 0;
  #at = 0;

  constructor(file: { name: string; descriptor: number; fileBytes: number }) {
    this.#name = file.name;
    this.#descriptor = file.descriptor;
    this.fileBytes = file.fileBytes;
  }

  /** Offset of the next byte in the file. */
  get position(): number {
    return this.#windowOffset + this.#at;
  }

  u32(): number {
    const at = this.#take(4);
    return this.#view.getUint32(at, true);
  }

  /** @throws {QuireError} `invalid_request` beyond 2^53: no count or size is. */
  u64(): number {
    const at = this.#take(8);
    const value = this.#view.getBigUint64(at, true);
    if (value > Number.MAX_SAFE_INTEGER) failFile(this.#name, `a size of ${value} is impossible`);
    return Number(value);
  }

  /** A count of things that take at least `bytesMin` each: more than fit into the file is an error, before anything is allocated. */
  count(what: string, bytesMin: number): number {
    const count = this.u64();
    if (count * bytesMin > this.fileBytes - this.position) {
      failFile(this.#name, `is truncated or broken: it cannot hold a ${what} count of ${count}`);
    }
    return count;
  }

  string(): string {
    const bytes = this.u64();
    if (bytes > STRING_BYTES_MAX) failFile(this.#name, `a string of ${bytes} bytes is over the limit`);
    const at = this.#take(bytes);
    try {
      return this.#utf8.decode(this.#window.subarray(at, at + bytes));
    } catch (cause) {
      throw new QuireError("invalid_request", `${this.#name}: a string is not UTF-8`, { cause });
    }
  }

  /** A value of a GGUF type; arrays of arrays are refused, nothing writes them. */
  value(type: number): GgufValue {
    if (type !== TYPE_ARRAY) return this.#scalar(type);
    const itemType = this.u32();
    if (itemType === TYPE_ARRAY) failFile(this.#name, "an array of arrays is not supported");
    const count = this.count("array", itemType === TYPE_STRING ? 8 : this.#scalarBytes(itemType));
    if (count > ARRAY_COUNT_MAX) failFile(this.#name, `an array of ${count} values is over the limit`);
    return Array.from({ length: count }, () => this.#scalar(itemType));
  }

  #scalarBytes(type: number): number {
    return SCALAR_BYTES[type] || failFile(this.#name, `a value of type ${type} is not known`);
  }

  #scalar(type: number): GgufValue {
    if (type === TYPE_STRING) return this.string();
    const at = this.#take(this.#scalarBytes(type));
    const view = this.#view;
    switch (type) {
      case 0:
        return view.getUint8(at);
      case 1:
        return view.getInt8(at);
      case 2:
        return view.getUint16(at, true);
      case 3:
        return view.getInt16(at, true);
      case 4:
        return view.getUint32(at, true);
      case 5:
        return view.getInt32(at, true);
      case 6:
        return view.getFloat32(at, true);
      case 7:
        return view.getUint8(at) !== 0;
      case 10:
        return narrow(view.getBigUint64(at, true));
      case 11:
        return narrow(view.getBigInt64(at, true));
      default:
        return view.getFloat64(at, true);
    }
  }

  /** Makes sure that the next `bytes` are in the window and returns where they begin there. */
  #take(bytes: number): number {
    if (this.#at + bytes > this.#window.byteLength) this.#move(bytes);
    this.#at += bytes;
    return this.#at - bytes;
  }

  #move(bytes: number): void {
    const offset = this.position;
    if (offset + bytes > this.fileBytes) failFile(this.#name, "is truncated: it ends within its header");
    if (offset + bytes > HEADER_BYTES_MAX)
      failFile(this.#name, `header is over the limit of ${HEADER_BYTES_MAX} bytes`);
    const window = new Uint8Array(Math.min(Math.max(WINDOW_BYTES, bytes), this.fileBytes - offset));
    for (let done = 0; done < window.length; ) {
      const read = readSync(this.#descriptor, window, done, window.length - done, offset + done);
      if (read === 0) failFile(this.#name, "is truncated: it became shorter while it was read");
      done += read;
    }
    this.#window = window;
    this.#view = new DataView(window.buffer);
    this.#windowOffset = offset;
    this.#at = 0;
  }
}

function narrow(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
