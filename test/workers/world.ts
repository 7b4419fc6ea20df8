/** A model, an engine and a client of one test: names are unique, so that tests of one file do not meet. */
import { env as bindings, exports } from "cloudflare:workers";
import { inject, vi } from "vitest";
import { LIMITS } from "../../protocol/limits.ts";
import { EDGE_AUDIENCE, signRequest } from "../../protocol/signature.ts";
import config from "../../weights/house-0/config.json?raw";
import generationConfig from "../../weights/house-0/generation_config.json?raw";
import tokenizerJson from "../../weights/house-0/tokenizer.json?raw";
import tokenizerConfig from "../../weights/house-0/tokenizer_config.json?raw";
import type { Env } from "../../workers/env.ts";
import type { Call, Step } from "./fake-engine/script.ts";

/** The bindings of the Worker under test. */
export const env = bindings as unknown as Env;
const worker = (exports as unknown as { default: Fetcher }).default;

/** API key of tenant "a". */
export const KEY_A = "key-of-a";
/** API key of tenant "b". */
export const KEY_B = "key-of-b";
/** API key of tenant "c", for tests that count what a tenant uses: no other test has turns of it. */
export const KEY_C = "key-of-c";
/** The key that edge and engines share. */
export const ENGINE_KEY = "engine-key-for-tests";
/** First of house-0's control tokens; its ids below are bytes. */
export const BOS = 256;
/** house-0's `<|user|>`. */
export const USER = 257;
/** house-0's `<|assistant|>`. */
export const ASSISTANT = 258;
/** house-0's `<|end|>`. */
export const END = 259;

/** Ids of text in house-0's vocabulary. */
export function ids(text: string): number[] {
  return [...new TextEncoder().encode(text)];
}

/** Steps of an engine that answers `text` and ends by itself, all at once. */
export function says(text: string): Step[] {
  return [{ do: "admit" }, { do: "tokens", ids: [...ids(text), END] }, { do: "done", reason: "stop" }];
}

/** Ids of a conversation's log: of each turn the question, and the whole reply where there is one. */
export function logOf(...turns: readonly (readonly [asked: string, said?: string])[]): number[] {
  const said = (text: string | undefined) => (text === undefined ? [] : [...ids(text), END]);
  return [BOS, ...turns.flatMap(([asked, reply]) => [USER, ...ids(asked), ASSISTANT, ...said(reply)])];
}

/** Steps of an engine that says "abc" and no end. */
export const ABC_AND_NO_END: Step[] = [{ do: "admit" }, { do: "tokens", ids: ids("abc") }, { do: "hang" }];

/** The Worker's own fetch handler. */
export function edge(path: string, init?: RequestInit): Promise<Response> {
  return worker.fetch(`http://edge.test${path}`, init);
}

/** GET or DELETE of a session's stream. */
export function streamOf(
  session: string,
  {
    method = "GET",
    key = KEY_A,
    ...named
  }: { method?: string; key?: string; lastId?: string; idempotencyKey?: string } = {},
): Promise<Response> {
  const headers = new Headers({ authorization: `Bearer ${key}` });
  if (named.lastId) headers.set("last-event-id", named.lastId);
  if (named.idempotencyKey) headers.set("idempotency-key", named.idempotencyKey);
  return edge(`/v1/sessions/${session}/stream`, { method, headers });
}

/** One scripted engine of the process that global-setup.ts started. */
export class FakeEngine {
  readonly id = `engine-${crypto.randomUUID()}`;
  readonly url = `${inject("fakeEngineUrl")}/e/${this.id}`;

  /** The next generation without a script of its own follows these steps. */
  async script(...steps: Step[]): Promise<void> {
    await (await fetch(`${this.url}/script`, { method: "POST", body: JSON.stringify(steps) })).text();
  }

  /** Lets the script that holds on go on. @throws when none does within a while */
  async release(): Promise<void> {
    await until(async () => (await fetch(`${this.url}/release`, { method: "POST" })).status === 204);
  }

  async calls(): Promise<Call[]> {
    return (await fetch(`${this.url}/calls`)).json();
  }

  /** Sessions that the edge asked to delete. */
  async deletes(): Promise<{ namespace: string; sessionId: string; bornMs?: number }[]> {
    return (await fetch(`${this.url}/deletes`)).json();
  }

  /** What the engine says to that from now on: that it is done, that it is not, or nothing. */
  async deleteAnswer(answer: "done" | "failed" | "none"): Promise<void> {
    await (await fetch(`${this.url}/delete-answer`, { method: "POST", body: answer })).text();
  }

  /** What the engine says from now on when it is asked about a session; undefined: it never answers. */
  async storedStatus(status: unknown): Promise<void> {
    await (await fetch(`${this.url}/status`, { method: "POST", body: JSON.stringify({ status }) })).text();
  }

  /** Sessions that the edge asked about. */
  async statusRequests(): Promise<{ namespace: string; sessionId: string }[]> {
    return (await fetch(`${this.url}/status-requests`)).json();
  }

  /** The last generation that was asked for. */
  async lastCall(): Promise<Call> {
    const call = (await this.calls()).at(-1);
    if (!call) throw new Error("the engine was never called");
    return call;
  }
}

/** What an engine says of itself, with a test's changes. */
export function heartbeatOf(engine: FakeEngine, model: string, changes: object = {}): object {
  return {
    engineId: engine.id,
    url: engine.url,
    model,
    modelFingerprint: "f",
    contextTokensMax: 32_768,
    device: "fake",
    numericsId: "fake-1",
    runningCount: 0,
    queuedCount: 0,
    queueMax: 64,
    freeBlockCount: 100,
    blockCount: 100,
    draining: false,
    ...changes,
  };
}

