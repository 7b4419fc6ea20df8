/** The way of a turn's events to whoever listens, also later, and a signal for "nobody there". */
import { LIMITS } from "../../protocol/limits.ts";
import type { TurnEvent } from "../turn-job.ts";
import type { EventCoding } from "./event-coding.ts";
import { type NumberedEvent, ReplayBuffer } from "./replay-buffer.ts";
import { TurnListener } from "./turn-listener.ts";

/** A new stream's name. */
export function newStreamId(): string {
  return crypto.randomUUID().replaceAll("-", "").slice(0, 20);
}

/**
 * One producer. Events wait in memory while listeners are slow, up to `LIMITS.turnBufferBytesMax`; {@link ready} is how the producer waits
 * with them. While nothing is said a heartbeat goes out every `LIMITS.heartbeatMs`: a failed write, of whatever, is how the end of a
 * listener is noticed.
 *
 * A stream that is not resumable has one listener and forgets what that one was given. A resumable one keeps its events (up to
 * `LIMITS.replayBytesMax` and `replayEventCountMax`, the oldest go first) for listeners that come later, and goes on without any for
 * `absenceMsMax` (default `LIMITS.resumableMsMax`), or until what nobody was given exceeds those bounds.
 */
export class TurnStream {
  /** Names this turn's events: what a client was given of another turn is not its beginning. */
  readonly id: string;
  readonly resumable: boolean;
  /** Taken up after its object was lost: it says again what listeners may have, who then wait for what comes behind that. */
  readonly revived: boolean;
  readonly #buffer: ReplayBuffer;
  readonly #listeners: TurnListener[] = [];
  readonly #absenceMsMax: number;
  readonly #gone = new AbortController();
  readonly #heartbeat: ReturnType<typeof setInterval>;
  #absence: ReturnType<typeof setTimeout> | undefined;
  /** Whether anything was said since the last tick. */
  #spoke = false;
  #closed = false;

  constructor(options: {
    resumable: boolean;
    streamId?: string;
    first?: number;
    absenceMsMax?: number;
    revived?: boolean;
  }) {
    this.id = options.streamId ?? newStreamId();
    this.resumable = options.resumable;
    this.revived = options.revived ?? false;
    this.#absenceMsMax = options.absenceMsMax ?? LIMITS.resumableMsMax;
    this.#buffer = new ReplayBuffer(options.first);
    this.#heartbeat = setInterval(() => this.#tick(), LIMITS.heartbeatMs);
    if (this.revived) this.#awaitListener();
  }

  /** A stream that has said all it will, with the events that are left of it. */
  static ended(replay: { streamId: string; first: number; events: readonly NumberedEvent[] }): TurnStream {
    const stream = new TurnStream({ resumable: true, streamId: replay.streamId, first: replay.first });
    for (const { event, number } of replay.events) stream.#buffer.push(event, number);
    void stream.close();
    return stream;
  }

  /** Aborted when nobody listens any more, or somebody asked for the end. */
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  /** What is held, for a store that outlives this object. */
  get held(): { first: number; events: readonly NumberedEvent[] } {
    return { first: this.#buffer.first, events: this.#buffer.since(this.#buffer.first) };
  }

  /** The events from number `from` on; undefined when they are not held any more, or were never said. */
  subscribe(from: number, coding: EventCoding): ReadableStream<Uint8Array> | undefined {
    const isAhead = from > this.#buffer.end && !(this.revived && !this.#closed);
    if (from < this.#buffer.first || isAhead) return undefined;
    clearTimeout(this.#absence);
    const listener: TurnListener = new TurnListener({
      buffer: this.#buffer,
      coding,
      from,
      onWritten: () => this.#forget(),
      onLeft: () => this.#left(listener),
    });
    this.#listeners.push(listener);
    if (this.#listeners.length > LIMITS.streamListenerCountMax) this.#listeners[0]?.cut();
    listener.wake();
    if (this.#closed) void listener.end();
    return listener.readable;
  }

  /** Queues an event; its number is `number`, or the next one where that is more. */
  send(event: TurnEvent, number?: number): void {
    // Who asked for the end of a turn may not be who listens to it, and that one is told.
    if (this.#gone.signal.aborted && !this.resumable && this.#listeners.length === 0) return;
    this.#spoke = true;
    this.#buffer.push(event, number);
    for (const listener of this.#listeners) listener.wake();
    if (this.resumable) this.#bound();
  }

  /** Resolves when there is room for more, or `signal` is aborted. */
  async ready(signal: AbortSignal): Promise<void> {
    if (!this.#isFull() || signal.aborted) return;
    const aborted = Promise.withResolvers<void>();
    const release = () => aborted.resolve();
    signal.addEventListener("abort", release);
    while (this.#isFull() && !signal.aborted) {
      const pumps = this.#listeners.flatMap(({ pump }) => pump ?? []);
      if (pumps.length === 0) break;
      await Promise.race([...pumps, aborted.promise]);
    }
    signal.removeEventListener("abort", release);
  }

  /** Ends the work, as if the last listener had gone for good. */
  stop(): void {
    clearTimeout(this.#absence);
    this.#gone.abort();
  }

  /** Delivers what is queued and ends the streams of all listeners. Never rejects. */
  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#heartbeat);
    clearTimeout(this.#absence);
    await Promise.all(this.#listeners.map((listener) => listener.end()));
  }

  #tick(): void {
    if (!this.#spoke) for (const listener of this.#listeners) listener.beat();
    this.#spoke = false;
  }

  #left(listener: TurnListener): void {
    const index = this.#listeners.indexOf(listener);
    if (index >= 0) this.#listeners.splice(index, 1);
    if (this.#listeners.length > 0 || this.#closed) return;
    if (!this.resumable) {
      clearInterval(this.#heartbeat);
      this.#buffer.dropBefore(this.#buffer.end);
      this.stop();
      return;
    }
    this.#awaitListener();
    this.#bound();
  }

  #awaitListener(): void {
    clearTimeout(this.#absence);
    this.#absence = setTimeout(() => this.stop(), this.#absenceMsMax);
  }

  /** Number of the first event that no listener was given. */
  #furthest(): number {
    return this.#listeners.reduce((most, { cursor }) => Math.max(most, cursor), 0);
  }

  /** The fastest listener sets the pace: one that is dead and not yet noticed must not hold the others up. */
  #isFull(): boolean {
    if (this.#listeners.length === 0) return false;
    return this.#listeners.every(({ queuedBytes }) => queuedBytes > LIMITS.turnBufferBytesMax);
  }

  /** What the only listener of a stream that cannot be resumed was given is of no more use. */
  #forget(): void {
    if (!this.resumable) this.#buffer.dropBefore(this.#furthest());
  }

  #bound(): void {
    const { replayBytesMax, replayEventCountMax } = LIMITS;
    if (this.#buffer.bytes <= replayBytesMax && this.#buffer.count <= replayEventCountMax) return;
    if (this.#listeners.length === 0) {
      this.stop();
      return;
    }
    // An eighth at once: dropping one by one would move the whole buffer each time.
    this.#buffer.trim((replayBytesMax * 7) / 8, (replayEventCountMax * 7) / 8, this.#furthest());
    for (const listener of this.#listeners.filter(({ cursor }) => cursor < this.#buffer.first)) listener.cut();
  }
}
