/** Every route of the edge, and what all answers have in common: request id, CORS, OpenAI-shaped errors. */
import { type IRequest, Router } from "itty-router";
import { errorBody, QuireError, toQuireError } from "../protocol/errors.ts";
import { authenticate } from "./auth/authenticate.ts";
import { assertSigned, authenticateEngine, refused } from "./auth/engine.ts";
import { createKey, expireKey, getKey, listKeys, revokeKey } from "./auth/key-routes.ts";
import { parseJsonObject, readBytes } from "./body.ts";
import type { Env } from "./env.ts";
import { fleetOf } from "./fleet.ts";
import { chatCompletions, completions } from "./generate-routes.ts";
import { readHeartbeat } from "./heartbeat.ts";
import { RATE_HEADER_NAMES } from "./limits/rate-headers.ts";
import { logError } from "./log.ts";
import { modelBody } from "./openai-shapes.ts";
import { playground } from "./playground.ts";
import { SESSION_HEADER } from "./session-id.ts";
import { deleteSession, forkSession, getSession, resumeStream, stopStream } from "./session-routes.ts";

const HEARTBEAT_BYTES_MAX = 16 * 1024;

const REQUEST_ID_HEADER = "x-request-id";

const CORS_HEADERS: Readonly<Record<string, string>> = {
  "access-control-allow-origin": "*",
  "access-control-expose-headers": [REQUEST_ID_HEADER, SESSION_HEADER, "retry-after", ...RATE_HEADER_NAMES].join(", "),
};

type Handler = (request: IRequest, env: Env, requestId: string) => Promise<Response> | Response;

/** Path, then the handlers by method; any other method of a known path is 405. */
const ROUTES: readonly [string, Readonly<Record<string, Handler>>][] = [
  ["/", { GET: () => playground("index.html") }],
  ["/app.js", { GET: () => playground("app.js") }],
  ["/style.css", { GET: () => playground("style.css") }],
  ["/healthz", { GET: () => Response.json({ status: "ok" }) }],
  ["/v1/chat/completions", { POST: chatCompletions }],
  ["/v1/completions", { POST: completions }],
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
];

/** The Worker's fetch handler. Never rejects: whatever goes wrong is an OpenAI error body. */
export async function handle(request: Request, env: Env): Promise<Response> {
  const requestId = readRequestId(request.headers) ?? `req_${crypto.randomUUID()}`;
  let response: Response;
  try {
    response = request.method === "OPTIONS" ? preflight() : await router.fetch(request, env, requestId);
  } catch (thrown) {
    response = errorResponse(thrown, requestId);
  }
  response.headers.set(REQUEST_ID_HEADER, requestId);
  for (const [name, value] of Object.entries(CORS_HEADERS)) response.headers.set(name, value);
  return response;
}

/** The caller's own id, for its logs and ours; one that is not well-formed is as good as none. It need not be unique. */
function readRequestId(headers: Headers): string | undefined {
  const id = headers.get(REQUEST_ID_HEADER);
  return id !== null && /^[A-Za-z0-9._:-]{1,64}$/.test(id) ? id : undefined;
}

function buildRouter() {
  const router = Router<IRequest, [Env, string]>();
  for (const [path, methods] of ROUTES) {
    for (const [method, handler] of Object.entries(methods)) {
      if (method === "GET") router.get(path, handler);
      else if (method === "POST") router.post(path, handler);
      else router.delete(path, handler);
    }
    router.all(path, (request) => methodNotAllowed(request.method, Object.keys(methods)));
  }
  router.all("*", (request) => {
    throw new QuireError("not_found", `Invalid URL (${request.method} ${new URL(request.url).pathname})`);
  });
  return router;
}

const router = buildRouter();

function methodNotAllowed(method: string, allowed: string[]): Response {
  const error = new QuireError("method_not_allowed", `Not allowed to ${method} on this path.`);
  return Response.json(errorBody(error), { status: error.status, headers: { allow: allowed.join(", ") } });
}

function preflight(): Response {
  return new Response(null, {
    status: 204,
    headers: {
      "access-control-allow-methods": "GET, POST, DELETE, OPTIONS",
      // Browsers do not take "*" for authorization, and the clients' own headers (x-stainless-*) are many.
      "access-control-allow-headers": `*, authorization, content-type, ${SESSION_HEADER}`,
      "access-control-max-age": "86400",
    },
  });
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
  await authenticate(request, env, undefined);
  return Response.json({ object: "list", data: (await fleetOf(env).models()).map(modelBody) });
}

async function getModel(request: IRequest, env: Env): Promise<Response> {
  await authenticate(request, env, undefined);
  const id = param(request, "id");
  const model = (await fleetOf(env).models()).find((live) => live.id === id);
  if (model) return Response.json(modelBody(model));
  throw new QuireError("model_not_found", `The model '${id}' does not exist or you do not have access to it.`, {
    param: "model",
  });
}

async function heartbeat(request: Request, env: Env): Promise<Response> {
  const claims = await authenticateEngine(request, env);
  const body = await readBytes(request, { bytesMax: HEARTBEAT_BYTES_MAX });
  await assertSigned(claims, body);
  const fleet = fleetOf(env);
  if (!(await fleet.admitNonce(claims.nonce, claims.expiresMs))) throw refused();
  await fleet.heartbeat(readHeartbeat(parseJsonObject(body)));
  return Response.json({ status: "ok" });
}

function param(request: IRequest, name: string): string {
  return request.params[name] ?? "";
}
