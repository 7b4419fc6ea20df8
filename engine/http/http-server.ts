/**
 * The engine's HTTP interface (`ENGINE_PATHS`): frames in, frames out, bearer key. A connection that closes ends its generation. Whatever a client
 * sends, it gets one answer: a `failed` frame for a request that cannot be run, a plain status for one that is not ours.
 */
import { timingSafeEqual } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { QuireError, toQuireError } from "../../protocol/errors.ts";
import { FrameDecoder } from "../../protocol/frames.ts";
import { ENGINE_PATHS, type SessionStatus } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { sha256 } from "../../storage/checksum.ts";
import type { Engine } from "../engine.ts";
import type { Ticket } from "../parts.ts";
import type { EngineLog } from "../settings.ts";
import { EventWriter } from "./event-writer.ts";
import { checkRequest, checkSessionRequest, type RequestBounds } from "./request-check.ts";

/** Bytes that may wait for a peer that does not read before its generation is ended. */
const WAITING_BYTES_MAX = 4 * 1024 * 1024;
const BODY_MS_MAX = 30_000;

/** What the HTTP interface needs of an engine. */
export interface EngineHttpOptions {
  engine: Engine;
  engineId: string;
  numericsId: string;
  bounds: RequestBounds;
  /** Bearer key shared with the edge; undefined: no authentication (loopback only, the caller's choice). */
  key: string | undefined;
  log: EngineLog;
  sessions: {
    status(namespace: string, sessionId: string): Promise<SessionStatus>;
    delete(namespace: string, sessionId: string): Promise<void>;
  };
}

/** An HTTP server that does not listen yet. */
export function engineHttpServer(options: EngineHttpOptions): Server {
  const tickets = new Map<string, Ticket>();
  const server = createServer((request, response) => {
    handle(options, tickets, request, response).catch((error: unknown) => {
      options.log("http.failed", { path: request.url, error: String(error) });
      const { status, message } = toQuireError(error);
      if (!response.headersSent) plain(response, status, message);
      else response.destroy();
    });
  });
  server.requestTimeout = BODY_MS_MAX;
  return server;
}

async function handle(
  options: EngineHttpOptions,
  tickets: Map<string, Ticket>,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const path = new URL(request.url ?? "/", "http://engine").pathname;
  if (path === "/healthz") return json(response, 200, { ok: true, engine: options.engineId, ...options.engine.status });
  const known = Object.values(ENGINE_PATHS).some((candidate) => candidate === path);
  if (!known) return plain(response, 404, "no such path");
  if (request.method !== "POST") return plain(response, 405, "use POST");
  if (!authorized(request, options.key)) return plain(response, 401, "wrong engine key");
  if (path === ENGINE_PATHS.generate) return await generate(options, tickets, request, response);
  const body = await readFrame(request);
  if (path === ENGINE_PATHS.cancel) {
    tickets.get(String((body as { requestId?: unknown } | null)?.requestId))?.cancel();
    response.writeHead(204).end();
    return;
  }
  const { namespace, sessionId } = checkSessionRequest(body);
  if (path === ENGINE_PATHS.sessionStatus)
    return json(response, 200, await options.sessions.status(namespace, sessionId));
  await options.sessions.delete(namespace, sessionId);
  response.writeHead(204).end();
}

async function generate(
  options: EngineHttpOptions,
  tickets: Map<string, Ticket>,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  let ticket: Ticket | undefined;
  const target = {
    write(frame: Uint8Array) {
      // A reply with a hole in it must not look whole: the stream is cut, which also ends the generation.
      if (response.writableLength > WAITING_BYTES_MAX) response.destroy();
      else response.write(frame);
    },
    end: () => response.end(),
  };
  const writer = new EventWriter(target, LIMITS.coalesceMs);
  try {
    const checked = checkRequest(await readFrame(request), options.bounds);
    response.writeHead(200, { "content-type": "application/x-quire-frames", "cache-control": "no-store" });
    if (tickets.has(checked.requestId))
      throw new QuireError("invalid_request", "This request id is running already.", { param: "requestId" });
    ticket = options.engine.submit(checked, writer);
    writer.admitted(options.engineId, options.numericsId);
    tickets.set(checked.requestId, ticket);
    const running = ticket;
    response.on("close", () => {
      tickets.delete(checked.requestId);
      if (!response.writableFinished) running.cancel();
    });
    // It may have closed while its body was read.
    if (response.destroyed) running.cancel();
  } catch (error) {
    if (!(error instanceof QuireError)) options.log("http.failed", { path: request.url, error: String(error) });
    if (!response.headersSent) response.writeHead(200, { "content-type": "application/x-quire-frames" });
    writer.failed(error);
  }
}

async function readFrame(request: IncomingMessage): Promise<unknown> {
  const decoder = new FrameDecoder();
  // Left open after an early end: the answer still has to go out on this connection.
  for await (const chunk of request.iterator({ destroyOnReturn: false })) {
    const values = decoder.push(chunk as Uint8Array);
    if (values.length > 0) return values[0];
  }
  throw new QuireError("invalid_request", "The body ended within a frame.");
}

/** Compares digests, so that neither content nor length shows in the time it takes. */
function authorized(request: IncomingMessage, key: string | undefined): boolean {
  if (key === undefined) return true;
  const given = /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1] ?? "";
  return timingSafeEqual(sha256(Buffer.from(given)), sha256(Buffer.from(key)));
}

function plain(response: ServerResponse, status: number, message: string): void {
  response.writeHead(status, { "content-type": "text/plain" }).end(`${message}\n`);
}

function json(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}
