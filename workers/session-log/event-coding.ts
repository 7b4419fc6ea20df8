/** The two forms in which a turn's events leave their session: frames, for an answer that is put together, and SSE, which passes as it is. */
import { errorBody } from "../../protocol/errors.ts";
import { encodeFrame } from "../../protocol/frames.ts";
import { finishChunk, type ResponseFrame, responseFrame, roleChunk, textChunk, usageChunk } from "../openai-shapes.ts";
import { SSE_HEARTBEAT, sseData, sseDone, sseError, sseJson } from "../sse.ts";
import { readError, type TurnEvent, type TurnFeed } from "../turn-job.ts";
import { concatBytes } from "./kept-bytes.ts";
import type { NumberedEvent } from "./replay-buffer.ts";

/** How a listener is given events. */
export interface EventCoding {
  /** Bytes of events in order; empty when there is nothing to say of them. */
  encode(events: readonly NumberedEvent[]): Uint8Array;
  readonly heartbeat: Uint8Array;
}

const utf8 = new TextEncoder();

/** Each event as one frame. */
export const FRAMES: EventCoding = {
  encode: (events) => concatBytes(events.map(({ event }) => encodeFrame(event))),
  heartbeat: encodeFrame({ type: "heartbeat" } satisfies TurnEvent),
};

const SSE_HEARTBEAT_BYTES = utf8.encode(SSE_HEARTBEAT);

/** Each event as one server-sent event, with the id `<turn>.<number>`: it names what its receiver has. */
export function sseCoding({ streamId, numericsId, head }: Omit<TurnFeed, "stream">): EventCoding {
  const frame = responseFrame(head, numericsId);
  const { includeUsage } = head;
  const pieces = new TextPieces(frame, includeUsage);
  const render = ({ event, number }: NumberedEvent): string => {
    const id = `${streamId}.${number}`;
    const isPlain = event.type === "text" && event.logprobs === undefined;
    return isPlain ? pieces.render(event, id) : renderEvent(event, id, frame, includeUsage);
  };
  return {
    encode: (events) => {
      let text = "";
      for (const event of events) text += render(event);
      return utf8.encode(text);
    },
    heartbeat: SSE_HEARTBEAT_BYTES,
  };
}

/** Text without logprobs, which nearly all events of an answer are: their JSON differs in the text alone, so the rest is written once for each choice. */
class TextPieces {
  readonly #frame: ResponseFrame;
  readonly #includeUsage: boolean;
  /** By choice: what stands in front of the text, and behind it. */
  readonly #around: ([string, string] | undefined)[] = [];

  constructor(frame: ResponseFrame, includeUsage: boolean) {
    this.#frame = frame;
    this.#includeUsage = includeUsage;
  }

  /** As {@link renderEvent} does. */
  render({ choice, text }: { choice: number; text: string }, id: string): string {
    this.#around[choice] ??= this.#split(choice);
    const [before, behind] = this.#around[choice];
    return sseJson(`${before}${JSON.stringify(text)}${behind}`, id);
  }

  #split(index: number): [string, string] {
    const frame = this.#frame;
    const json = JSON.stringify(
      textChunk(frame, { index, text: "", logprobs: undefined, offset: 0 }, this.#includeUsage),
    );
    // A quote within a string has a backslash in front, so this can stand nowhere else.
    const name = frame.kind === "chat" ? '"content":' : '"text":';
    const at = json.indexOf(`${name}""`) + name.length;
    return [json.slice(0, at), json.slice(at + 2)];
  }
}

/** An event as a client reads it; empty for one that it did not ask for. Depends on nothing that came before. */
function renderEvent(event: TurnEvent, id: string, frame: ResponseFrame, includeUsage: boolean): string {
  switch (event.type) {
    case "heartbeat":
      return SSE_HEARTBEAT;
    case "begin":
      return sseData(roleChunk(frame, event.choice, includeUsage), id);
    case "text": {
      const { choice: index, text, offset, logprobs } = event;
      return sseData(textChunk(frame, { index, text, logprobs, offset }, includeUsage), id);
    }
    case "finish":
      return sseData(finishChunk(frame, event.choice, event.reason, includeUsage), id);
    case "usage":
      return includeUsage ? sseData(usageChunk(frame, event.usage), id) : "";
    case "end":
      return sseDone(id);
    case "error":
      return sseError(errorBody(readError(event.error)), { id, retryMs: event.error.retryAfterMs });
  }
}
