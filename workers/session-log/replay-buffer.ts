/** The events of one turn with their numbers, so that a listener can begin anywhere in what is still held. */
import type { TurnEvent } from "../turn-job.ts";

/** An event of a turn. Numbers ascend; some are left out, where one event stands for several tokens (`turn-runner.ts`). */
export interface NumberedEvent {
  number: number;
  event: TurnEvent;
}

interface Held extends NumberedEvent {
  bytes: number;
}

/** What an event takes beside its text. */
const EVENT_BYTES = 64;

/** What an event takes in memory and, about, on its way: its text is what may be long. */
export function eventBytes(event: TurnEvent): number {
  if (event.type !== "text") return EVENT_BYTES;
  let bytes = EVENT_BYTES + 2 * event.text.length;
  for (const { token, bytes: utf8, top } of event.logprobs ?? []) {
    bytes += EVENT_BYTES * (1 + top.length) + 2 * token.length + 8 * utf8.length;
  }
  return bytes;
}

/** Holds the events numbered `[first, end)`. Keeps the objects that it is given. */
export class ReplayBuffer {
  #events: Held[] = [];
  #first: number;
  #end: number;
  #bytes = 0;
  #saidBytes = 0;

  /** @param first lowest number that will be pushed */
  constructor(first = 0) {
    this.#first = first;
    this.#end = first;
  }

  /** From this number on nothing is missing. */
  get first(): number {
    return this.#first;
  }

  /** Lowest number that the next event can have. */
  get end(): number {
    return this.#end;
  }

  get count(): number {
    return this.#events.length;
  }

  /** Of all events held. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Of all events ever pushed. */
  get saidBytes(): number {
    return this.#saidBytes;
  }

  /** Adds an event. Its number is `number`, or {@link end} where that is more. */
  push(event: TurnEvent, number: number = this.#end): void {
    const bytes = eventBytes(event);
    const held = { number: Math.max(number, this.#end), event, bytes };
    this.#events.push(held);
    this.#end = held.number + 1;
    this.#bytes += bytes;
    this.#saidBytes += bytes;
  }

  /** The events from number `from` on. */
  since(from: number): readonly NumberedEvent[] {
    return this.#events.slice(this.#indexOf(from));
  }

  /**
   * The first events from number `from` on, at most about `bytesMax` of them but one at least where there is one.
   * @returns with them the number of the event behind them, and their bytes
   */
  next(from: number, bytesMax: number): { events: readonly NumberedEvent[]; end: number; bytes: number } {
    const begin = this.#indexOf(from);
    let [index, bytes] = [begin, 0];
    while (index < this.#events.length && bytes < bytesMax) bytes += this.#events[index++]?.bytes ?? 0;
    const events = this.#events.slice(begin, index);
    return { events, end: (events.at(-1)?.number ?? from - 1) + 1, bytes };
  }

  /** What {@link since} would give, in bytes. */
  bytesSince(from: number): number {
    let bytes = 0;
    for (let index = this.#indexOf(from); index < this.#events.length; index++)
      bytes += this.#events[index]?.bytes ?? 0;
    return bytes;
  }

  /** Forgets every event below number `before`. */
  dropBefore(before: number): void {
    if (before <= this.#first) return;
    for (const { bytes } of this.#events.splice(0, this.#indexOf(before))) this.#bytes -= bytes;
    this.#first = Math.min(before, this.#end);
  }

  /** Forgets the oldest events until at most `bytesMax` and `countMax` are left, but none from number `keepFrom` on. */
  trim(bytesMax: number, countMax: number, keepFrom: number): void {
    let before = this.#first;
    let bytes = this.#bytes;
    let count = this.#events.length;
    for (const held of this.#events) {
      if ((bytes <= bytesMax && count <= countMax) || held.number >= keepFrom) break;
      bytes -= held.bytes;
      count -= 1;
      before = held.number + 1;
    }
    this.dropBefore(before);
  }

  /** Index of the first event whose number is at least `number`. */
  #indexOf(number: number): number {
    let [low, high] = [0, this.#events.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#events[middle]?.number ?? 0) < number) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
