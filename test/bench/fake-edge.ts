/** An OpenAI-shaped server that answers with known delays, remembers facts, and fails in known ways. */
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/** How a request is answered. */
export type Behaviour =
  | "answer"
  | "refuse-429"
  | "fail-500"
  | "error-in-stream"
  | "no-terminal-event"
  | "no-usage"
  | "bad-usage"
  | "forget-turn"
  | "drop";

/** Known delays and what each request gets. */
export interface FakeEdgeOptions {
  firstTokenMs: number;
  betweenMs: number;
  /** By number of the request, from 0. */
  behaviour?: (index: number) => Behaviour;
}

/** The server and what it saw. */
export interface FakeEdge {
  url: string;
  key: string;
  bodies: Record<string, unknown>[];
  deletedSessions: string[];
  /** Requests that are being answered now, and the most there were. */
  active: { now: number; max: number };
  /** Of each whole answer, by this process's clock: from the request to the first token and to the last, and from one token to the next. */
  delays: { firstMs: number; lastMs: number; betweenMs: number[] }[];
  close(): Promise<void>;
}

/** Tokens of every reply. */
export const replyTokens = 4;
const key = "qk-fake";

/** Listens on a free port of this machine. */
export async function openFakeEdge(options: FakeEdgeOptions): Promise<FakeEdge> {
  const memory = new Map<string, { codes: Map<string, string>; tokens: number }>();
  const bodies: Record<string, unknown>[] = [];
  const deletedSessions: string[] = [];
  const active = { now: 0, max: 0 };
  const delays: FakeEdge["delays"] = [];
  const server = createServer(async (request, response) => {
    if (request.headers.authorization !== `Bearer ${key}`) return json(response, 401, failure("invalid_api_key"));
    if (request.url === "/v1/models") return json(response, 200, { data: [{ id: "fake-1" }] });
    if (request.method === "DELETE") {
      // A client that leaves a resumable reply says so at the session's stream.
      if (!request.url?.endsWith("/stream")) deletedSessions.push(request.url?.split("/").at(-1) ?? "");
      response.writeHead(204).end();
      return;
    }
    let text = "";
    for await (const chunk of request) text += chunk;
    const body = JSON.parse(text) as Record<string, unknown>;
    const index = bodies.push(body) - 1;
    const arrivedMs = performance.now();
    active.now += 1;
    active.max = Math.max(active.max, active.now);
    response.once("close", () => {
      active.now -= 1;
    });
    const behaviour = options.behaviour?.(index) ?? "answer";
    if (behaviour === "refuse-429") return json(response, 429, failure("queue_full"));
    if (behaviour === "fail-500") return json(response, 500, failure("internal"));
    response.writeHead(200, { "content-type": "text/event-stream" });
    const sentMs = await answer(response, { options, behaviour, turn: takeTurn(memory, body, behaviour) });
    if (sentMs.length < replyTokens) return;
    delays.push({
      firstMs: sentMs[0]! - arrivedMs,
      lastMs: sentMs.at(-1)! - arrivedMs,
      betweenMs: sentMs.slice(1).map((ms, token) => ms - sentMs[token]!),
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    key,
    bodies,
    deletedSessions,
    active,
    delays,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

interface Turn {
  reply: string;
  cachedTokens: number;
  promptTokens: number;
}

function takeTurn(
  memory: Map<string, { codes: Map<string, string>; tokens: number }>,
  body: Record<string, unknown>,
  behaviour: Behaviour,
) {
  const { session_id: id } = body.quire as { session_id: string };
  const text = (body.messages as { content: string }[]).map((message) => message.content).join("");
  const session = memory.get(id) ?? { codes: new Map<string, string>(), tokens: 0 };
  memory.set(id, session);
  for (const [, name = "", code = ""] of text.matchAll(/ The code of (\w+) is (\d+)\. /g))
    session.codes.set(name, code);
  const asked = /What is the code of (\w+)\?$/.exec(text)?.[1] ?? "";
  const cachedTokens = session.tokens;
  const promptTokens = cachedTokens + text.length;
  if (behaviour !== "forget-turn") session.tokens = promptTokens + replyTokens;
  return { reply: `The code of ${asked} is ${session.codes.get(asked)}.`, cachedTokens, promptTokens };
}

/** Resolves to when each token was sent. */
async function answer(
  response: ServerResponse,
  { options, behaviour, turn }: { options: FakeEdgeOptions; behaviour: Behaviour; turn: Turn },
): Promise<number[]> {
  const send = (value: unknown): void => void response.write(`data: ${JSON.stringify(value)}\n\n`);
  const words = turn.reply.split(/(?<= )/);
  const pieces = Array.from({ length: replyTokens }, (_, index) =>
    index < replyTokens - 1 ? words[index] : words.slice(index).join(""),
  );
  response.write(": hb\n\n");
  const sentMs: number[] = [];
  for (const [index, content] of pieces.entries()) {
    await sleep(index === 0 ? options.firstTokenMs : options.betweenMs);
    if (behaviour === "drop" && index === 2) {
      response.destroy();
      return sentMs;
    }
    if (behaviour === "error-in-stream" && index === 2) {
      send(failure("engine_failed"));
      response.end();
      return sentMs;
    }
    sentMs.push(performance.now());
    send({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });
  }
  send({ choices: [{ index: 0, delta: {}, finish_reason: "stop" }] });
  if (behaviour !== "no-usage") send({ choices: [], usage: usageOf(turn, behaviour) });
  if (behaviour !== "no-terminal-event") response.write("data: [DONE]\n\n");
  response.end();
  return sentMs;
}

function usageOf({ promptTokens, cachedTokens }: Turn, behaviour: Behaviour): object {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: replyTokens,
    total_tokens: promptTokens + replyTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens + (behaviour === "bad-usage" ? 1 : 0) },
    quire: { source: { device: cachedTokens, host: 0, store: 0 } },
  };
}

function failure(code: string): object {
  const type = code === "queue_full" ? "rate_limit_error" : "server_error";
  return { error: { message: `scripted: ${code}`, type, param: null, code } };
}

function json(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}
