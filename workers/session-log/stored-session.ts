/** What an engine knows of a session in the page store: asks it, or has it deleted. */
import { QuireError } from "../../protocol/errors.ts";
import { encodeFrame } from "../../protocol/frames.ts";
import { ENGINE_PATHS, PROTOCOL_VERSION, type SessionRequest, type SessionStatus } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { engineHeaders } from "../auth/engine-headers.ts";
import type { PickedEngine } from "../fleet-table.ts";

/** A session, and the engine that is asked about it. */
export interface StoredSession {
  engine: PickedEngine;
  engineKey: string;
  namespace: string;
  sessionId: string;
  fetch: typeof fetch;
}

/**
 * Asks an engine to end a session that began at `bornMs` (absent: whenever), what it holds of it alone, and what is stored.
 * @throws {QuireError} `engine_failed` when it does not, within `LIMITS.storePutMsMax`.
 */
export async function deleteStored(session: StoredSession, bornMs?: number): Promise<void> {
  const response = await post(session, ENGINE_PATHS.sessionDelete, {
    msMax: LIMITS.storePutMsMax,
    ...(bornMs === undefined ? {} : { bornMs }),
  });
  await response.body?.cancel();
}

/**
 * Asks an engine how much of a session is durable.
 * @throws {QuireError} `engine_failed` when it does not say so within `LIMITS.statusMsMax`.
 */
export async function storedStatus(session: StoredSession): Promise<SessionStatus> {
  const response = await post(session, ENGINE_PATHS.sessionStatus, { msMax: LIMITS.statusMsMax });
  const status = (await response.json().catch(() => null)) as Partial<SessionStatus> | null;
  const { persistedTokens, generation, pending } = status ?? {};
  if (!Number.isSafeInteger(persistedTokens) || !Number.isSafeInteger(generation) || typeof pending !== "boolean") {
    throw failed(new QuireError("engine_failed", "the status is malformed"));
  }
  return { persistedTokens: Number(persistedTokens), generation: Number(generation), pending };
}

async function post(
  session: StoredSession,
  path: string,
  { msMax, ...fields }: { msMax: number; bornMs?: number },
): Promise<Response> {
  const { engine, engineKey, namespace, sessionId } = session;
  const request: SessionRequest = { version: PROTOCOL_VERSION, namespace, sessionId, ...fields };
  const body = encodeFrame(request);
  let response: Response;
  try {
    response = await session.fetch(`${engine.url}${path}`, {
      method: "POST",
      headers: await engineHeaders({ engineKey, engineId: engine.engineId, path, body }),
      body,
      signal: AbortSignal.timeout(msMax),
    });
  } catch (thrown) {
    throw failed(thrown);
  }
  if (response.ok) return response;
  await response.body?.cancel();
  throw failed(new QuireError("engine_failed", `the engine answered ${response.status}`));
}

function failed(cause: unknown): QuireError {
  return new QuireError("engine_failed", "The engine failed while it looked after a stored session.", { cause });
}
