/** A client as somebody writes one: requests over HTTP, streams read event by event, left or cut where a life wants it. */
import { setTimeout as sleep } from "node:timers/promises";
import { SseParser } from "../../../sdk/index.ts";

/** Nobody waits for longer; a turn takes a second here, and a lost engine is waited for 10 s. */
export const ANSWER_MS_MAX = 60_000;

/** What an answer says of itself. */
export interface AnswerUsage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
  quire: {
    session_id: string | null;
    engines: string[];
    source?: { device: number; host: number; store: number };
    recomputed_tokens?: number;
    pages_missed?: number;
    policy?: string;
    budget_tokens?: number;
  };
}

/** One choice of an answer. */
export interface AnswerChoice {
  text: string;
  reason: string | undefined;
  logprobs: readonly number[] | undefined;
}

/** An event of a stream, and how much of the text was there with it. */
export interface Mark {
  id: string;
  length: number;
}

/** How a request ended. */
export type Outcome =
  | {
      kind: "done";
      id: string;
      choices: AnswerChoice[];
      usage: AnswerUsage;
      sessionId: string | undefined;
      marks?: readonly Mark[];
      fingerprint?: string | undefined;
    }
  /** Before anything was said. */
  | { kind: "refused"; status: number; code: string }
  /** An error in the place of an end. */
  | { kind: "failed"; code: string; text: string }
  /** The client went away, with so much. */
  | { kind: "left"; text: string; isStream: boolean; fingerprint?: string | undefined }
  /** The connection broke off, or there was none. */
  | { kind: "lost"; text: string; why: string; fingerprint?: string | undefined };

/** How a client reads. */
export interface Reading {
  /** Goes away when it has so many characters of text; 0: before it has any header. */
  leaveAfter?: number | undefined;
  /** Of a resumable stream: the connection is cut behind so many bytes, and taken up again. */
  cutAfterBytes?: number | undefined;
  /** Waits so long behind each piece. */
  pauseMs?: number | undefined;
}

interface Heard {
  id: string;
  choices: Map<number, { text: string; reason: string | undefined; logprobs: number[] | undefined }>;
  usage: AnswerUsage | undefined;
  error: string | undefined;
  isOver: boolean;
  lastEventId: string;
  marks: Mark[];
  fingerprint: string | undefined;
}

/** Speaks for one key. */
export class Client {
  readonly #url: () => string;
  /** May be changed for another one of the same tenant at any time. */
  key: string;

  constructor(url: () => string, key: string) {
    this.#url = url;
    this.key = key;
  }

  /** Any request but a turn; undefined body for none, and where the edge is not there. */
  async ask(
    method: string,
    path: string,
    body?: object,
    headers: Record<string, string> = {},
  ): Promise<{ status: number; body: Record<string, unknown> } | undefined> {
    try {
      const asked = { method, ...(body === undefined ? {} : { body: JSON.stringify(body) }) };
      const response = await this.#fetch(path, { ...asked, signal: AbortSignal.timeout(ANSWER_MS_MAX) }, headers);
      return { status: response.status, body: (await response.json()) as Record<string, unknown> };
    } catch (thrown) {
      if ((thrown as Error).name === "TimeoutError") throw new Error(`${method} ${path} hung`);
      return undefined;
    }
  }

