/** One reply while it is being written. */
import { deferred } from "./deferred.ts";
import {
  apiErrorFrom,
  isRecord,
  QuireAbortError,
  QuireApiError,
  type QuireClientError,
  QuireConnectionError,
} from "./errors.ts";
import { type Http, type HttpAnswer, type HttpRequest, parseJson } from "./http.ts";
import { randomId } from "./random-id.ts";
import { withRetries } from "./retry.ts";
import { SseParser } from "./sse.ts";
import { type Chunk, type FinishReason, readChunk, type Usage } from "./wire.ts";

/** Once the reply is complete, how long the server may take to close its side. */
const CLOSING_MS_MAX = 1_000;

/** How long the server may take to hear that a reply is not wanted any more. */
const STOP_MS_MAX = 5_000;

/** What a reply is made of. */
export interface ReplyOptions {
  http: Http;
  /** Of POST /v1/chat/completions. */
  body: Record<string, unknown>;
  /** Where the stream goes on after a lost connection, and whether it may. */
  resume: { path: string; isOn: boolean };
  signal: AbortSignal | undefined;
}

/**
 * The reply to one `send`. The request starts at once; text is kept as it arrives (it is bounded by the reply's own limit),
 * so that the reply can be iterated, awaited as a whole, or both, in any order and more than once.
 * Leaving a `for await` loop early aborts the reply and frees the server. Before the first token failed attempts are repeated. After it a
 * lost connection is taken up again behind the last event that arrived; any other error ends the iteration and rejects all promises, and so does
 * every lost connection where the reply is not resumable.
 */
export class Reply implements AsyncIterable<string> {
  /** Resolves when the reply is complete. */
  readonly usage: Promise<Usage>;
  /** Why the reply ended, when it is complete. */
  readonly finishReason: Promise<FinishReason>;
  readonly #text: Promise<string>;
  readonly #controller = new AbortController();
  readonly #deltas: string[] = [];
  readonly #resume: ReplyOptions["resume"];
  /** The server's name of the last event that arrived; undefined before the first. */
  #lastEventId: string | undefined;
  /** Events that arrived, over all connections. */
  #eventCount = 0;
  /** Our name of the turn: asked for twice because an answer was lost, it runs once. */
  #turnKey = randomId();
  #wake = deferred<void>();
  #ended = false;
  /** The terminal event is here; what the connection does afterwards does not matter. */
  #complete = false;
  #finishReason: FinishReason | undefined;
  #usage: Usage | undefined;

