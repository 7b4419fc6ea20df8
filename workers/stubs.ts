/** Finds the Durable Objects of a tenant. Names begin with the namespace, so two tenants' objects never have one name. */
import { QuireError } from "../protocol/errors.ts";
import { LIMITS } from "../protocol/limits.ts";
import { within } from "./deadline.ts";
import type { Env } from "./env.ts";
import type { SessionLog } from "./session-log/session-log.ts";
import type { TenantIndex } from "./tenant-index.ts";

/** The log of a tenant's session. */
export function sessionOf(env: Env, namespace: string, sessionId: string): DurableObjectStub<SessionLog> {
  return env.SESSION_LOG.get(env.SESSION_LOG.idFromName(`${namespace}/${sessionId}`));
}

/** The model of a tenant's session; undefined for one that has not begun, and when its object does not say so within `LIMITS.statusMsMax`. Never rejects. */
export async function modelOfSession(env: Env, namespace: string, sessionId: string): Promise<string | undefined> {
  const asked = within(LIMITS.statusMsMax, sessionOf(env, namespace, sessionId).info());
  return (await asked.catch(() => undefined))?.model;
}

/** The transcripts of a tenant. */
export function indexOf(env: Env, namespace: string): DurableObjectStub<TenantIndex> {
  return env.TENANT_INDEX.get(env.TENANT_INDEX.idFromName(namespace));
}

/**
 * What an object answers; asked once more where the call was lost, as a new version of the Worker or an eviction ends those that are on their way. For what
 * may be done twice.
 * @param ask with a stub of its own each time: one stays with an object that was lost
 * @throws {QuireError} as `ask` does; otherwise what became of the second time
 */
export function askAgain<T>(ask: () => Promise<T>): Promise<T> {
  return ask().catch((thrown: unknown) => (thrown instanceof QuireError ? Promise.reject(thrown) : ask()));
}
