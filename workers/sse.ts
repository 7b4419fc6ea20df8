/** Server-sent events, as OpenAI clients read them. */

const encoder = new TextEncoder();

/** One event with a JSON payload. JSON has no raw line breaks, so one data line is enough. */
export function sseData(payload: unknown): Uint8Array {
  return encoder.encode(`data: ${JSON.stringify(payload)}\n\n`);
}

/** The event that ends a stream. */
export const SSE_DONE: Uint8Array = encoder.encode("data: [DONE]\n\n");

/** A comment: clients ignore it, and writing it is how a closed connection is noticed. */
export const SSE_HEARTBEAT: Uint8Array = encoder.encode(": hb\n\n");

/** Headers of an event stream that no proxy may buffer or rewrite. */
export const SSE_HEADERS: Readonly<Record<string, string>> = {
  "content-type": "text/event-stream; charset=utf-8",
  "cache-control": "no-cache, no-transform",
  "x-accel-buffering": "no",
};
