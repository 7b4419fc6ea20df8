/**
 * Signed S3 requests with deadlines, bounded concurrency and retries. Knows HTTP and error codes, not objects.
 * Path-style addresses, SigV4; every body is covered by `x-amz-content-sha256`, so that a torn upload is refused.
 */
import { AwsClient } from "aws4fetch";
import { fetchFailure } from "../protocol/fetch-failure.ts";
import { sha256Hex } from "./checksum.ts";
import { StoreError } from "./contract.ts";
import { Gate, pause, withDeadline } from "./deadline.ts";

const ATTEMPTS_MAX = 4;
const BACKOFF_MS_MIN = 50;
/** The longest that a server is waited for because it says so. */
const RETRY_AFTER_MS_MAX = 5_000;
const EMPTY = new Uint8Array(0);
const RETRY_STATUS = new Set([408, 429]);
/** Failures that mean something to the store. */
const MEANT_STATUS = new Set([404, 409, 412, 416]);
/** Codes of status 400 that say the request was damaged on its way. */
const RETRY_CODES = new Set(["BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "RequestTimeout"]);

/** Where the bucket is, who asks, and how many at a time. */
export interface S3ClientOptions {
  /** Such as `https://<account>.r2.cloudflarestorage.com`; may have a path. */
  endpoint: string;
  bucket: string;
  region: string;
  accessKeyId: string;
  secretAccessKey: string;
  sessionToken?: string | undefined;
  concurrency: number;
  fetch: (request: Request, init: { signal: AbortSignal }) => Promise<Response>;
  random: () => number;
}

/** One request; repeating it must do no harm. */
export interface S3Request {
  method: "GET" | "HEAD" | "PUT" | "POST";
  /** Key of an object, or nothing for the bucket. */
  key: string;
  query?: Record<string, string>;
  headers?: Record<string, string>;
  body?: Uint8Array;
  /** Of the whole call. One attempt has half of it, so that a stall leaves time for another. */
  deadlineMs: number;
  signal?: AbortSignal | undefined;
}

/** An answer, read whole. */
export interface S3Response {
  status: number;
  headers: Headers;
  body: Uint8Array<ArrayBuffer>;
}

/** A server that cannot now, and says when. */
class BusyError extends StoreError {
  readonly retryAfterMs: number;
  constructor(problem: string, retryAfterMs: number) {
    super("unavailable", problem);
    this.retryAfterMs = retryAfterMs;
  }
}

/** Requests to one bucket. */
export class S3Client {
  readonly #options: S3ClientOptions;
  readonly #signer: AwsClient;
  readonly #gate: Gate;

  constructor(options: S3ClientOptions) {
    this.#options = options;
    const { accessKeyId, secretAccessKey, sessionToken, region } = options;
    this.#signer = new AwsClient({
      accessKeyId,
      secretAccessKey,
      ...(sessionToken === undefined ? {} : { sessionToken }),
      region,
      service: "s3",
      retries: 0,
    });
    this.#gate = new Gate(options.concurrency);
  }

  /**
   * Sends a request whose repetition does no harm. Answers of 2xx, and of 404, 409, 412 and 416, are returned.
   * @throws {StoreError} `denied` for other refusals; `unavailable` or `timeout` when retries did not help; `aborted`.
   */
  async send(request: S3Request): Promise<S3Response> {
    const what = `s3 store: ${request.method} ${request.key || "the bucket"}`;
    const { deadlineMs, signal } = request;
    return withDeadline({ deadlineMs, signal, what }, (callSignal) =>
      this.#gate.run(callSignal, async () => {
        for (let attempt = 1; ; attempt++) {
          try {
            return await this.#attempt(request, what, callSignal);
          } catch (error) {
            callSignal.throwIfAborted();
            if (!mayRetry(error) || attempt >= ATTEMPTS_MAX) throw error;
            await pause(this.#pauseMs(error, attempt), callSignal);
          }
        }
      }),
    );
  }

  /** Before the next attempt: 50, 100, 200 ms, or what the server asked for if that is longer; with jitter, so that those who were refused together do not come together. */
  #pauseMs(error: unknown, attempt: number): number {
    const jitter = this.#options.random();
    const ownMs = BACKOFF_MS_MIN * 2 ** (attempt - 1) * (0.5 + jitter);
    const askedMs = error instanceof BusyError ? Math.min(error.retryAfterMs, RETRY_AFTER_MS_MAX) : 0;
    return askedMs === 0 ? ownMs : Math.max(ownMs, askedMs + BACKOFF_MS_MIN * jitter);
  }

  async #attempt(request: S3Request, what: string, signal: AbortSignal): Promise<S3Response> {
    const deadlineMs = Math.ceil(request.deadlineMs / 2);
    return withDeadline({ deadlineMs, signal, what }, async (attemptSignal) => {
      const body = request.body ?? EMPTY;
      const signed = await this.#signer.sign(this.#url(request), {
        method: request.method,
        headers: { ...request.headers, "x-amz-content-sha256": sha256Hex(body) },
        // A redirect would be followed with a signature for another host.
        redirect: "manual",
        ...(request.body === undefined ? {} : { body: body as Uint8Array<ArrayBuffer> }),
      });
      const response = await this.#fetch(signed, what, attemptSignal);
      refuseFailure(response, what);
      return response;
    });
  }

  async #fetch(request: Request, what: string, signal: AbortSignal): Promise<S3Response> {
    try {
      const response = await this.#options.fetch(request, { signal });
      const body = new Uint8Array(await response.arrayBuffer());
      return { status: response.status, headers: response.headers, body };
    } catch (cause) {
      throw new StoreError("unavailable", `${what} got no answer from ${this.#host} (${fetchFailure(cause)})`, {
        cause,
      });
    }
  }

  get #host(): string {
    return new URL(this.#options.endpoint).host;
  }

  #url(request: S3Request): string {
    const { endpoint, bucket } = this.#options;
    const query = new URLSearchParams(request.query).toString();
    const path = request.key === "" ? "" : `/${request.key}`;
    return `${endpoint.replace(/\/+$/, "")}/${bucket}${path}${query === "" ? "" : `?${query}`}`;
  }
}

