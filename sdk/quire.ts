/** The client. */
import { isRecord, QuireConnectionError } from "./errors.ts";
import { Http } from "./http.ts";
import { type CallOptions, Session, type SessionOptions } from "./session.ts";

/** How to reach a Quire edge, and how patient to be. */
export interface QuireOptions {
  /** "https://host" (with or without "/v1" at the end). */
  baseUrl: string;
  apiKey: string;
  /** Default: the platform's. */
  fetch?: typeof globalThis.fetch;
  /** Further tries after a failure that may pass (429, 5xx, connection), before the first token only. Default 3. */
  maxRetries?: number;
  /** The longest silence of the server; heartbeats end a silence. Default 60,000. */
  timeoutMs?: number;
  /** The first wait between two tries, doubled each time; `Retry-After` goes first. Default 500. */
  retryBaseMs?: number;
  /** Spreads the waits. Default `Math.random`. */
  random?: () => number;
}

/** A model that the edge serves now. */
export interface Model {
  id: string;
  /** Seconds since 1970, as OpenAI has it. */
  created: number;
  ownedBy: string;
}

/** The client: holds no connection and no state, so one serves a whole program. */
export class Quire {
  readonly #http: Http;

  constructor(options: QuireOptions) {
    this.#http = new Http({
      baseUrl: options.baseUrl.replace(/\/+$/, "").replace(/\/v1$/, ""),
      apiKey: options.apiKey,
      fetch: options.fetch ?? ((input, init) => globalThis.fetch(input, init)),
      retriesMax: options.maxRetries ?? 3,
      timeoutMs: options.timeoutMs ?? 60_000,
      retryBaseMs: options.retryBaseMs ?? 500,
      random: options.random ?? Math.random,
    });
  }

  /** A conversation: a new one, or with `id` the one of that name. Nothing is sent yet. */
  session(options: SessionOptions = {}): Session {
    return new Session(this.#http, options);
  }

  /**
   * The models that the edge serves now.
   * @throws {QuireApiError} {@link QuireConnectionError} {@link QuireAbortError}
   */
  async models(options: CallOptions = {}): Promise<Model[]> {
    const signal = options.signal ?? new AbortController().signal;
    const answer = await this.#http.json({ method: "GET", path: "/v1/models" }, signal, true);
    if (!isRecord(answer) || !Array.isArray(answer.data)) {
      throw new QuireConnectionError("The server did not answer with a list of models.");
    }
    return answer.data.filter(isRecord).map((model) => ({
      id: String(model.id),
      created: Number(model.created ?? 0),
      ownedBy: String(model.owned_by ?? ""),
    }));
  }
}
