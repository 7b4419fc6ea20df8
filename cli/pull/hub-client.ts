/** Requests to a hub: redirects followed by hand, so that the token stays where it belongs; deadlines on every step. */
import { PullError, TransientError } from "./pull-error.ts";
import { type Patience, stallBytes } from "./retry.ts";

/** Where a hub is and who asks. */
export interface HubOptions {
  /** Without a slash at its end. */
  endpoint: string;
  /** Sent to the endpoint's own origin only. */
  token: string | undefined;
  patience: Patience;
  fetch: typeof fetch;
}

/** A response whose head has arrived; exactly one of its two methods is called. */
export interface HubResponse {
  status: 200 | 206 | 416;
  headers: Headers;
  /** The body in pieces. @throws {TransientError} when it is cut or stalls. */
  body(): AsyncGenerator<Uint8Array>;
  /** Gives the connection up. */
  discard(): Promise<void>;
}

/** Enough for any hub; a loop ends here. */
const redirectsMax = 8;
const redirectStatuses = [301, 302, 303, 307, 308];
const transientStatuses = [408, 425, 429];

/** A client of one hub. Keeps nothing between requests. */
export class HubClient {
  readonly #options: HubOptions;
  readonly #origin: string;

  constructor(options: HubOptions) {
    this.#options = options;
    this.#origin = new URL(options.endpoint).origin;
  }

  /** For messages. */
  get host(): string {
    return new URL(this.#options.endpoint).host;
  }

  /**
   * GET of a path below the endpoint. `what` names it in messages.
   * @throws {TransientError} to be tried again; {PullError} for what stays wrong; the signal's reason once it is aborted.
   */
  async get(
    path: string,
    request: { what: string; headers?: Record<string, string>; signal: AbortSignal },
  ): Promise<HubResponse> {
    const watch = new Watchdog(request.signal);
    try {
      let url = new URL(`${this.#options.endpoint}${path}`);
      for (let count = 0; count <= redirectsMax; count++) {
        const response = await this.#send(url, { ...request, watch });
        if (!redirectStatuses.includes(response.status))
          return await this.#accept(response, { url, what: request.what, watch });
        await response.body?.cancel();
        url = nextUrl(url, response.headers.get("location"));
      }
      throw new PullError(`${request.what}: more than ${redirectsMax} redirects from ${this.host}`);
    } catch (error) {
      watch.stop();
      throw error;
    }
  }

  async #send(
    url: URL,
    { what, headers, watch }: { what: string; headers?: Record<string, string>; watch: Watchdog },
  ): Promise<Response> {
    const { token, patience } = this.#options;
    const isOwn = url.origin === this.#origin;
    watch.start(patience.headMsMax, `${what}: no answer from ${url.host} within ${patience.headMsMax / 1000} s`);
    try {
      return await this.#options.fetch(url.href, {
        redirect: "manual",
        signal: watch.signal,
        headers: {
          "accept-encoding": "identity",
          "user-agent": "quire",
          ...headers,
          ...(isOwn && token !== undefined ? { authorization: `Bearer ${token}` } : {}),
        },
      });
    } catch (error) {
      throw watch.explain(error, `${what}: cannot reach ${url.host}`);
    }
  }

  async #accept(response: Response, context: { url: URL; what: string; watch: Watchdog }): Promise<HubResponse> {
    const { status, headers } = response;
    const { watch, what, url } = context;
    if (status !== 200 && status !== 206 && status !== 416) {
      await response.body?.cancel();
      throw this.#refusal(response, url, what);
    }
    const { stallMsMax } = this.#options.patience;
    const stallMessage = `${what}: ${url.host} stalled for ${stallMsMax / 1000} s`;
    return {
      status,
      headers,
      discard: async () => {
        await response.body?.cancel();
        watch.stop();
      },
      body: () => readBody(response, { watch, stallMsMax, stallMessage, cutMessage: `${what}: cut by ${url.host}` }),
    };
  }

  #refusal({ status, headers }: Response, url: URL, what: string): Error {
    const isOwn = url.origin === this.#origin;
    // Signed addresses of a content network run out; the hub makes a new one for the next attempt.
    const isTransient = status >= 500 || transientStatuses.includes(status) || (!isOwn && status === 403);
    if (isTransient) return new TransientError(`${what}: ${url.host} answered ${status}`, retryAfterMs(headers));
    const why = isOwn ? this.#explain(status) : undefined;
    return new PullError(`${what}: ${url.host} answered ${status}${why === undefined ? "" : ` (${why})`}`);
  }

  #explain(status: number): string | undefined {
    const hasToken = this.#options.token !== undefined;
    if (status === 401) return hasToken ? "it refuses the token in HF_TOKEN" : "not there, or private: set HF_TOKEN";
    if (status === 403)
      return hasToken ? "the account of HF_TOKEN has no access: accept the model's terms there" : "set HF_TOKEN";
    if (status === 404) return "there is no such repository, revision or file";
    return undefined;
  }
}