/** Sends a heartbeat, signed as an engine does. */
export async function beat(body: object, key = ENGINE_KEY): Promise<Response> {
  const path = "/v1/engines/heartbeat";
  const bytes = new TextEncoder().encode(JSON.stringify(body));
  const authorization = await signRequest(key, { audience: EDGE_AUDIENCE, method: "POST", path }, bytes, Date.now());
  return edge(path, { method: "POST", headers: { authorization }, body: bytes });
}

/** Registers an engine, or renews it. */
export async function register(engine: FakeEngine, model: string, changes: object = {}): Promise<void> {
  const response = await beat(heartbeatOf(engine, model, changes));
  if (response.status !== 200) throw new Error(`heartbeat: ${response.status} ${await response.text()}`);
  await response.text();
}

/** What a test works with. */
export interface World {
  model: string;
  engine: FakeEngine;
  /** POST to `path` with the test's model, key A and a fresh heartbeat, unless told otherwise. */
  post(path: string, body: object, options?: { key?: string; headers?: Record<string, string> }): Promise<Response>;
  /** POST /v1/chat/completions with one user message or several messages. */
  chat(
    messages: string | object[],
    more?: object,
    options?: { key?: string; headers?: Record<string, string> },
  ): Promise<Response>;
}

/** A model with house-0's words and one engine that serves it. */
export async function makeWorld(files: { tokenizerJson?: string; tokenizerConfig?: string } = {}): Promise<World> {
  const model = `model-${crypto.randomUUID()}`;
  const engine = new FakeEngine();
  await Promise.all([
    env.PAGES.put(`models/${model}/tokenizer.json`, files.tokenizerJson ?? tokenizerJson),
    env.PAGES.put(`models/${model}/tokenizer_config.json`, files.tokenizerConfig ?? tokenizerConfig),
    env.PAGES.put(`models/${model}/config.json`, config),
    env.PAGES.put(`models/${model}/generation_config.json`, generationConfig),
  ]);
  const post: World["post"] = async (path, body, options = {}) => {
    await register(engine, model);
    // An engine that lives beats: on a busy machine a request may take longer than one beat lasts.
    const beating = setInterval(() => void register(engine, model).catch(() => undefined), LIMITS.engineHeartbeatMs);
    return edge(path, {
      method: "POST",
      headers: {
        authorization: `Bearer ${options.key ?? KEY_A}`,
        "content-type": "application/json",
        ...options.headers,
      },
      body: JSON.stringify({ model, ...body }),
    }).finally(() => clearInterval(beating));
  };
  const chat: World["chat"] = (messages, more = {}, options = {}) => {
    const list = typeof messages === "string" ? [{ role: "user", content: messages }] : messages;
    return post("/v1/chat/completions", { messages: list, ...more }, options);
  };
  return { model, engine, post, chat };
}

/** The text of an unstreamed chat response. @throws when it is not one */
export async function textOf(response: Response): Promise<string> {
  const body = (await response.json()) as { choices?: { message: { content: string } }[] };
  const content = body.choices?.[0]?.message.content;
  if (content === undefined) throw new Error(`not a completion: ${response.status} ${JSON.stringify(body)}`);
  return content;
}

/** Payloads of an event stream in order: parsed JSON, "[DONE]", or ":" for a comment. */
export async function eventsOf(response: Response): Promise<unknown[]> {
  return parseEvents(await response.text());
}

/** Parses whole events; every one but a comment has an id and ends in an empty line. */
export function parseEvents(text: string): unknown[] {
  const events = text.split("\n\n");
  if (events.pop() !== "") throw new Error(`the stream is cut: ${JSON.stringify(text.slice(-80))}`);
  return events.map((event) => {
    if (event.startsWith(":")) return ":";
    const [, data] = /^id: [0-9a-f]{20}\.\d+\n(?:retry: \d+\n)?data: (.*)$/.exec(event) ?? [];
    if (data === undefined) throw new Error(`not an event: ${event}`);
    return data === "[DONE]" ? data : (JSON.parse(data) as unknown);
  });
}

/** Waits until `condition` holds. @throws after `msMax` */
export async function until(condition: () => Promise<boolean> | boolean, msMax = 5_000): Promise<void> {
  const deadline = Date.now() + msMax;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error("waited in vain");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Timers of so many milliseconds ring at once, or after `soonMs`, until it is restored. */
export function hurry(msMax: number, soonMs = 1) {
  const set = globalThis.setTimeout;
  const hurried = (act: () => void, ms?: number) => set(act, ms === msMax ? soonMs : ms);
  return vi.spyOn(globalThis, "setTimeout").mockImplementation(hurried as typeof setTimeout);
}

/** Timers that are set from now on, until it is disposed of. `ring` acts as if the time of the next of so many milliseconds had come. */
export function watchTimers(): Disposable & { ring: (ms: number) => Promise<void> } {
  const timed = vi.spyOn(globalThis, "setTimeout");
  const rung = new Map<number, number>();
  const ring = async (ms: number) => {
    const at = rung.get(ms) ?? 0;
    const set = () => timed.mock.calls.filter(([, delayMs]) => delayMs === ms)[at]?.[0];
    await until(() => set() !== undefined);
    rung.set(ms, at + 1);
    set()?.();
  };
  return { ring, [Symbol.dispose]: () => timed.mockRestore() };
}
