/**
 * GET and DELETE /v1/sessions/:id and /v1/sessions/:id/stream, POST /v1/sessions/:id/fork. A session's object that does not answer within
 * `LIMITS.sessionMsMax` is `deadline_exceeded`.
 */
import { QuireError } from "../protocol/errors.ts";
import type { SessionStatus } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";
import { authenticate, type Tenant } from "./auth/authenticate.ts";
import type { Scope } from "./auth/key-record.ts";
import { parseJsonObject, readBytes } from "./body.ts";
import { within } from "./deadline.ts";
import type { Env } from "./env.ts";
import { Fields } from "./fields.ts";
import { countRequest } from "./limits/admission.ts";
import { streamAnswer } from "./respond.ts";
import { checkSessionId, newSessionId, readIdempotencyKey, SESSION_HEADER } from "./session-id.ts";
import { sessionOf } from "./stubs.ts";
import type { ResumeRequest, SessionInfo } from "./turn-job.ts";

/** Of a body in which there is nothing to say. */
const FORK_BYTES_MAX = 4096;

/**
 * Describes a session, no text, and how much of it would outlive its engine: once `persist_pending` is false, `persisted_tokens` of it
 * need not be computed again, whatever dies (after a turn that rewrote the log, up to its next commit, they are of the log as it was).
 * Both are null when no engine can tell.
 * @throws {QuireError} `session_not_found`.
 */
export async function getSession(request: Request, env: Env, id: string): Promise<Response> {
  const { namespace } = await countedTenant(request, env, "sessions:read");
  checkSessionId(id, "id");
  const stored = within(LIMITS.sessionMsMax, sessionOf(env, namespace, id).stored());
  const [info, status] = await Promise.all([infoOf(env, namespace, id), stored]);
  return Response.json(sessionBody(info, status));
}

/** Deletes a session. @throws {QuireError} `session_not_found`, `session_busy`. */
export async function deleteSession(request: Request, env: Env, id: string): Promise<Response> {
  const { namespace } = await countedTenant(request, env, "sessions:write");
  const session = sessionOf(env, namespace, checkSessionId(id, "id"));
  // Behind the log goes what is stored of it.
  const removed = await within<boolean | "busy">(LIMITS.sessionMsMax + LIMITS.storePutMsMax, session.remove());
  if (removed === "busy") {
    throw new QuireError("session_busy", "This session is working on a turn.", { retryAfterMs: 1_000 });
  }
  if (!removed) throw notFound(id);
  return Response.json({ id, object: "session.deleted", deleted: true });
}

/**
 * Makes a new session with the log of another one, up to its last finished turn. There is nothing to say of it: a body with fields, such as a name
 * for the fork, is refused before anything is made.
 * @throws {QuireError} `session_not_found`, and what a body is refused for.
 */
export async function forkSession(request: Request, env: Env, parentId: string): Promise<Response> {
  const { namespace } = await countedTenant(request, env, "sessions:write");
  checkSessionId(parentId, "id");
  const body = await readBytes(request, { bytesMax: FORK_BYTES_MAX });
  if (body.byteLength > 0) new Fields(parseJsonObject(body)).refuseOthers();
  const id = newSessionId();
  const fork = sessionOf(env, namespace, id);
  if (!(await within(LIMITS.sessionMsMax, fork.adopt({ id, parentId, namespace })))) throw notFound(parentId);
  // Under its own name nothing is stored yet: until its first turn it lives on its parent's pages.
  return Response.json(sessionBody(await infoOf(env, namespace, id), { persistedTokens: 0, pending: false }));
}

/** What a client that was cut off sends back: the turn, and the number of the last event that it has. */
const EVENT_ID = /^([0-9a-f]{8,32})\.(\d{1,9})$/;

/**
 * GET: the rest of a session's last turn, behind the event that `Last-Event-ID` names, or all of it. Whether it runs or has ended: the
 * client gets every event once.
 * @throws {QuireError} `stream_not_found` for a turn that is not resumable, not the last one, or over for too long; `invalid_request`
 * for an id that was never given out.
 */
export async function resumeStream(request: Request, env: Env, id: string): Promise<Response> {
  const { namespace } = await countedTenant(request, env, "generate");
  const { from, ...name } = readTurnName(request.headers);
  const session = sessionOf(env, namespace, checkSessionId(id, "id"));
  const feed = await within(LIMITS.sessionMsMax, session.resume({ from, form: "sse", ...name }));
  if (!feed) throw streamNotFound(id);
  const out = streamAnswer({ feed, resumable: true, signal: request.signal });
  out.headers.set(SESSION_HEADER, id);
  return out;
}

/** DELETE: ends the turn that runs, as a client does that goes away; what it said so far stays in the log. @throws {QuireError} `stream_not_found`. */
export async function stopStream(request: Request, env: Env, id: string): Promise<Response> {
  const { namespace } = await countedTenant(request, env, "generate");
  const { from: _, ...name } = readTurnName(request.headers);
  const session = sessionOf(env, namespace, checkSessionId(id, "id"));
  if (!(await within(LIMITS.sessionMsMax, session.stopTurn(name)))) throw streamNotFound(id);
  return Response.json({ id, object: "session.stream.stopped", stopped: true });
}

function readTurnName(headers: Headers): Omit<ResumeRequest, "form"> {
  const idempotencyKey = readIdempotencyKey(headers);
  const id = headers.get("last-event-id");
  if (id === null || id === "") return { idempotencyKey, from: 0 };
  const [, streamId, number] = EVENT_ID.exec(id) ?? [];
  if (streamId === undefined) {
    throw new QuireError("invalid_request", "Invalid 'Last-Event-ID': it is not an event of this server.", {
      param: "Last-Event-ID",
    });
  }
  return { streamId, idempotencyKey, from: Number(number) + 1 };
}

function streamNotFound(id: string): QuireError {
  return new QuireError("stream_not_found", `The session '${id}' has no such stream to go on with.`, {
    param: "Last-Event-ID",
  });
}

async function countedTenant(request: Request, env: Env, scope: Scope): Promise<Tenant> {
  const tenant = await authenticate(request, env, scope);
  await countRequest({ env, tenant });
  return tenant;
}

async function infoOf(env: Env, namespace: string, id: string): Promise<SessionInfo> {
  const info = await within(LIMITS.sessionMsMax, sessionOf(env, namespace, id).info());
  if (!info) throw notFound(id);
  return info;
}

function notFound(id: string): QuireError {
  return new QuireError("session_not_found", `The session '${id}' does not exist.`, { param: "id" });
}

function sessionBody(
  info: SessionInfo,
  stored: Pick<SessionStatus, "persistedTokens" | "pending"> | undefined,
): object {
  return {
    id: info.id,
    object: "session",
    model: info.model,
    created: info.createdS,
    tokens: info.tokens,
    turns: info.turns,
    parent_id: info.parentId ?? null,
    // An engine may have run on behind what an aborted turn left in the log.
    persisted_tokens: stored ? Math.min(stored.persistedTokens, info.tokens) : null,
    persist_pending: stored?.pending ?? null,
    messages: info.messages.map(({ role, tokenEnd }) => ({ role, token_end: tokenEnd ?? null })),
  };
}
