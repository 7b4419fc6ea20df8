/** Turns the events of a turn into HTTP: an event stream, or one JSON object. */
import { errorBody, QuireError, toQuireError } from "../protocol/errors.ts";
import { LIMITS } from "../protocol/limits.ts";
import { completionBody, type FinishedChoice, responseFrame } from "./openai-shapes.ts";
import { SSE_HEADERS, sseData } from "./sse.ts";
import { turnEvents } from "./turn-events.ts";
import { readError, type TextLogprob, type TurnFeed, type TurnUsage } from "./turn-job.ts";

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

/** A turn about to be answered as a stream. */
export interface StreamedAnswer extends Pick<Answer, "resumable" | "signal"> {
  feed: TurnFeed & { isHere?: boolean };
}

/**
 * An SSE response: headers at once, then what the turn says, as it is. A turn that runs here ends as it should, whatever happens. One that runs in its
 * session's object may break off (the object is gone): where the client can come back, so does the connection, which is better for it than an error,
 * and the stream passes through natively; otherwise the response ends in one error event. A client that is gone ends a turn that is not resumable.
 * @param onBroken called when a turn broke off that will not go on; the response ends behind it
 */
export function streamAnswer({ feed, resumable, signal }: StreamedAnswer, onBroken?: () => Promise<unknown>): Response {
  if (feed.isHere || resumable) return new Response(feed.stream, { headers: SSE_HEADERS });
  const { readable, writable } = new IdentityTransformStream();
  const passed = feed.stream.pipeTo(writable, { preventAbort: true, signal });
  void passed.catch((thrown: unknown) => endBroken(writable, thrown, onBroken));
  return new Response(readable, { headers: SSE_HEADERS });
}

async function endBroken(
  writable: WritableStream<Uint8Array>,
  thrown: unknown,
  onBroken: (() => Promise<unknown>) | undefined,
): Promise<void> {
  const writer = writable.getWriter();
  try {
    const cause = new QuireError("engine_failed", "The connection to the session was lost.", { cause: thrown });
    // Behind an empty line: the last event may be cut.
    await writer.write(new TextEncoder().encode(`\n\n${sseData(errorBody(cause))}`));
    // Before the end: with it the invocation ends, and whatever it has begun.
    await onBroken?.();
    await writer.close();
  } catch {
    // It is the client that is gone.
  }
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
    // Read only when what is before it has gone out, and breaking off earlier would take that back.
    await writer.write(space).catch(() => undefined);
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
  return completionBody(responseFrame(answer.feed.head, answer.feed.numericsId), choices, usage);
}
