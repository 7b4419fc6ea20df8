/**
 * The engine's HTTP interface (`ENGINE_PATHS`): frames in, frames out, signed by the edge. A connection that closes ends its generation. Whatever a client
 * sends, it gets one answer: a `failed` frame for a request that cannot be run, a plain status for one that is not ours.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { QuireError, toQuireError } from "../../protocol/errors.ts";
import { ENGINE_PATHS } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { Engine, Ticket } from "../engine.ts";
import { EXPOSITION_TYPE } from "../metrics/exposition.ts";
import type { EngineLog } from "../settings.ts";
import { EventWriter } from "./event-writer.ts";
import { checkRequest, checkSessionRequest, type RequestBounds } from "./request-check.ts";
import type { SessionCalls } from "./session-calls.ts";
import { readFrame, SignedDoor } from "./signed-door.ts";

/** Bytes that may wait for a peer that does not read before its generation is ended. */
const WAITING_BYTES_MAX = 4 * 1024 * 1024;
const HEADERS_MS_MAX = 10_000;
const BODY_MS_MAX = 30_000;
/**
 * Idle connections are the edge's to close (workerd does after 5 s): were both to do it at the same time, a turn that was just sent would be lost on
 * one that is closing, and count as a failed engine.
 */
const IDLE_MS_MAX = 60_000;
/** How often slow clients are looked for. */
const CHECK_MS = 1_000;

/** What the HTTP interface needs of an engine. */
export interface EngineHttpOptions {
  engine: Engine;
  engineId: string;
  numericsId: string;
  bounds: RequestBounds;
  /** Secret shared with the edge; undefined: no authentication (loopback only). */
  key: string | undefined;
  log: EngineLog;
  sessions: SessionCalls;
}

/** An HTTP server that does not listen yet. */
export function engineHttpServer(options: EngineHttpOptions): Server {
  const tickets = new Map<string, Ticket>();
  const door = new SignedDoor({ key: options.key, engineId: options.engineId, nowMs: () => Date.now() });
  const timeouts = {
    headersTimeout: HEADERS_MS_MAX,
    requestTimeout: BODY_MS_MAX,
    keepAliveTimeout: IDLE_MS_MAX,
    connectionsCheckingInterval: CHECK_MS,
  };
  const server = createServer(timeouts, (request, response) => {
    handle({ ...options, door, tickets }, request, response).catch((error: unknown) => {
      logFailure(options.log, request, error);
      const { status, message } = toQuireError(error);
      if (!response.headersSent) plain(response, status, message);
      else response.destroy();
    });
  });
  return server;
}

interface Room extends EngineHttpOptions {
  door: SignedDoor;
  /** Running generations by request id. */
  tickets: Map<string, Ticket>;
}

async function handle(options: Room, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const path = pathOf(request.url ?? "/");
  if (path === "/healthz" || path === "/metrics") {
    if (request.method !== "GET" && request.method !== "HEAD") return notAllowed(response, "GET, HEAD");
    if (path === "/metrics") return metrics(options, response);
    return json(response, 200, { ok: true, engine: options.engineId, ...options.engine.status });
  }
  const known = Object.values(ENGINE_PATHS).some((candidate) => candidate === path);
  if (!known) return plain(response, 404, "no such path");
  if (request.method !== "POST") return notAllowed(response, "POST");
  if (path === ENGINE_PATHS.generate) return await generate(options, request, response);
  const digest = await options.door.admit(request, path);
  if (digest === "refused") return refuse(response);
  const body = await readFrame(request, digest);
  if (body === "refused") return refuse(response);
  if (path === ENGINE_PATHS.cancel) {
    options.tickets.get(String((body as { requestId?: unknown } | null)?.requestId))?.cancel();
    response.writeHead(204).end();
    return;
  }
  if (path === ENGINE_PATHS.trace) return trace(options, body, response);
  const { namespace, sessionId, bornMs } = checkSessionRequest(body);
  if (path === ENGINE_PATHS.sessionStatus)
    return json(response, 200, await options.sessions.status(namespace, sessionId));
  await options.sessions.delete(namespace, sessionId, bornMs);
  response.writeHead(204).end();
}

/** The path of a request's target; empty for one that has none (`//`). */
function pathOf(target: string): string {
  return URL.parse(target, "http://engine")?.pathname ?? "";
}

async function generate(options: Room, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { tickets, engine } = options;
  const arrived = engine.expect();
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
    const digest = await options.door.admit(request, ENGINE_PATHS.generate);
    const body = digest === "refused" ? digest : await readFrame(request, digest);
    if (body === "refused") return refuse(response);
    const checked = checkRequest(body, options.bounds);
    response.writeHead(200, { "content-type": "application/x-quire-frames", "cache-control": "no-store" });
    if (tickets.has(checked.requestId))
      throw new QuireError("invalid_request", "This request id is running already.", { param: "requestId" });
    const ticket = engine.submit(checked, writer);
    writer.admitted(options.engineId, options.numericsId);
    // It may have closed while its body was read: nobody would say so again.
    if (response.destroyed) return ticket.cancel();
    tickets.set(checked.requestId, ticket);
    response.on("close", () => {
      tickets.delete(checked.requestId);
      if (!response.writableFinished) ticket.cancel();
    });
  } catch (error) {
    if (!(error instanceof QuireError) || error.code === "cancelled") logFailure(options.log, request, error);
    if (!response.headersSent) response.writeHead(200, { "content-type": "application/x-quire-frames" });
    writer.failed(error);
  } finally {
    arrived();
  }
}

/** A client that left before its request was whole is the normal course. */
function logFailure(log: EngineLog, request: IncomingMessage, error: unknown): void {
  if (toQuireError(error).code === "cancelled") log("http.ended", { path: request.url, outcome: "client_gone" });
  else log("http.failed", { path: request.url, error: String(error) });
}

/** Numbers about no tenant and no request, so nobody has to sign for them; keep the port from the public all the same. */
function metrics({ engine }: Room, response: ServerResponse): void {
  response.writeHead(200, { "content-type": EXPOSITION_TYPE }).end(engine.metrics.expose());
}

function trace({ engine }: Room, body: unknown, response: ServerResponse): void {
  const found = engine.traces.find(String((body as { requestId?: unknown } | null)?.requestId));
  if (found === undefined) plain(response, 404, "no such trace");
  else json(response, 200, found);
}

/** Without a reason, and without reading what else a stranger sends. */
function refuse(response: ServerResponse): void {
  response.writeHead(401, { "content-type": "text/plain", connection: "close" }).end("not authorized\n");
}

function notAllowed(response: ServerResponse, allow: string): void {
  response.setHeader("allow", allow);
  plain(response, 405, `use ${allow}`);
}

function plain(response: ServerResponse, status: number, message: string): void {
  response.writeHead(status, { "content-type": "text/plain" }).end(`${message}\n`);
}

function json(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}