  /** A turn. @throws {Error} for one that hangs, or says what no OpenAI client reads. */
  async send(
    path: "/v1/chat/completions" | "/v1/completions",
    body: Record<string, unknown>,
    { headers = {}, ...reading }: Reading & { headers?: Record<string, string> } = {},
  ): Promise<Outcome> {
    const leaving = new AbortController();
    const late = AbortSignal.timeout(ANSWER_MS_MAX);
    const signal = AbortSignal.any([leaving.signal, late]);
    const heard = newHeard();
    if (reading.leaveAfter === 0) setTimeout(() => leaving.abort(), 1 + (reading.pauseMs ?? 0));
    try {
      const response = await this.#fetch(path, { method: "POST", body: JSON.stringify(body), signal }, headers);
      if (!response.ok) return refusalOf(response.status, await response.text());
      const sessionId = response.headers.get("x-quire-session") ?? undefined;
      if (body.stream !== true) return await readWhole(response, sessionId);
      let cut = await this.#read(response, heard, reading, leaving).catch((thrown: unknown) => {
        if (reading.cutAfterBytes === undefined) throw thrown;
        return true;
      });
      for (let tries = 0; cut && tries < 40; tries++) {
        const after: Record<string, string> = heard.lastEventId === "" ? {} : { "last-event-id": heard.lastEventId };
        const key = headers["idempotency-key"];
        const name = heard.lastEventId === "" && key !== undefined ? { "idempotency-key": key } : {};
        const asked = this.#fetch(`/v1/sessions/${sessionId}/stream`, { signal }, { ...after, ...name });
        const more = await asked.catch(() => undefined);
        if (more === undefined || more.status >= 500) await sleep(250);
        else if (!more.ok)
          return { kind: "lost", text: textOf(heard), why: `resume ${more.status} ${await more.text()}` };
        else
          cut = await this.#read(more, heard, { cutAfterBytes: Number.POSITIVE_INFINITY }, leaving).catch(() => true);
      }
      return outcomeOf(heard, sessionId, leaving.signal.aborted);
    } catch (thrown) {
      if (late.aborted) throw new Error(`a turn hung: ${JSON.stringify(body).slice(0, 300)}`);
      if (leaving.signal.aborted)
        return { kind: "left", text: textOf(heard), isStream: body.stream === true, fingerprint: heard.fingerprint };
      if (thrown instanceof SyntaxError) throw thrown;
      return {
        ...{ kind: "lost", text: textOf(heard), fingerprint: heard.fingerprint },
        why: String((thrown as Error).cause ?? thrown),
      };
    }
  }

  /** The whole stream of a session's last resumable turn, once more. */
  async follow(sessionId: string, headers: Record<string, string>): Promise<Outcome> {
    const heard = newHeard();
    try {
      const signal = AbortSignal.timeout(ANSWER_MS_MAX);
      const response = await this.#fetch(`/v1/sessions/${sessionId}/stream`, { signal }, headers);
      if (!response.ok) return refusalOf(response.status, await response.text());
      await this.#read(response, heard, {}, new AbortController());
      return outcomeOf(heard, sessionId, false);
    } catch (thrown) {
      return { kind: "lost", text: textOf(heard), why: String(thrown) };
    }
  }

  /** Once more where the key was changed meanwhile. */
  async #fetch(path: string, init: RequestInit, headers: Record<string, string>): Promise<Response> {
    for (;;) {
      const { key } = this;
      const response = await fetch(`${this.#url()}${path}`, { ...init, headers: this.#headers(headers) });
      if (response.status !== 401 || key === this.key) return response;
      await response.body?.cancel();
    }
  }

  #headers(more: Record<string, string>): Record<string, string> {
    // A connection that is kept alive may be closed by the server just as the next request takes it, and nobody knows what became of that one.
    const each = { connection: "close", "content-type": "application/json" };
    return { authorization: `Bearer ${this.key}`, ...each, ...more };
  }

  /** @returns whether it was cut; events that were not whole are forgotten */
  async #read(response: Response, heard: Heard, reading: Reading, leaving: AbortController): Promise<boolean> {
    const parser = new SseParser();
    const decoder = new TextDecoder();
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    let bytes = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return !heard.isOver && heard.error === undefined && reading.cutAfterBytes !== undefined;
      const left = (reading.cutAfterBytes ?? Number.POSITIVE_INFINITY) - bytes;
      for (const { data, id } of parser.push(decoder.decode(value.subarray(0, left), { stream: true }))) {
        if (id !== "") heard.lastEventId = id;
        take(data, heard);
        if (id !== "") heard.marks.push({ id, length: textOf(heard).length });
      }
      bytes += value.length;
      if (value.length >= left) {
        await reader.cancel().catch(() => undefined);
        return !heard.isOver;
      }
      if (reading.leaveAfter !== undefined && textOf(heard).length >= reading.leaveAfter && !heard.isOver)
        leaving.abort();
      if (reading.pauseMs !== undefined) await sleep(reading.pauseMs);
    }
  }
}

