/** The way of a turn's events to whoever listens, also later, and a signal for "nobody there". */
import { LIMITS } from "../../protocol/limits.ts";
import type { TurnEvent } from "../turn-job.ts";
import type { EventCoding } from "./event-coding.ts";
import { type NumberedEvent, ReplayBuffer } from "./replay-buffer.ts";
import { isolateStreams, type StreamMemory } from "./stream-memory.ts";
import { TurnListener } from "./turn-listener.ts";

/** A new stream's name. */
export function newStreamId(): string {
  return crypto.randomUUID().replaceAll("-", "").slice(0, 20);
}

/** What a stream is made with. */
export interface TurnStreamOptions {
  resumable: boolean;
  streamId?: string;
  /** Lowest number of its events. */
  first?: number;
  /** Default `LIMITS.resumableMsMax`. */
  absenceMsMax?: number;
  revived?: boolean;
  /** Default: the isolate's. */
  memory?: StreamMemory;
  /** Whoever runs the turn calls {@link TurnStream.attend}, when that holds nothing up. */
  isAttendedLater?: boolean;
}

/**
 * One producer. Events wait in memory while listeners are slow, up to `LIMITS.turnBufferBytesMax`, or `turnBufferTightBytes` while the turns of the
 * isolate hold too much together ({@link StreamMemory}); {@link ready} is how the producer waits with them. While nothing is said a heartbeat goes out every `LIMITS.heartbeatMs`: a failed write, of whatever, is how the end of a
 * listener is noticed.
 *
 * A stream that is not resumable has one listener and forgets what that one was given. A resumable one keeps its events (up to
 * `LIMITS.replayBytesMax` and `replayEventCountMax`, the oldest go first) for listeners that come later, and goes on without any for
 * `absenceMsMax` (default `LIMITS.resumableMsMax`), or until what nobody was given exceeds those bounds. While the isolate is short of memory it keeps
 * less for those who come later, and waits for one.
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
  readonly #memory: StreamMemory;
  /** Resolved when a producer that waits should look again. */
  #change = Promise.withResolvers<void>();
  readonly #gone = new AbortController();
  readonly #drained = Promise.withResolvers<void>();
  #heartbeat: ReturnType<typeof setInterval> | undefined;
  #absence: ReturnType<typeof setTimeout> | undefined;
  /** Whether anything was said since the last tick. */
  #spoke = false;
  #closed = false;

  constructor(options: TurnStreamOptions) {
    this.id = options.streamId ?? newStreamId();
    this.resumable = options.resumable;
    this.revived = options.revived ?? false;
    this.#absenceMsMax = options.absenceMsMax ?? LIMITS.resumableMsMax;
    this.#memory = options.memory ?? isolateStreams;
    this.#buffer = new ReplayBuffer(options.first);
    if (this.revived) this.#awaitListener();
    if (options.isAttendedLater !== true) this.attend();
  }

  /** A stream that has said all it will, with the events that are left of it. To be closed by who does not get to read it. */
  static ended(replay: { streamId: string; first: number; events: readonly NumberedEvent[] }): TurnStream {
    const stream = new TurnStream({ resumable: true, streamId: replay.streamId, first: replay.first });
    for (const { event, number } of replay.events) stream.#buffer.push(event, number);
    stream.#closed = true;
    return stream;
  }

  /** Aborted when nobody listens any more, or somebody asked for the end. */
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  /** Somebody listens, as far as is known. */
  get isHeard(): boolean {
    return this.#listeners.length > 0;
  }

  /** Resolves when everything is said and nobody reads it any more. */
  get drained(): Promise<void> {
    return this.#drained.promise;
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
    this.#look();
    if (this.#listeners.length > LIMITS.streamListenerCountMax) this.#listeners[0]?.cut();
    listener.wake();
    if (this.#closed) void this.#end(listener);
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
    this.#account();
  }

  /** Begins with heartbeats, and with what is to be said now and then. */
  attend(): void {
    if (this.#closed && this.#listeners.length === 0) return;
    this.#heartbeat ??= setInterval(() => this.#tick(), LIMITS.heartbeatMs);
  }

  /** There is something to wait for with {@link ready}. The fastest listener sets the pace: one that is dead and not yet noticed must not hold the others up. */
  get isFull(): boolean {
    if (this.#closed) return false;
    const { turnBufferBytesMax, turnBufferTightBytes } = LIMITS;
    const { isTight } = this.#memory;
    // Nobody listens: bounded by what may be kept, and not asked to wait for a reader while there is room.
    if (this.#listeners.length === 0) return isTight && this.resumable && this.#buffer.bytes > turnBufferTightBytes;
    const bytesMax = isTight ? turnBufferTightBytes : turnBufferBytesMax;
    return this.#listeners.every(({ queuedBytes }) => queuedBytes > bytesMax);
  }

  /** Resolves when there is room for more, or `signal` is aborted. */
  async ready(signal: AbortSignal): Promise<void> {
    if (!this.isFull || signal.aborted) return;
    const aborted = Promise.withResolvers<void>();
    const release = () => aborted.resolve();
    signal.addEventListener("abort", release);
    while (this.isFull && !signal.aborted) {
      const pumps = this.#listeners.flatMap(({ pump }) => pump ?? []);
      await Promise.race([...pumps, this.#change.promise, aborted.promise]);
    }
    signal.removeEventListener("abort", release);
  }

  /** Ends the work, as if the last listener had gone for good. */
  stop(): void {
    clearTimeout(this.#absence);
    this.#gone.abort();
  }

  /** Ends the work of a stream that cannot be resumed: its listener is known to have gone. */
  leave(): void {
    for (const listener of [...this.#listeners]) listener.cut();
    this.stop();
  }

  /** Delivers what is queued and ends the streams of all listeners. Never rejects. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#absence);
    if (this.#listeners.length > 0) this.attend();
    this.#look();
    await Promise.all(this.#listeners.map((listener) => this.#end(listener)));
    this.#rest();
  }

  async #end(listener: TurnListener): Promise<void> {
    await listener.end();
    this.#left(listener);
  }

  #rest(): void {
    if (!this.#closed || this.#listeners.length > 0) return;
    clearInterval(this.#heartbeat);
    this.#memory.release(this.id);
    this.#drained.resolve();
  }

  #tick(): void {
    this.#look();
    this.#account();
    if (!this.#spoke && !this.#closed) for (const listener of this.#listeners) listener.beat();
    this.#spoke = false;
  }

  #look(): void {
    this.#change.resolve();
    this.#change = Promise.withResolvers();
  }

  #account(): void {
    this.#memory.hold(this.id, this.#buffer.bytes);
  }

  #left(listener: TurnListener): void {
    const index = this.#listeners.indexOf(listener);
    if (index >= 0) this.#listeners.splice(index, 1);
    if (this.#listeners.length > 0) return;
    if (this.#closed) {
      this.#rest();
      return;
    }
    if (!this.resumable) {
      clearInterval(this.#heartbeat);
      this.#buffer.dropBefore(this.#buffer.end);
      this.#account();
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

  /** What the only listener of a stream that cannot be resumed was given is of no more use. */
  #forget(): void {
    if (this.resumable) return;
    this.#buffer.dropBefore(this.#furthest());
    this.#account();
  }

  #bound(): void {
    const { replayBytesMax, replayEventCountMax, turnBufferTightBytes } = LIMITS;
    const isOver = this.#buffer.bytes > replayBytesMax || this.#buffer.count > replayEventCountMax;
    if (this.#listeners.length === 0) {
      if (isOver) this.stop();
      return;
    }
    const bytesMax = this.#memory.isTight ? turnBufferTightBytes : replayBytesMax;
    if (!isOver && this.#buffer.bytes <= bytesMax) return;
    // An eighth at once: dropping one by one would move the whole buffer each time.
    this.#buffer.trim((bytesMax * 7) / 8, (replayEventCountMax * 7) / 8, this.#furthest());
    for (const listener of this.#listeners.filter(({ cursor }) => cursor < this.#buffer.first)) listener.cut();
  }
}
