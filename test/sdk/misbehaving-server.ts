/** A local HTTP server that does exactly what a script says, attempt by attempt, and remembers what it was asked. */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** What one attempt gets. */
export type Script = (response: ServerResponse, request: Received) => unknown;

/** A request as it arrived. */
export interface Received {
  method: string;
  path: string;
  headers: IncomingMessage["headers"];
  body: Record<string, unknown>;
  /** Resolves when the client has gone or the answer has been taken. */
  closed: Promise<void>;
}

/** The server and its memory. */
export interface MisbehavingServer {
  baseUrl: string;
  received: Received[];
  /** Scripts of the coming attempts; an attempt without one fails the test by answering 418. */
  scripts: Script[];
  close(): Promise<void>;
}

/** Listens on a free port of this machine. */
export async function openServer(): Promise<MisbehavingServer> {
  const received: Received[] = [];
  const scripts: Script[] = [];
  const server = createServer(async (request, response) => {
    let text = "";
    for await (const chunk of request) text += chunk;
    const entry: Received = {
      method: request.method ?? "",
      path: request.url ?? "",
      headers: request.headers,
      body: text === "" ? {} : JSON.parse(text),
      closed: new Promise((resolve) => response.once("close", () => resolve())),
    };
    received.push(entry);
    const script = scripts.shift();
    if (script === undefined) response.writeHead(418).end("{}");
    else await script(response, entry);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    baseUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    received,
    scripts,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** One event; objects as JSON. */
export const sse = (value: unknown): string => `data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`;

/** The event that brings a piece of text. */
export const delta = (content: string): string =>
  sse({ object: "chat.completion.chunk", choices: [{ index: 0, delta: { content }, finish_reason: null }] });

/** What {@link ending} reports. */
export const USAGE = {
  prompt_tokens: 10,
  completion_tokens: 3,
  total_tokens: 13,
  prompt_tokens_details: { cached_tokens: 7 },
  quire: {
    session_id: "s-1",
    source: { device: 0, host: 0, store: 7 },
    bytes_before_first_token: 4096,
    pages_selected: 5,
  },
};

/** The last three events of a complete reply. */
export const ending = (reason = "stop"): string =>
  sse({ choices: [{ index: 0, delta: {}, finish_reason: reason }] }) +
  sse({ choices: [], usage: USAGE }) +
  sse("[DONE]");

/** Answers 200 and writes the parts one by one, in packets of their own. */
export function streams(...parts: string[]): Script {
  return async (response) => {
    response.writeHead(200, { "content-type": "text/event-stream", "x-request-id": "r-1" });
    for (const part of parts) {
      response.write(part);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    response.end();
  };
}

/** Answers with an OpenAI error. */
export function fails(status: number, code: string, headers: Record<string, string> = {}): Script {
  return (response) => {
    const type = status === 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
    response.writeHead(status, { "content-type": "application/json", "x-request-id": "r-9", ...headers });
    response.end(JSON.stringify({ error: { message: `it is ${code}`, type, param: "messages", code } }));
  };
}
