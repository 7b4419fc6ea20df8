/** Server-sent events, as OpenAI clients read them: texts that are joined and encoded by whoever writes them. */

/** One event with a JSON payload. JSON has no raw line breaks, so one data line is enough. `id` is what `Last-Event-ID` gives back. */
export function sseData(payload: unknown, id?: string): string {
  return sseJson(JSON.stringify(payload), id);
}

/** {@link sseData} of what is JSON already. */
export function sseJson(json: string, id?: string): string {
  return `${idLine(id)}data: ${json}\n\n`;
}

/** The error that ends a stream; `retryMs` says when to come again, as the standard has it. */
export function sseError(payload: unknown, options: { id?: string; retryMs?: number | undefined }): string {
  const retry = options.retryMs === undefined ? "" : `retry: ${Math.ceil(options.retryMs)}\n`;
  return `${idLine(options.id)}${retry}data: ${JSON.stringify(payload)}\n\n`;
}

/** The event that ends a stream. */
export function sseDone(id: string): string {
  return `${idLine(id)}data: [DONE]\n\n`;
}

function idLine(id: string | undefined): string {
  return id === undefined ? "" : `id: ${id}\n`;
}

/** A comment: clients ignore it, and writing it is how a closed connection is noticed. */
export const SSE_HEARTBEAT = ": hb\n\n";

/** Headers of an event stream that no proxy may buffer or rewrite. */
export const SSE_HEADERS: Readonly<Record<string, string>> = {
  "content-type": "text/event-stream; charset=utf-8",
  "cache-control": "no-cache, no-transform",
  "x-accel-buffering": "no",
};
