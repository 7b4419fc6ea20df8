/** Length-prefixed msgpackr frames: u32 little-endian byte count, then one packed value. */
import { Packr, Unpackr } from "msgpackr";
import { QuireError } from "./errors.ts";
import { LIMITS } from "./limits.ts";

const packr = new Packr({ useRecords: false, copyBuffers: true });
const unpackr = new Unpackr({ useRecords: false, copyBuffers: true, mapsAsObjects: true });

/** Packs one value into one frame, prefix included. */
export function encodeFrame(value: unknown): Uint8Array<ArrayBuffer> {
  const body = packr.pack(value);
  const frame = new Uint8Array(4 + body.byteLength);
  new DataView(frame.buffer).setUint32(0, body.byteLength, true);
  frame.set(body, 4);
  return frame;
}

/**
 * Splits a byte stream into values. Keeps at most one incomplete frame, of at most `frameBytesMax`.
 */
export class FrameDecoder {
  readonly #frameBytesMax: number;
  #pending: Uint8Array = new Uint8Array(0);

  constructor(frameBytesMax: number = LIMITS.frameBytesMax) {
    this.#frameBytesMax = frameBytesMax;
  }

  /**
   * Takes the next chunk and returns the values it completes.
   * @throws {QuireError} `request_too_large` for a frame over the limit, `invalid_request` for one that does not unpack.
   */
  push(chunk: Uint8Array): unknown[] {
    let bytes = chunk;
    if (this.#pending.byteLength > 0) {
      bytes = new Uint8Array(this.#pending.byteLength + chunk.byteLength);
      bytes.set(this.#pending);
      bytes.set(chunk, this.#pending.byteLength);
    }
    const values: unknown[] = [];
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    let offset = 0;
    while (bytes.byteLength - offset >= 4) {
      const length = view.getUint32(offset, true);
      if (length > this.#frameBytesMax) {
        throw new QuireError(
          "request_too_large",
          `frame of ${length} bytes is over the limit of ${this.#frameBytesMax}`,
        );
      }
      if (bytes.byteLength - offset - 4 < length) break;
      values.push(unpack(bytes.subarray(offset + 4, offset + 4 + length)));
      offset += 4 + length;
    }
    this.#pending = bytes.slice(offset);
    return values;
  }

  /** True when no partial frame is held: a stream that ends otherwise was cut. */
  get atBoundary(): boolean {
    return this.#pending.byteLength === 0;
  }
}

function unpack(body: Uint8Array): unknown {
  try {
    return unpackr.unpack(body);
  } catch (cause) {
    throw new QuireError("invalid_request", "frame does not unpack", { cause });
  }
}