  /** Made by `Session.send`. */
  constructor({ http, body, resume, signal }: ReplyOptions) {
    this.#resume = resume;
    const follow = (): void => this.abort(signal?.reason);
    if (signal?.aborted) follow();
    else signal?.addEventListener("abort", follow, { once: true });
    const run = this.#run(http, body).finally(() => {
      signal?.removeEventListener("abort", follow);
      this.#ended = true;
      this.#wake.resolve();
    });
    this.#text = run.then(() => this.partialText);
    this.finishReason = run.then(() => this.#finishReason ?? "stop");
    this.usage = run.then(() => {
      if (this.#usage === undefined) throw new QuireConnectionError("The server sent no usage.");
      return this.#usage;
    });
    // A caller who looks at one of them only must not be told of the others' rejection.
    for (const promise of [this.#text, this.finishReason, this.usage]) promise.catch(() => undefined);
  }

  /** The whole text, when the reply is complete. */
  text(): Promise<string> {
    return this.#text;
  }

  /** The text that has arrived so far; also after an error or an abort. */
  get partialText(): string {
    return this.#deltas.join("");
  }

  /** Ends the reply: iterations and promises reject with {@link QuireAbortError}. Without effect once it is complete. */
  abort(reason?: unknown): void {
    this.#controller.abort(reason);
  }

  /** The deltas from the first one on, each as soon as it is there. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    let complete = false;
    try {
      for (let index = 0; ; ) {
        while (index < this.#deltas.length) yield this.#deltas[index++] as string;
        if (this.#ended) break;
        await this.#wake.promise;
      }
      complete = true;
      await this.#text;
    } finally {
      if (!complete) this.abort();
    }
  }

  async #run(http: Http, body: Record<string, unknown>): Promise<void> {
    const { signal } = this.#controller;
    const { promise: complete, resolve: markComplete } = deferred<void>();
    const attempt = () => http.exchange(this.#request(body), signal, (answer) => this.#read(answer, markComplete));
    const attempts = withRetries(http.options, signal, attempt, {
      mayRetry: (error) => this.#mayRetry(error),
      progress: () => this.#eventCount,
    });
    signal.addEventListener("abort", () => this.#stop(http), { once: true });
    await Promise.race([attempts, complete]);
    const closing = setTimeout(() => this.#controller.abort(), CLOSING_MS_MAX);
    attempts.catch(() => undefined).finally(() => clearTimeout(closing));
  }

  #request(body: Record<string, unknown>): HttpRequest {
    const { isOn, path } = this.#resume;
    if (!isOn) return { method: "POST", path: "/v1/chat/completions", body };
    if (this.#lastEventId !== undefined)
      return { method: "GET", path, headers: { "last-event-id": this.#lastEventId } };
    return { method: "POST", path: "/v1/chat/completions", body, headers: { "idempotency-key": this.#turnKey } };
  }

  #mayRetry(error: QuireClientError): boolean {
    if (this.#complete) return false;
    // What the server let out may be in its log, and nothing names the turn: asked for again it would be there twice.
    if (!this.#resume.isOn && error instanceof QuireConnectionError) return false;
    const isNew = this.#deltas.length === 0;
    const saysEnd = error instanceof QuireApiError && error.status === undefined;
    if (this.#resume.isOn && this.#lastEventId !== undefined && !saysEnd) return true;
    // The server ended the turn: only one that said nothing can be asked for again, as a new one.
    if (isNew && saysEnd) {
      this.#lastEventId = undefined;
      this.#turnKey = randomId();
    }
    return isNew;
  }

  /** Tells the server that the rest is not wanted: a connection that is closed is only one that was lost. */
  #stop(http: Http): void {
    if (!this.#resume.isOn || this.#complete || this.#ended) return;
    const headers = { "idempotency-key": this.#turnKey };
    const request: HttpRequest = { method: "DELETE", path: this.#resume.path, headers };
    http.exchange(request, AbortSignal.timeout(STOP_MS_MAX), async () => undefined).catch(() => undefined);
  }

  async #read(answer: HttpAnswer, markComplete: () => void): Promise<void> {
    const parser = new SseParser();
    for await (const text of answer.chunks) {
      for (const event of pushChecked(parser, text)) {
        if (this.#complete) continue;
        if (event.data === "[DONE]") {
          this.#complete = true;
          markComplete();
        } else {
          this.#take(parseJson(event.data), answer.headers, parser.retryMs);
        }
        if (event.id !== "") this.#lastEventId = event.id;
        this.#eventCount += 1;
      }
    }
    if (!this.#complete) throw new QuireConnectionError("The server's answer ended before it was complete.");
  }

  #take(value: unknown, headers: Headers, retryAfterMs: number | undefined): void {
    if (isRecord(value) && value.error !== undefined) {
      const context = {
        status: undefined,
        retryAfterMs,
        requestId: headers.get("x-request-id") ?? undefined,
      };
      throw apiErrorFrom(value, context, "The server failed while it was answering.");
    }
    const chunk: Chunk = readChunk(value);
    this.#finishReason = chunk.finishReason ?? this.#finishReason;
    this.#usage = chunk.usage ?? this.#usage;
    if (chunk.delta === "") return;
    this.#deltas.push(chunk.delta);
    this.#wake.resolve();
    this.#wake = deferred();
  }
}

function pushChecked(parser: SseParser, text: string): ReturnType<SseParser["push"]> {
  try {
    return parser.push(text);
  } catch (cause) {
    throw new QuireConnectionError("The server sent an event that is too long.", cause);
  }
}
