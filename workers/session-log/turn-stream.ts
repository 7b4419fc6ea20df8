/** The way of a turn's events to whoever listens: frames over a byte stream, with heartbeats, and a signal for "nobody there". */
import { encodeFrame } from "../../protocol/frames.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { TurnEvent } from "../turn-job.ts";

/**
 * One writer, one reader. Events wait in memory while the reader is slow, up to `LIMITS.turnBufferBytesMax`; {@link ready} is how the
 * producer waits with them. While nothing is said a heartbeat goes out every `LIMITS.heartbeatMs`: a failed write, of whatever, is how
 * the end of the reader is noticed.
 */
export class TurnStream {
  readonly readable: ReadableStream<Uint8Array>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #gone = new AbortController();
  readonly #heartbeat: ReturnType<typeof setInterval>;
  #queue: Uint8Array[] = [];
  #queuedBytes = 0;
  #pump: Promise<void> | undefined;
  /** Whether anything was said since the last tick. */
  #spoke = false;

  constructor() {
    const { readable, writable } = new IdentityTransformStream();
    this.readable = readable;
    this.#writer = writable.getWriter();
    // A stream that nobody writes to any more rejects this promise as well.
    this.#writer.closed.catch(() => this.#leave());
    this.#heartbeat = setInterval(() => this.#tick(), LIMITS.heartbeatMs);
  }

  /** Aborted when the reader is gone. */
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  /** Queues an event. */
  send(event: TurnEvent): void {
    if (this.#gone.signal.aborted) return;
    this.#spoke = true;
    const frame = encodeFrame(event);
    this.#queue.push(frame);
    this.#queuedBytes += frame.byteLength;
    this.#pump ??= this.#drain();
  }

  /** Resolves when there is room for more, or `signal` is aborted. */
  async ready(signal: AbortSignal): Promise<void> {
    if (this.#queuedBytes <= LIMITS.turnBufferBytesMax || signal.aborted) return;
    const aborted = Promise.withResolvers<void>();
    const release = () => aborted.resolve();
    signal.addEventListener("abort", release);
    while (this.#queuedBytes > LIMITS.turnBufferBytesMax && this.#pump && !signal.aborted) {
      await Promise.race([this.#pump, aborted.promise]);
    }
    signal.removeEventListener("abort", release);
  }

  /** Delivers what is queued and ends the stream. Never rejects. */
  async close(): Promise<void> {
    clearInterval(this.#heartbeat);
    await this.#pump;
    await this.#writer.close().catch(() => this.#leave());
  }

  /** Ends a stream that nobody was given. */
  async abandon(): Promise<void> {
    this.#leave();
    await this.readable.cancel().catch(() => undefined);
  }

  async #drain(): Promise<void> {
    try {
      while (this.#queue.length > 0) {
        const frames = this.#queue;
        this.#queue = [];
        this.#queuedBytes = 0;
        await this.#writer.write(concat(frames));
      }
    } catch {
      this.#leave();
    } finally {
      this.#pump = undefined;
    }
  }

  #tick(): void {
    // A write on its way notices by itself; a heartbeat behind it would only pile up.
    const silent = !this.#spoke && this.#pump === undefined;
    if (silent) this.send({ type: "heartbeat" });
    this.#spoke = false;
  }

  #leave(): void {
    clearInterval(this.#heartbeat);
    this.#queue = [];
    this.#queuedBytes = 0;
    this.#gone.abort();
  }
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const [only] = parts;
  if (parts.length === 1 && only) return only;
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.byteLength, 0));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.byteLength;
  }
  return whole;
}