function newHeard(): Heard {
  return {
    id: "",
    choices: new Map(),
    usage: undefined,
    error: undefined,
    isOver: false,
    lastEventId: "",
    marks: [],
    fingerprint: undefined,
  };
}

interface ChunkChoice {
  index: number;
  delta?: { content?: string };
  text?: string;
  message?: { content: string };
  finish_reason?: string | null;
  logprobs?: { content?: { logprob: number }[]; token_logprobs?: number[] } | null;
}

interface Chunk {
  id?: string;
  system_fingerprint?: string;
  choices?: ChunkChoice[];
  usage?: AnswerUsage | null;
  error?: { code: string };
}

function take(data: string, heard: Heard): void {
  if (heard.isOver) throw new SyntaxError("something came behind the end of a stream");
  if (data === "[DONE]") {
    heard.isOver = true;
    return;
  }
  const chunk = JSON.parse(data) as Chunk;
  if (chunk.error) heard.error = chunk.error.code;
  if (chunk.id !== undefined) heard.id = chunk.id;
  heard.fingerprint = chunk.system_fingerprint ?? heard.fingerprint;
  if (chunk.usage) heard.usage = chunk.usage;
  for (const choice of chunk.choices ?? []) takeChoice(choice, heard);
}

function takeChoice(choice: ChunkChoice, heard: Heard): void {
  const known = heard.choices.get(choice.index) ?? { text: "", reason: undefined, logprobs: undefined };
  known.text += choice.delta?.content ?? choice.message?.content ?? choice.text ?? "";
  known.reason = choice.finish_reason ?? known.reason;
  const logprobs = choice.logprobs?.content?.map(({ logprob }) => logprob) ?? choice.logprobs?.token_logprobs;
  if (logprobs) known.logprobs = [...(known.logprobs ?? []), ...logprobs];
  heard.choices.set(choice.index, known);
}

function textOf({ choices }: Heard): string {
  return choices.get(0)?.text ?? "";
}

function choicesOf({ choices }: Heard): AnswerChoice[] {
  return [...choices.entries()].sort(([a], [b]) => a - b).map(([, choice]) => choice);
}

function refusalOf(status: number, text: string): Outcome {
  const { error } = JSON.parse(text) as { error?: { code?: string; message?: string; type?: string } };
  if (!error?.code || !error.message || !error.type) throw new SyntaxError(`an error without words: ${text}`);
  return { kind: "refused", status, code: error.code };
}

/** An answer that fails late is an error in a connection that breaks off behind it. */
async function readWhole(response: Response, sessionId: string | undefined): Promise<Outcome> {
  const decoder = new TextDecoder();
  let text = "";
  try {
    for await (const piece of response.body as AsyncIterable<Uint8Array>)
      text += decoder.decode(piece, { stream: true });
  } catch (thrown) {
    const code = /^\s*\{"error":.*"code":"([a-z_]+)"\}\}\s*$/.exec(text)?.[1];
    if (code === undefined) throw thrown;
    return { kind: "failed", code, text: "" };
  }
  return wholeOf(text, sessionId);
}

function wholeOf(text: string, sessionId: string | undefined): Outcome {
  const heard = newHeard();
  take(text, heard);
  heard.isOver = heard.error === undefined;
  return outcomeOf(heard, sessionId, false);
}

function outcomeOf(heard: Heard, sessionId: string | undefined, hasLeft: boolean): Outcome {
  const text = textOf(heard);
  if (heard.error !== undefined) return { kind: "failed", code: heard.error, text };
  if (!heard.isOver)
    return hasLeft
      ? { kind: "left", text, isStream: true, fingerprint: heard.fingerprint }
      : { kind: "lost", text, why: "broke off", fingerprint: heard.fingerprint };
  if (!heard.usage) throw new SyntaxError("an end without usage");
  return {
    kind: "done",
    id: heard.id,
    choices: choicesOf(heard),
    usage: heard.usage,
    sessionId,
    marks: heard.marks,
    fingerprint: heard.fingerprint,
  };
}

/** Of an outcome that is asked again, for people. */
export function describeGap(outcome: Outcome): string {
  const code = outcome.kind === "refused" || outcome.kind === "failed" ? outcome.code : "";
  return `... ${outcome.kind} ${code}`;
}
