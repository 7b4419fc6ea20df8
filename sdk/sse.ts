/** Server-sent events, as the WHATWG HTML standard parses them ("Interpreting an event stream"). */

/** One dispatched event. */
export interface SseEvent {
  /** The `event` field, "message" when the server sent none. */
  event: string;
  /** The `data` lines joined by line feeds. */
  data: string;
  /** The last `id` seen, here or in an earlier event; empty when there was none. */
  id: string;
}

/** What a parser may hold of an event that is not complete yet, in UTF-16 units. */
export const SSE_EVENT_LENGTH_MAX = 8 * 1024 * 1024;

/**
 * An incremental parser: chunks may be cut anywhere, lines end in CR LF, LF or CR, a byte order mark at the start is ignored.
 * Work is linear in the input. An event that the stream ends in the middle of is never dispatched.
 */
export class SseParser {
  readonly #lengthMax: number;
  #atStart = true;
  #afterCarriageReturn = false;
  #line = "";
  #data: string[] = [];
  #held = 0;
  #event = "";
  #id = "";
  #retryMs: number | undefined;

  constructor(lengthMax: number = SSE_EVENT_LENGTH_MAX) {
    this.#lengthMax = lengthMax;
  }

  /** How long the server asked to wait before a reconnection (`retry`), if it did. */
  get retryMs(): number | undefined {
    return this.#retryMs;
  }

  /**
   * Takes the next chunk of text and returns the events it completes.
   * @throws {RangeError} when an event is longer than the limit; the parser is of no use afterwards.
   */
  push(chunk: string): SseEvent[] {
    const events: SseEvent[] = [];
    let at = 0;
    if (chunk !== "" && this.#atStart) {
      this.#atStart = false;
      if (chunk.charCodeAt(0) === 0xfeff) at = 1;
    }
    if (at < chunk.length && this.#afterCarriageReturn) {
      this.#afterCarriageReturn = false;
      if (chunk.charAt(at) === "\n") at++;
    }
    const lineEnd = /\r\n?|\n/g;
    lineEnd.lastIndex = at;
    for (let match = lineEnd.exec(chunk); match !== null; match = lineEnd.exec(chunk)) {
      this.#endLine(this.#line + chunk.slice(at, match.index), events);
      this.#line = "";
      at = lineEnd.lastIndex;
      this.#afterCarriageReturn = match[0] === "\r" && at === chunk.length;
    }
    this.#line += chunk.slice(at);
    if (this.#line.length + this.#held > this.#lengthMax) {
      throw new RangeError(`an event is longer than ${this.#lengthMax} characters`);
    }
    return events;
  }

  #endLine(line: string, events: SseEvent[]): void {
    if (line === "") {
      this.#dispatch(events);
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line.charAt(colon + 1) === " " ? colon + 2 : colon + 1);
    if (field === "data") {
      this.#data.push(value);
      this.#held += value.length + 1;
    } else if (field === "event") {
      this.#event = value;
    } else if (field === "id" && !value.includes("\0")) {
      this.#id = value;
    } else if (field === "retry" && /^\d{1,9}$/.test(value)) {
      this.#retryMs = Number(value);
    }
  }

  #dispatch(events: SseEvent[]): void {
    if (this.#data.length > 0) {
      events.push({ event: this.#event || "message", data: this.#data.join("\n"), id: this.#id });
    }
    this.#data = [];
    this.#held = 0;
    this.#event = "";
  }
}
