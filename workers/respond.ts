/** Turns the events of a turn into HTTP: an event stream, or one JSON object. */
import { errorBody, QuireError, toQuireError } from "../protocol/errors.ts";
import { LIMITS } from "../protocol/limits.ts";
import {
  completionBody,
  type FinishedChoice,
  finishChunk,
  type ResponseFrame,
  roleChunk,
  textChunk,
  usageChunk,
} from "./openai-shapes.ts";
import { SSE_HEADERS, SSE_HEARTBEAT, sseData, sseDone, sseError } from "./sse.ts";
import { readError, turnEvents } from "./turn-events.ts";
import type { TextLogprob, TurnEvent, TurnFeed, TurnUsage } from "./turn-job.ts";

/** How long an answer without a stream waits for its real status before it begins to beat. */
const PLAIN_MS_MAX = 250;

/** A turn about to be answered. */
export interface Answer {
  feed: TurnFeed;
  choiceCount: number;
  /** The client can come back for the rest. */
  resumable: boolean;
  /** Aborted when the client is gone, where the platform tells. */
  signal: AbortSignal;
}

/**
 * An SSE response: headers at once, comments while the engine is silent, one error event for whatever goes wrong later. Every event has
 * the id `<turn>.<number>`, which names what its receiver has. A failed write (the client is gone) ends the turn, if it is not resumable.
 */
export function streamAnswer(answer: Pick<Answer, "feed" | "resumable" | "signal">): Response {
  const { readable, writable } = new IdentityTransformStream();
  void pumpEvents(answer, writable.getWriter());
  return new Response(readable, { headers: SSE_HEADERS });
}

async function pumpEvents(
  { feed, resumable, signal }: Pick<Answer, "feed" | "resumable" | "signal">,
  writer: WritableStreamDefaultWriter<Uint8Array>,
): Promise<void> {
  const reader = feed.stream.getReader();
  const cancel = () => void reader.cancel().catch(() => undefined);
  signal.addEventListener("abort", cancel);
  writer.closed.catch(cancel);
  const frame = frameOf(feed);
  let next = feed.first;
  try {
    for await (const event of turnEvents(reader)) {
      const id = `${feed.streamId}.${next}`;
      if (event.type !== "heartbeat") next += 1;
      const bytes = renderEvent(event, id, frame, feed.head.includeUsage);
      if (bytes) await writer.write(bytes);
    }
    await writer.close();
  } catch (thrown) {
    // A client that can come back is better off with a connection that breaks off than with an error.
    if (resumable) await writer.abort(thrown).catch(() => undefined);
    // Either the turn failed and the client hears of it, or the client is gone and this fails too.
    await writer.write(sseData(errorBody(toQuireError(thrown)))).catch(() => undefined);
    await writer.close().catch(() => undefined);
  } finally {
    cancel();
    signal.removeEventListener("abort", cancel);
  }
}

/** An event as a client reads it; undefined for one that it did not ask for. Depends on nothing that came before. */
function renderEvent(
  event: TurnEvent,
  id: string,
  frame: ResponseFrame,
  includeUsage: boolean,
): Uint8Array | undefined {
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
      return includeUsage ? sseData(usageChunk(frame, event.usage), id) : undefined;
    case "end":
      return sseDone(id);
    case "error":
      return sseError(errorBody(readError(event.error)), { id, retryMs: event.error.retryAfterMs });
  }
}

function frameOf({ head, numericsId }: TurnFeed): ResponseFrame {
  const { kind, id, createdS, model } = head;
  return { kind, id, createdS, model, fingerprint: `fp_${numericsId}` };
}

/**
 * One JSON object. A turn that ends within `PLAIN_MS_MAX`, well or not, has its real status. After that the headers go out, and spaces
 * follow until the object does: JSON allows them, and only writing shows that a client is gone. A failure after that is an error object
 * in a connection that breaks off, so that no client takes it for a completion.
 */
export async function jsonAnswer(answer: Answer): Promise<Response> {
  const reader = answer.feed.stream.getReader();
  const cancel = () => void reader.cancel().catch(() => undefined);
  answer.signal.addEventListener("abort", cancel);
  const outcome = collect(answer, reader);
  const timer = Promise.withResolvers<"slow">();
  const handle = setTimeout(() => timer.resolve("slow"), PLAIN_MS_MAX);
  const first = await Promise.race([outcome, timer.promise]).finally(() => clearTimeout(handle));
  if (first !== "slow") return Response.json(first);
  const { readable, writable } = new IdentityTransformStream();
  void writeSlowly(outcome, writable.getWriter(), cancel);
  return new Response(readable, { headers: SLOW_JSON_HEADERS });
}

/** A proxy that compresses keeps spaces to itself, and then a client that is gone is not noticed. */
const SLOW_JSON_HEADERS: Readonly<Record<string, string>> = {
  "content-type": "application/json",
  "content-encoding": "identity",
  "cache-control": "no-cache, no-transform",
};

async function writeSlowly(
  outcome: Promise<object>,
  writer: WritableStreamDefaultWriter<Uint8Array>,
  cancel: () => void,
): Promise<void> {
  const encoder = new TextEncoder();
  const space = encoder.encode(" ");
  writer.closed.catch(cancel);
  const beat = setInterval(() => void writer.write(space).catch(cancel), LIMITS.heartbeatMs);
  try {
    const body = await outcome;
    clearInterval(beat);
    await writer.write(encoder.encode(JSON.stringify(body)));
    await writer.close();
  } catch (thrown) {
    const error = toQuireError(thrown);
    await writer.write(encoder.encode(JSON.stringify(errorBody(error)))).catch(() => undefined);
    await writer.abort(error).catch(() => undefined);
  } finally {
    clearInterval(beat);
  }
}

async function collect(answer: Answer, reader: ReadableStreamDefaultReader<Uint8Array>): Promise<object> {
  const texts: string[] = Array.from({ length: answer.choiceCount }, () => "");
  const logprobs: (TextLogprob[] | undefined)[] = [];
  const reasons: FinishedChoice["reason"][] = [];
  let usage: TurnUsage | undefined;
  for await (const event of turnEvents(reader)) {
    if (event.type === "text") {
      texts[event.choice] += event.text;
      if (event.logprobs) logprobs[event.choice] = [...(logprobs[event.choice] ?? []), ...event.logprobs];
    } else if (event.type === "finish") {
      reasons[event.choice] = event.reason;
    } else if (event.type === "usage") {
      usage = event.usage;
    } else if (event.type === "error") {
      throw readError(event.error);
    }
  }
  if (!usage) throw new QuireError("engine_failed", "The reply broke off.");
  const choices = texts.map((text, index) => ({ text, logprobs: logprobs[index], reason: reasons[index] ?? "stop" }));
  return completionBody(frameOf(answer.feed), choices, usage);
}
