/** One HTTP exchange: authentication, silence, errors. */
import { apiErrorFrom, QuireAbortError, QuireClientError, QuireConnectionError } from "./errors.ts";
import { parseRetryAfter, type RetryOptions, withRetries } from "./retry.ts";

/** How to reach the edge. */
export interface HttpOptions extends RetryOptions {
  /** Without a slash at the end. */
  baseUrl: string;
  apiKey: string;
  fetch: typeof globalThis.fetch;
  /** The longest silence: before the answer, and between two chunks of it (heartbeats count as chunks). */
  timeoutMs: number;
}

/** A request of this library; `body` is sent as JSON. */
export interface HttpRequest {
  method: "GET" | "POST" | "DELETE";
  path: string;
  body?: unknown;
  /** Beside those that every request has. */
  headers?: Readonly<Record<string, string>>;
}

/** What a reader of an answer is given. */
export interface HttpAnswer {
  headers: Headers;
  /** Text of the body as it comes. Ends cleanly, or throws {@link QuireConnectionError} or {@link QuireAbortError}. */
  chunks: AsyncIterable<string>;
}

/** Sends requests; stateless but for its options. */
export class Http {
  readonly options: HttpOptions;

  constructor(options: HttpOptions) {
    this.options = options;
  }

  /**
   * Sends a request until it is answered and returns the JSON of the answer.
   * @param retryConnection also after an attempt that may have had its effect.
   */
  async json(request: HttpRequest, signal: AbortSignal, retryConnection: boolean): Promise<unknown> {
    const attempt = (): Promise<unknown> =>
      this.exchange(request, signal, async ({ chunks }) => {
        let text = "";
        for await (const chunk of chunks) text += chunk;
        return text === "" ? undefined : parseJson(text);
      });
    return withRetries(this.options, signal, attempt, {
      mayRetry: (error) => retryConnection || !(error instanceof QuireConnectionError),
    });
  }

  /**
   * One attempt: sends, and hands a successful answer to `read`.
   * @throws {QuireApiError} for a status that is not 2xx; what `read` throws.
   */
  async exchange<T>(request: HttpRequest, signal: AbortSignal, read: (answer: HttpAnswer) => Promise<T>): Promise<T> {
    const silence = new Silence(this.options.timeoutMs);
    try {
      const response = await this.options.fetch(`${this.options.baseUrl}${request.path}`, {
        method: request.method,
        headers: {
          authorization: `Bearer ${this.options.apiKey}`,
          ...(request.body === undefined ? {} : { "content-type": "application/json" }),
          ...request.headers,
        },
        ...(request.body === undefined ? {} : { body: JSON.stringify(request.body) }),
        signal: AbortSignal.any([signal, silence.signal]),
      });
      silence.restart();
      if (!response.ok) throw await apiError(response, silence);
      return await read({ headers: response.headers, chunks: textOf(response, silence) });
    } catch (thrown) {
      if (signal.aborted) throw new QuireAbortError(signal.reason);
      if (thrown instanceof QuireClientError) throw thrown;
      if (silence.signal.aborted) {
        throw new QuireConnectionError(`The server was silent for ${this.options.timeoutMs} ms.`, thrown);
      }
      throw new QuireConnectionError(`The connection to ${this.options.baseUrl || "the server"} failed.`, thrown);
    } finally {
      silence.stop();
    }
  }
}

/** @throws {QuireConnectionError} when `text` is not JSON: whoever answered was not the edge. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new QuireConnectionError("The server sent something that is not JSON.", cause);
  }
}

/** A timer that fires when nothing was heard for too long. */
class Silence {
  readonly #controller = new AbortController();
  readonly #durationMs: number;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(durationMs: number) {
    this.#durationMs = durationMs;
    this.restart();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  restart(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#controller.abort(), this.#durationMs);
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}

async function* textOf(response: Response, silence: Silence): AsyncGenerator<string, void, undefined> {
  if (response.body === null) return;
  const reader = response.body.getReader();
  const utf8 = new TextDecoder();
  let ended = false;
  try {
    while (true) {
      const { done, value } = await reader.read();
      silence.restart();
      if (done) break;
      yield utf8.decode(value, { stream: true });
    }
    ended = true;
    yield utf8.decode();
  } finally {
    // A reader that leaves early must free the server, and must not wait for it.
    if (!ended) reader.cancel().catch(() => undefined);
  }
}

const ERROR_BODY_LENGTH_MAX = 64 * 1024;

async function apiError(response: Response, silence: Silence): Promise<QuireClientError> {
  let text = "";
  for await (const chunk of textOf(response, silence)) {
    text += chunk;
    if (text.length > ERROR_BODY_LENGTH_MAX) break;
  }
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    body = undefined;
  }
  const context = {
    status: response.status,
    retryAfterMs: parseRetryAfter(response.headers.get("retry-after"), Date.now()),
    requestId: response.headers.get("x-request-id") ?? undefined,
  };
  return apiErrorFrom(body, context, `The server answered with status ${response.status}.`);
}
