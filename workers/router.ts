/** Every route of the edge, and what all answers have in common: request id, CORS, OpenAI-shaped errors. */
import { type IRequest, Router } from "itty-router";
import { errorBody, QuireError, toQuireError } from "../protocol/errors.ts";
import { LIMITS } from "../protocol/limits.ts";
import { authenticate } from "./auth/authenticate.ts";
import { assertSigned, authenticateEngine, refused } from "./auth/engine.ts";
import { createKey, expireKey, getKey, listKeys, revokeKey } from "./auth/key-routes.ts";
import { parseJsonObject, readBytes } from "./body.ts";
import { corsHeaders, preflight } from "./cors.ts";
import { within } from "./deadline.ts";
import type { Env } from "./env.ts";
import { quoted } from "./fields.ts";
import { unknownModel } from "./fleet/model-names.ts";
import { fleetOf, fleetShards } from "./fleet.ts";
import { chatCompletions, completions } from "./generate-routes.ts";
import { readHeartbeat } from "./heartbeat.ts";
import { logError } from "./log.ts";
import { modelBody } from "./openai-shapes.ts";
import { playground } from "./playground.ts";
import { AUTO_MODEL } from "./prompt-router/auto-model.ts";
import { REQUEST_ID_HEADER, requestIdOf } from "./request-id.ts";
import { metricsText } from "./routing-counts.ts";
import { deleteSession, forkSession, getSession, resumeStream, stopStream } from "./session-routes.ts";

const HEARTBEAT_BYTES_MAX = 16 * 1024;

type Handler = (request: IRequest, env: Env, requestId: string) => Promise<Response> | Response;
type Handlers = Readonly<Record<string, Handler>>;

/** Turns are nearly all that comes: they need not be compared with every path in turn. */
const TURNS: ReadonlyMap<string, typeof completions> = new Map([
  ["/v1/chat/completions", chatCompletions],
  ["/v1/completions", completions],
]);

/** Path, then the handlers by method; any other method of a known path is 405. */
const ROUTES: readonly [string, Handlers][] = [
  ["/", { GET: () => playground("index.html") }],
  ["/app.js", { GET: () => playground("app.js") }],
  ["/style.css", { GET: () => playground("style.css") }],
  ["/healthz", { GET: () => Response.json({ status: "ok" }) }],
  ...[...TURNS].map(([path, POST]): [string, Handlers] => [path, { POST }]),
  ["/v1/models", { GET: listModels }],
  ["/v1/models/:id", { GET: getModel }],
  [
    "/v1/sessions/:id",
    {
      GET: (request, env) => getSession(request, env, param(request, "id")),
      DELETE: (request, env) => deleteSession(request, env, param(request, "id")),
    },
  ],
  [
    "/v1/sessions/:id/stream",
    {
      GET: (request, env) => resumeStream(request, env, param(request, "id")),
      DELETE: (request, env) => stopStream(request, env, param(request, "id")),
    },
  ],
  ["/v1/sessions/:id/fork", { POST: (request, env) => forkSession(request, env, param(request, "id")) }],
  ["/v1/keys", { GET: listKeys, POST: createKey }],
  [
    "/v1/keys/:id",
    {
      GET: (request, env) => getKey(request, env, param(request, "id")),
      DELETE: (request, env) => revokeKey(request, env, param(request, "id")),
    },
  ],
  ["/v1/keys/:id/expire", { POST: (request, env) => expireKey(request, env, param(request, "id")) }],
  ["/v1/engines/heartbeat", { POST: heartbeat }],
  ["/metrics", { GET: metrics }],
];

/** The Worker's fetch handler. Never rejects: whatever goes wrong is an OpenAI error body. */
export async function handle(request: Request, env: Env): Promise<Response> {
  const requestId = requestIdOf(request.headers);
  let response: Response;
  try {
    response = request.method === "OPTIONS" ? preflight() : await route(request, env, requestId);
  } catch (thrown) {
    response = errorResponse(thrown, requestId);
  }
  response.headers.set(REQUEST_ID_HEADER, requestId);
  response.headers.set("x-content-type-options", "nosniff");
  const cors = corsHeaders(request.headers.get("origin"), env);
  for (const [name, value] of Object.entries(cors)) response.headers.set(name, value);
  return response;
}

function route(request: Request, env: Env, requestId: string): Promise<Response> {
  const { url } = request;
  const turn = request.method === "POST" ? TURNS.get(url.slice(url.indexOf("/", url.indexOf("//") + 2))) : undefined;
  return turn ? turn(request, env, requestId) : router.fetch(request, env, requestId);
}

