/** The two forms in which a turn's events leave their session: frames, for an answer that is put together, and SSE, which passes as it is. */
import { errorBody } from "../../protocol/errors.ts";
import { encodeFrame } from "../../protocol/frames.ts";
import { finishChunk, type ResponseFrame, responseFrame, roleChunk, textChunk, usageChunk } from "../openai-shapes.ts";
import { SSE_HEARTBEAT, sseData, sseDone, sseError } from "../sse.ts";
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
  return {
    encode: (events) =>
      utf8.encode(
        events.map(({ event, number }) => renderEvent(event, `${streamId}.${number}`, frame, includeUsage)).join(""),
      ),
    heartbeat: SSE_HEARTBEAT_BYTES,
  };
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