/** The text of an element's first occurrence in an S3 answer, entities decoded. */
export function xmlText(xml: string, element: string): string | undefined {
  const match = new RegExp(`<${element}>([^<]*)</${element}>`).exec(xml);
  return match?.[1]
    ?.replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">")
    .replaceAll("&quot;", '"')
    .replaceAll("&apos;", "'")
    .replaceAll("&amp;", "&");
}

/** The `<Code>` of an S3 error, or the empty string. */
export function errorCodeOf(response: { body: Uint8Array }): string {
  return xmlText(new TextDecoder().decode(response.body), "Code") ?? "";
}

/** Returns for answers that mean something to the store. @throws {StoreError} for all others. */
function refuseFailure(response: S3Response, what: string): void {
  const { status } = response;
  const isOk = status >= 200 && status < 300;
  const code = isOk ? "" : errorCodeOf(response);
  const problem = `${what} was answered with ${status} ${code}`.trimEnd();
  if (code === "NoSuchBucket") throw new StoreError("denied", problem);
  if (isOk || MEANT_STATUS.has(status)) {
    // A page of a proxy, or of a network that wants a password: no object of ours is one, and nothing is absent for it.
    const isPage = /^text\/html\b/i.test(response.headers.get("content-type") ?? "");
    if (isPage) throw new StoreError("unavailable", `${problem}, and a page, which is no store's`);
    return;
  }
  const passing = RETRY_STATUS.has(status) || status >= 500 || RETRY_CODES.has(code);
  const retryAfterMs = retryAfterMsOf(response.headers);
  if (passing && retryAfterMs !== undefined) throw new BusyError(problem, retryAfterMs);
  throw new StoreError(passing ? "unavailable" : "denied", problem);
}

/** Of `Retry-After` the form in seconds; a date, which depends on whose clock is right, is passed over. */
function retryAfterMsOf(headers: Headers): number | undefined {
  const text = headers.get("retry-after")?.trim() ?? "";
  return /^\d{1,9}$/.test(text) ? Number(text) * 1000 : undefined;
}

function mayRetry(error: unknown): boolean {
  return error instanceof StoreError && (error.code === "unavailable" || error.code === "timeout");
}