function buildRouter() {
  const router = Router<IRequest, [Env, string]>();
  for (const [path, handlers] of ROUTES) {
    const methods = withHead(path, handlers);
    for (const [method, handler] of Object.entries(methods)) {
      if (method === "GET") router.get(path, handler);
      else if (method === "HEAD") router.head(path, handler);
      else if (method === "POST") router.post(path, handler);
      else router.delete(path, handler);
    }
    router.all(path, (request) => methodNotAllowed(request.method, Object.keys(methods)));
  }
  router.all("*", (request) => {
    const { pathname } = new URL(request.url);
    throw new QuireError("not_found", `Invalid URL (${request.method} ${quoted(pathname)}). ${rightPath(pathname)}`);
  });
  return router;
}

/** For clients whose base address lacks /v1, or has it twice, and for those that look for what is not here. */
function rightPath(pathname: string): string {
  const path = `/v1${pathname.replace(/^(\/v1)+(?=\/)/, "").replace(/\/$/, "")}`;
  if (path !== pathname && ROUTES.some(([known]) => known === path)) return `Did you mean ${path}?`;
  return "There are /v1/chat/completions, /v1/completions, /v1/models and /v1/sessions/{id}.";
}

/** What can be had with GET answers HEAD, too, and the platform leaves the body out. Streams do not: to open one is to follow it. */
function withHead(path: string, { GET, ...others }: Handlers): Handlers {
  if (!GET) return others;
  return path.endsWith("/stream") ? { GET, ...others } : { GET, HEAD: GET, ...others };
}

const router = buildRouter();

function methodNotAllowed(method: string, allowed: string[]): Response {
  const error = new QuireError("method_not_allowed", `Not allowed to ${method} on this path.`);
  return Response.json(errorBody(error), { status: error.status, headers: { allow: allowed.join(", ") } });
}

function errorResponse(thrown: unknown, requestId: string): Response {
  const error = toQuireError(thrown);
  logError(requestId, error);
  const headers: Record<string, string> = { ...error.headers };
  if (error.retryAfterMs !== undefined)
    headers["retry-after"] = String(Math.max(1, Math.ceil(error.retryAfterMs / 1000)));
  if (error.code === "invalid_api_key") headers["www-authenticate"] = "Bearer";
  return Response.json(errorBody(error), { status: error.status, headers });
}

async function listModels(request: Request, env: Env): Promise<Response> {
  const { namespace } = await authenticate(request, env, undefined);
  return Response.json({ object: "list", data: (await modelsOf(env, namespace)).map(modelBody) });
}

/** Models with a live engine; with them, where a prompt router is bound, the name that leaves the choice to it. */
async function modelsOf(env: Env, namespace: string): Promise<{ id: string; createdS: number }[]> {
  const live = await within(LIMITS.statusMsMax, fleetOf(env, namespace).models());
  const [first] = live;
  const isRouted = env.PROMPT_ROUTER !== undefined && first !== undefined;
  return isRouted ? [...live, { id: AUTO_MODEL, createdS: first.createdS }] : live;
}

async function getModel(request: IRequest, env: Env): Promise<Response> {
  const { namespace } = await authenticate(request, env, undefined);
  const id = param(request, "id");
  const model = (await modelsOf(env, namespace)).find((live) => live.id === id);
  if (model) return Response.json(modelBody(model));
  throw unknownModel(id);
}

/** The edge's own counters, for who may see every tenant's keys. */
async function metrics(request: Request, env: Env): Promise<Response> {
  await authenticate(request, env, "keys");
  const counts = await within(LIMITS.statusMsMax, Promise.all(fleetShards(env).map((shard) => shard.routingCounts())));
  return new Response(metricsText(counts), { headers: { "content-type": "text/plain; version=0.0.4" } });
}

async function heartbeat(request: Request, env: Env): Promise<Response> {
  const claims = await authenticateEngine(request, env);
  const body = await readBytes(request, { bytesMax: HEARTBEAT_BYTES_MAX });
  await assertSigned(claims, body);
  const [fleet, ...others] = fleetShards(env);
  // One of them remembers nonces for all.
  if (!fleet || !(await fleet.admitNonce(claims.nonce, claims.expiresMs))) throw refused();
  const beat = readHeartbeat(parseJsonObject(body));
  const shards = [fleet, ...others];
  const idle = await Promise.all(shards.map((shard) => shard.heartbeat(beat)));
  const release = idle.every(Boolean) && !beat.draining;
  if (release) await Promise.all(shards.map((shard) => shard.release(beat.engineId)));
  return Response.json({ status: "ok", ...(release ? { release } : {}) });
}

/** A part of the path, which a client may have written in percent signs: a session's name may have a colon, and clients do not send that as it is. */
function param(request: IRequest, name: string): string {
  const written = request.params[name] ?? "";
  try {
    return decodeURIComponent(written);
  } catch {
    return written;
  }
}
