/** One reader of a turn: events over a byte stream, as fast as it takes them. */
import { LIMITS } from "../../protocol/limits.ts";
import type { EventCoding } from "./event-coding.ts";
import type { ReplayBuffer } from "./replay-buffer.ts";

/** What a listener reads from, and whom it tells. */
export interface ListenerOptions {
  buffer: ReplayBuffer;
  coding: EventCoding;
  /** Number of the first event that it is given. */
  from: number;
  /** Called after each write. */
  onWritten: () => void;
  /** Called once, when a write failed: nobody reads. */
  onLeft: () => void;
}

/** Follows the buffer from an event on. A failed write, of an event or a heartbeat, is how the end of the reader is noticed. */
export class TurnListener {
  readonly readable: ReadableStream<Uint8Array>;
  readonly #options: ListenerOptions;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  #cursor: number;
  /** `saidBytes` of the buffer at the cursor. */
  #givenBytes: number;
  #pump: Promise<void> | undefined;
  #left = false;

  constructor(options: ListenerOptions) {
    const { readable, writable } = new IdentityTransformStream();
    this.readable = readable;
    this.#options = options;
    this.#cursor = options.from;
    const { buffer, from } = options;
    this.#givenBytes = buffer.saidBytes - buffer.bytesSince(from);
    this.#writer = writable.getWriter();
    // A stream that nobody writes to any more rejects this promise as well.
    this.#writer.closed.catch(() => this.#leave());
  }

  /** The next event that it will be given has this number, or a higher one. */
  get cursor(): number {
    return this.#cursor;
  }

  /** Bytes that it was not given yet. */
  get queuedBytes(): number {
    return this.#options.buffer.saidBytes - this.#givenBytes;
  }

  /** Pending while events are on their way to the reader. Never rejects. */
  get pump(): Promise<void> | undefined {
    return this.#pump;
  }

  /** Sends what is new. */
  wake(): void {
    if (this.#left || this.#cursor >= this.#options.buffer.end) return;
    this.#pump ??= this.#drain();
  }

  /** Writes a heartbeat, unless a write is on its way: that one notices by itself. */
  beat(): void {
    if (this.#left || this.#pump !== undefined) return;
    this.#pump = this.#write(this.#options.coding.heartbeat).finally(() => this.#rest());
  }

  /** Delivers what is there and ends the stream. Never rejects. */
  async end(): Promise<void> {
    while (this.#pump !== undefined) await this.#pump;
    await this.#writer.close().catch(() => this.#leave());
  }

  /** Breaks the stream off: its reader is too far behind, or there are too many. */
  cut(): void {
    this.#leave();
    this.#writer.abort().catch(() => undefined);
  }

  async #drain(): Promise<void> {
    const { buffer, coding, onWritten } = this.#options;
    while (!this.#left && this.#cursor < buffer.end) {
      // Encoded, events take several times what they do here: never all that waits at once.
      const { events, end, bytes } = buffer.next(this.#cursor, LIMITS.streamWriteBytesMax);
      const encoded = coding.encode(events);
      this.#cursor = end;
      this.#givenBytes += bytes;
      try {
        if (encoded.byteLength > 0) await this.#writer.write(encoded);
      } catch {
        this.#leave();
      }
      onWritten();
    }
    this.#rest();
  }

  #rest(): void {
    this.#pump = undefined;
    // What came while a heartbeat was on its way.
    this.wake();
  }

  async #write(bytes: Uint8Array): Promise<void> {
    try {
      await this.#writer.write(bytes);
    } catch {
      this.#leave();
    }
  }

  #leave(): void {
    if (this.#left) return;
    this.#left = true;
    this.#options.onLeft();
  }
}
