/** A conversation that the server remembers. */
import { isRecord, QuireApiError, QuireConnectionError } from "./errors.ts";
import type { Http } from "./http.ts";
import { randomId } from "./random-id.ts";
import { Reply } from "./reply.ts";
import { type Message, type SendOptions, turnBody } from "./wire.ts";

/** What a session is made with; the sending options are defaults of each `send`. */
export interface SessionOptions extends SendOptions {
  /** A name of 1 to 128 characters `A-Z a-z 0-9 . _ : -`, but "." and ".."; the same name goes on where it was left. Default: a new one. */
  id?: string;
  /** Default: the server's only or first model. */
  model?: string;
}

/** Options of one call. */
export interface CallOptions {
  /** Aborts the call. */
  signal?: AbortSignal;
}

/**
 * One conversation. Only new messages are sent: the server holds the exact tokens of everything before, and their KV
 * outlives every process. One turn at a time: a `send` during another turn is answered when that one has ended, or with
 * code `session_busy` when retries are used up.
 */
export class Session {
  readonly id: string;
  readonly model: string;
  readonly #http: Http;
  readonly #defaults: SendOptions;

  /** Made by `Quire.session`. */
  constructor(http: Http, options: SessionOptions) {
    const { id, model, ...defaults } = options;
    this.id = id ?? `s-${randomId()}`;
    this.model = model ?? "default";
    this.#http = http;
    this.#defaults = defaults;
  }

  /**
   * Sends a user's text, or several new messages, and returns the reply, which starts at once.
   * Errors come from the reply: {@link QuireApiError}, {@link QuireConnectionError}, {@link QuireAbortError}.
   */
  send(input: string | readonly Message[], options: SendOptions & CallOptions = {}): Reply {
    const { signal, ...own } = options;
    const messages: readonly Message[] = typeof input === "string" ? [{ role: "user", content: input }] : input;
    const turn = { model: this.model, sessionId: this.id, messages };
    const sending = { ...this.#defaults, ...own };
    const resume = { path: `${this.#path}/stream`, isOn: sending.resumable ?? true };
    return new Reply({ http: this.#http, body: turnBody(turn, sending), resume, signal });
  }

  /** A new session that begins as a copy of this one; what is stored is shared, not copied. */
  async fork(options: CallOptions = {}): Promise<Session> {
    const answer = await this.#call("POST", "/fork", options, false);
    if (!isRecord(answer) || typeof answer.id !== "string") {
      throw new QuireConnectionError("The server did not name the forked session.");
    }
    return new Session(this.#http, { ...this.#defaults, id: answer.id, model: this.model });
  }

  /** Forgets the conversation; one that the server does not know is forgotten already. */
  async delete(options: CallOptions = {}): Promise<void> {
    try {
      await this.#call("DELETE", "", options, true);
    } catch (error) {
      if (!(error instanceof QuireApiError && error.code === "session_not_found")) throw error;
    }
  }

  get #path(): string {
    return `/v1/sessions/${encodeURIComponent(this.id)}`;
  }

  #call(method: "POST" | "DELETE", suffix: string, options: CallOptions, retryConnection: boolean): Promise<unknown> {
    return this.#http.json(
      { method, path: `${this.#path}${suffix}` },
      options.signal ?? new AbortController().signal,
      retryConnection,
    );
  }
}
