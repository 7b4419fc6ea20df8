/** What can go wrong between a client and the edge. */

/** The base of every error that this library throws on purpose. */
export class QuireClientError extends Error {
  override readonly name: string = "QuireClientError";
  /** True when the same request may succeed later. */
  readonly retryable: boolean;

  constructor(message: string, options: { retryable: boolean; cause?: unknown }) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.retryable = options.retryable;
  }
}

/** What a server said about an error. */
export interface ApiErrorFields {
  /** HTTP status; undefined when the error arrived inside a stream that had begun with 200. */
  status: number | undefined;
  /** Stable word for programs ("context_length_exceeded"); undefined when the body was not Quire's. */
  code: string | undefined;
  type: string | undefined;
  /** The request field at fault. */
  param: string | undefined;
  /** How long the server asked to wait. */
  retryAfterMs: number | undefined;
  /** The server's name of the request, for its operator. */
  requestId: string | undefined;
}

/** The server answered with an error. */
export class QuireApiError extends QuireClientError implements ApiErrorFields {
  override readonly name = "QuireApiError";
  readonly status: number | undefined;
  readonly code: string | undefined;
  readonly type: string | undefined;
  readonly param: string | undefined;
  readonly retryAfterMs: number | undefined;
  readonly requestId: string | undefined;

  constructor(message: string, fields: ApiErrorFields) {
    super(message, { retryable: isRetryable(fields) });
    this.status = fields.status;
    this.code = fields.code;
    this.type = fields.type;
    this.param = fields.param;
    this.retryAfterMs = fields.retryAfterMs;
    this.requestId = fields.requestId;
  }
}

/** The server was not reached, went silent, cut the answer short or answered nonsense. */
export class QuireConnectionError extends QuireClientError {
  override readonly name = "QuireConnectionError";

  constructor(message: string, cause?: unknown) {
    super(message, { retryable: true, cause });
  }
}

/** The caller aborted: by its signal, by `abort()`, or by leaving a `for await` loop early. */
export class QuireAbortError extends QuireClientError {
  override readonly name = "QuireAbortError";

  constructor(cause?: unknown) {
    super("The request was aborted.", { retryable: false, cause });
  }
}

/** A session that is still ending its last turn is worth waiting for; so are full queues and failing servers. */
function isRetryable({ status, code, type }: ApiErrorFields): boolean {
  if (code === "session_busy") return true;
  if (status !== undefined) return status === 429 || status >= 500;
  return type === "rate_limit_error" || type === "server_error";
}

/**
 * Reads an OpenAI error body (`{error: {message, type, param, code}}`), however little of it there is.
 * `fallback` is the message when there is none.
 */
export function apiErrorFrom(
  body: unknown,
  context: Pick<ApiErrorFields, "status" | "retryAfterMs" | "requestId">,
  fallback: string,
): QuireApiError {
  const outer: Record<string, unknown> = isRecord(body) ? body : {};
  const error: Record<string, unknown> = isRecord(outer.error) ? outer.error : {};
  const text = (value: unknown): string | undefined => (typeof value === "string" ? value : undefined);
  return new QuireApiError(text(error.message) ?? fallback, {
    ...context,
    code: text(error.code),
    type: text(error.type),
    param: text(error.param),
  });
}

/** True for a JSON object. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
