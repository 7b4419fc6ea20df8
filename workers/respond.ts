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
import { SSE_DONE, SSE_HEADERS, SSE_HEARTBEAT, sseData } from "./sse.ts";
import { turnEvents } from "./turn-events.ts";
import type { TextLogprob, TurnEvent, TurnUsage } from "./turn-job.ts";

/** How long an answer without a stream waits for its real status before it begins to beat. */
const PLAIN_MS_MAX = 250;

/** A turn about to be answered. */
export interface Answer {
  frame: ResponseFrame;
  stream: ReadableStream<Uint8Array>;
  choiceCount: number;
  includeUsage: boolean;
  /** Aborted when the client is gone, where the platform tells. */
  signal: AbortSignal;
}

/**
 * An SSE response: headers at once, comments while the engine is silent, one error event for whatever goes wrong later.
 * A failed write (the client is gone) ends the turn.
 */
export function streamAnswer(answer: Answer): Response {
  const { readable, writable } = new IdentityTransformStream();
  void pumpEvents(answer, writable.getWriter());
  return new Response(readable, { headers: SSE_HEADERS });
}

async function pumpEvents(answer: Answer, writer: WritableStreamDefaultWriter<Uint8Array>): Promise<void> {
  const reader = answer.stream.getReader();
  const cancel = () => void reader.cancel().catch(() => undefined);
  answer.signal.addEventListener("abort", cancel);
  writer.closed.catch(cancel);
  const chunks = new ChunkWriter(answer);
  try {
    if (answer.frame.kind === "chat") await writer.write(chunks.begin(0));
    for await (const event of turnEvents(reader)) {
      for (const bytes of chunks.render(event)) await writer.write(bytes);
    }
    await writer.write(SSE_DONE);
    await writer.close();
  } catch (thrown) {
    // Either the turn failed and the client hears of it, or the client is gone and this fails too.
    await writer.write(sseData(errorBody(toQuireError(thrown)))).catch(() => undefined);
    await writer.close().catch(() => undefined);
  } finally {
    cancel();
    answer.signal.removeEventListener("abort", cancel);
  }
}

/** Renders events as chunks and knows which choices have begun. */
class ChunkWriter {
  readonly #answer: Answer;
  readonly #begun = new Set<number>();
  readonly #offsets: number[] = [];

  constructor(answer: Answer) {
    this.#answer = answer;
  }

  begin(index: number): Uint8Array {
    this.#begun.add(index);
    return sseData(roleChunk(this.#answer.frame, index, this.#answer.includeUsage));
  }

  *render(event: Exclude<TurnEvent, { type: "error" }>): Generator<Uint8Array> {
    const { frame, includeUsage } = this.#answer;
    switch (event.type) {
      case "heartbeat":
        yield SSE_HEARTBEAT;
        return;
      case "text": {
        const { choice: index, text, logprobs } = event;
        if (frame.kind === "chat" && !this.#begun.has(index)) yield this.begin(index);
        const offset = this.#offsets[index] ?? 0;
        this.#offsets[index] = offset + text.length;
        yield sseData(textChunk(frame, { index, text, logprobs, offset }, includeUsage));
        return;
      }
      case "finish":
        if (frame.kind === "chat" && !this.#begun.has(event.choice)) yield this.begin(event.choice);
        yield sseData(finishChunk(frame, event.choice, event.reason, includeUsage));
        return;
      case "end":
        if (includeUsage) yield sseData(usageChunk(frame, event.usage));
    }
  }
}

/**
 * One JSON object. A turn that ends within `PLAIN_MS_MAX`, well or not, has its real status. After that the headers go out, and spaces
 * follow until the object does: JSON allows them, and only writing shows that a client is gone. A failure after that is an error object
 * in a connection that breaks off, so that no client takes it for a completion.
 */
export async function jsonAnswer(answer: Answer): Promise<Response> {
  const reader = answer.stream.getReader();
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
    } else if (event.type === "end") {
      usage = event.usage;
    }
  }
  if (!usage) throw new QuireError("engine_failed", "The reply broke off.");
  const choices = texts.map((text, index) => ({ text, logprobs: logprobs[index], reason: reasons[index] ?? "stop" }));
  return completionBody(answer.frame, choices, usage);
}
