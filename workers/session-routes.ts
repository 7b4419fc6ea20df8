/** GET and DELETE /v1/sessions/:id, POST /v1/sessions/:id/fork. */
import { QuireError } from "../protocol/errors.ts";
import type { SessionStatus } from "../protocol/generate.ts";
import { authenticate } from "./auth/authenticate.ts";
import type { Env } from "./env.ts";
import { checkSessionId, newSessionId } from "./session-id.ts";
import { sessionOf } from "./stubs.ts";
import type { SessionInfo } from "./turn-job.ts";

/**
 * Describes a session, no text, and how much of it would outlive its engine: once `persist_pending` is false, `persisted_tokens` of it
 * need not be computed again, whatever dies (after a turn that rewrote the log, up to its next commit, they are of the log as it was).
 * Both are null when no engine can tell.
 * @throws {QuireError} `session_not_found`.
 */
export async function getSession(request: Request, env: Env, id: string): Promise<Response> {
  const { namespace } = await authenticate(request, env, "sessions:read");
  const [info, stored] = await Promise.all([
    infoOf(env, namespace, id),
    sessionOf(env, namespace, checkSessionId(id, "id")).stored(),
  ]);
  return Response.json(sessionBody(info, stored));
}

/** Deletes a session. @throws {QuireError} `session_not_found`, `session_busy`. */
export async function deleteSession(request: Request, env: Env, id: string): Promise<Response> {
  const { namespace } = await authenticate(request, env, "sessions:write");
  const removed = await sessionOf(env, namespace, checkSessionId(id, "id")).remove();
  if (removed === "busy") {
    throw new QuireError("session_busy", "This session is working on a turn.", { retryAfterMs: 1_000 });
  }
  if (!removed) throw notFound(id);
  return Response.json({ id, object: "session.deleted", deleted: true });
}

/** Makes a new session with the log of another one, up to its last finished turn. @throws {QuireError} `session_not_found`. */
export async function forkSession(request: Request, env: Env, parentId: string): Promise<Response> {
  const { namespace } = await authenticate(request, env, "sessions:write");
  checkSessionId(parentId, "id");
  const id = newSessionId();
  const fork = sessionOf(env, namespace, id);
  if (!(await fork.adopt({ id, parentId, namespace }))) throw notFound(parentId);
  // Under its own name nothing is stored yet: until its first turn it lives on its parent's pages.
  return Response.json(sessionBody(await infoOf(env, namespace, id), { persistedTokens: 0, pending: false }));
}

async function infoOf(env: Env, namespace: string, id: string): Promise<SessionInfo> {
  const info = await sessionOf(env, namespace, checkSessionId(id, "id")).info();
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