function nextUrl(from: URL, location: string | null): URL {
  if (location === null || !URL.canParse(location, from.href))
    throw new PullError(`${from.host} redirects to no address`);
  const url = new URL(location, from.href);
  const isHttp = url.protocol === "https:" || (url.protocol === "http:" && from.protocol === "http:");
  if (!isHttp) throw new PullError(`${from.host} redirects to ${url.protocol}//${url.host}: refused`);
  url.username = "";
  url.password = "";
  return url;
}

function retryAfterMs(headers: Headers): number | undefined {
  const seconds = Number(headers.get("retry-after") ?? Number.NaN);
  return Number.isFinite(seconds) && seconds >= 0 ? seconds * 1000 : undefined;
}

interface BodyOptions {
  watch: Watchdog;
  stallMsMax: number;
  stallMessage: string;
  cutMessage: string;
}

async function* readBody(response: Response, options: BodyOptions): AsyncGenerator<Uint8Array> {
  const { watch, stallMsMax, stallMessage, cutMessage } = options;
  watch.start(stallMsMax, stallMessage);
  let sinceBytes = 0;
  const reader = response.body?.getReader();
  try {
    while (reader !== undefined) {
      const { done, value } = await reader.read().catch((error: unknown) => {
        throw watch.explain(error, cutMessage);
      });
      if (done) return;
      sinceBytes += value.length;
      if (sinceBytes >= stallBytes) {
        watch.refresh();
        sinceBytes = 0;
      }
      yield value;
    }
  } finally {
    watch.stop();
    await reader?.cancel().catch(() => undefined);
  }
}

/** Ends a request that takes too long, and tells that from the user's stop and from a broken connection. */
class Watchdog {
  readonly #outer: AbortSignal;
  readonly #abort = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  #message: string | undefined;

  constructor(outer: AbortSignal) {
    this.#outer = outer;
  }

  get signal(): AbortSignal {
    return AbortSignal.any([this.#outer, this.#abort.signal]);
  }

  start(timeoutMs: number, message: string): void {
    this.stop();
    this.#timer = setTimeout(() => {
      this.#message = message;
      this.#abort.abort();
    }, timeoutMs);
  }

  refresh(): void {
    this.#timer?.refresh();
  }

  stop(): void {
    clearTimeout(this.#timer);
  }

  /** The error to throw for one that a request threw. */
  explain(error: unknown, message: string): unknown {
    if (this.#outer.aborted) return this.#outer.reason;
    if (this.#message !== undefined) return new TransientError(this.#message);
    const code = errorCode(error);
    if (/^(CERT_|ERR_TLS|SELF_SIGNED|DEPTH_ZERO|UNABLE_TO)/.test(code)) return new PullError(`${message} (${code})`);
    return new TransientError(code === "" ? message : `${message} (${code})`);
  }
}

/** Of `fetch`'s error or of its cause: `ECONNREFUSED`, `ENOTFOUND`. Never its text, which may quote headers. */
function errorCode(error: unknown): string {
  const { code, cause } = Object(error) as { code?: unknown; cause?: { code?: unknown } };
  const found = cause?.code ?? code;
  return typeof found === "string" ? found : "";
}
