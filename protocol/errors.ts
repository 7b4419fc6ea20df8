/**
 * Operating errors: one union of codes, each mapped once to an HTTP status and an OpenAI error type.
 * The message of a {@link QuireError} is written for the client; causes stay in `cause` and in logs.
 */
export const ERROR_TABLE = {
  invalid_request: { status: 400, type: "invalid_request_error", retry: false },
  context_length_exceeded: { status: 400, type: "invalid_request_error", retry: false },
  invalid_api_key: { status: 401, type: "authentication_error", retry: false },
  permission_denied: { status: 403, type: "permission_error", retry: false },
  not_found: { status: 404, type: "invalid_request_error", retry: false },
  model_not_found: { status: 404, type: "invalid_request_error", retry: false },
  stream_not_found: { status: 404, type: "invalid_request_error", retry: false },
  session_not_found: { status: 404, type: "invalid_request_error", retry: false },
  method_not_allowed: { status: 405, type: "invalid_request_error", retry: false },
  session_busy: { status: 409, type: "conflict_error", retry: true },
  request_timeout: { status: 408, type: "invalid_request_error", retry: true },
  request_too_large: { status: 413, type: "invalid_request_error", retry: false },
  unsupported_encoding: { status: 415, type: "invalid_request_error", retry: false },
  rate_limit_exceeded: { status: 429, type: "rate_limit_error", retry: true },
  queue_full: { status: 429, type: "rate_limit_error", retry: true },
  cancelled: { status: 499, type: "cancelled_error", retry: false },
  internal: { status: 500, type: "server_error", retry: false },
  engine_failed: { status: 502, type: "server_error", retry: true },
  no_engine: { status: 503, type: "server_error", retry: true },
  shutting_down: { status: 503, type: "server_error", retry: true },
  deadline_exceeded: { status: 504, type: "server_error", retry: true },
} as const satisfies Record<string, { status: number; type: string; retry: boolean }>;

/** Every operating error that a client can meet. */
export type ErrorCode = keyof typeof ERROR_TABLE;

/** What goes with an error, beside its code and its safe text. */
export interface QuireErrorOptions {
  /** The request field at fault, as the client wrote it (`stream_options.include_usage`). */
  param?: string | undefined;
  /** How long a client should wait before it tries again. */
  retryAfterMs?: number | undefined;
  /** Headers of the answer, beside those that follow from the code. */
  headers?: Readonly<Record<string, string>> | undefined;
  cause?: unknown;
}

/** An error that a client may see: `message` is safe text, `code` fixes the status. */
export class QuireError extends Error {
  override readonly name = "QuireError";
  readonly code: ErrorCode;
  readonly param: string | undefined;
  readonly retryAfterMs: number | undefined;
  readonly headers: Readonly<Record<string, string>>;

  constructor(code: ErrorCode, message: string, options: QuireErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.param = options.param;
    this.retryAfterMs = options.retryAfterMs;
    this.headers = options.headers ?? {};
  }

  get status(): number {
    return ERROR_TABLE[this.code].status;
  }
}

/** The OpenAI error body: `{error: {message, type, param, code}}`. */
export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string };
}

/**
 * Anything thrown becomes a {@link QuireError}; what is not one already becomes `internal` with safe text. One that was thrown in another
 * object arrives without its class, with its name and fields.
 */
export function toQuireError(thrown: unknown): QuireError {
  if (thrown instanceof QuireError) return thrown;
  if (thrown instanceof Error && thrown.name === "QuireError") {
    const { code, message, param, retryAfterMs, headers } = thrown as Partial<QuireError> & Error;
    if (isErrorCode(code)) return new QuireError(code, message, { param, retryAfterMs, headers, cause: thrown.cause });
  }
  return new QuireError("internal", "The server had an internal error.", { cause: thrown });
}

/** Renders the body that an OpenAI client expects. */
export function errorBody(error: QuireError): ErrorBody {
  return {
    error: {
      message: error.message,
      type: ERROR_TABLE[error.code].type,
      param: error.param ?? null,
      code: error.code,
    },
  };
}

/** True for a string that names a known code (codes cross the wire as strings). */
export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === "string" && Object.hasOwn(ERROR_TABLE, value);
}
