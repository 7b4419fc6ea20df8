/** Durable Object, one per tenant and day: the sessions that were last used on it, as far as is known. Each is asked whether it is time to go. */
import { DurableObject } from "cloudflare:workers";
import { LIMITS } from "../protocol/limits.ts";
import { within } from "./deadline.ts";
import type { Env } from "./env.ts";
import { logError } from "./log.ts";

const DAY_MS = 24 * 3_600_000;

/**
 * One alarm for all sessions of a tenant's day, `LIMITS.sessionIdleMsMax` behind its end: with one of its own each session would write it in every turn,
 * and a bare workerd holds all alarms in memory. Told of a session's first turn alone: sessions know themselves when they were used. Holds
 * names of objects, which say nothing of the ids that clients gave.
 */
export class SessionExpiry extends DurableObject<Env> {
  readonly #sql: SqlStorage;
  /** An alarm is set for what is listed. */
  #isArmed = false;

  constructor(state: DurableObjectState, env: Env) {
    super(state, env);
    this.#sql = state.storage.sql;
  }

  /**
   * Enters a session, once however often it is entered. One that is entered while it is asked stays.
   * @param objectId of its object, in hexadecimal
   * @param dueMs when it is to be asked, milliseconds since 1970
   */
  async enter(objectId: string, dueMs: number): Promise<void> {
    const { storage } = this.ctx;
    this.#open();
    this.#sql.exec("INSERT OR IGNORE INTO sessions VALUES (?, ?)", dueMs, objectId);
    if (this.#isArmed) return;
    const alarmMs = await storage.getAlarm();
    if (alarmMs === null || alarmMs > dueMs) await storage.setAlarm(dueMs);
    this.#isArmed = true;
  }

  /**
   * Asks some of those that are due; the others soon, and who does not answer later. When all have gone or are listed elsewhere, nothing is left. Who is asked
   * is put off first, so that an end in between, or an alarm that is not repeated often enough, loses nobody.
   */
  override async alarm(): Promise<void> {
    const { storage } = this.ctx;
    this.#open();
    const againMs = Date.now() + LIMITS.expiryRetryMs;
    const asked = this.#putOff(againMs);
    await storage.setAlarm(againMs);
    await Promise.all(
      asked.map(async (objectId) => {
        if (!(await this.#ask(objectId))) return;
        this.#sql.exec("DELETE FROM sessions WHERE due_ms = ? AND id = ?", againMs, objectId);
      }),
    );
    const [next] = this.#sql.exec("SELECT due_ms FROM sessions ORDER BY due_ms LIMIT 1").toArray();
    if (next) {
      await storage.setAlarm(Math.max(Date.now() + LIMITS.expiryPauseMs, Number(next.due_ms)));
      return;
    }
    this.#isArmed = false;
    await Promise.all([storage.deleteAlarm(), storage.deleteAll()]);
  }

  /** Sessions that are due, the first `LIMITS.expiryBatchMax`: from now on they are due then. */
  #putOff(againMs: number): string[] {
    const due = this.#sql
      .exec(
        "SELECT due_ms, id FROM sessions WHERE due_ms <= ? ORDER BY due_ms LIMIT ?",
        Date.now(),
        LIMITS.expiryBatchMax,
      )
      .toArray();
    for (const { due_ms: dueMs, id } of due) {
      this.#sql.exec("UPDATE OR REPLACE sessions SET due_ms = ? WHERE due_ms = ? AND id = ?", againMs, dueMs, id);
    }
    return [...new Set(due.map(({ id }) => String(id)))];
  }

  /** @returns whether the session needs to be asked no more */
  async #ask(objectId: string): Promise<boolean> {
    const sessions = this.env.SESSION_LOG;
    try {
      await within(LIMITS.sessionMsMax, sessions.get(sessions.idFromString(objectId)).expire());
      return true;
    } catch (thrown) {
      logError(`expire ${objectId}`, thrown);
      return false;
    }
  }

  #open(): void {
    this.#sql.exec(
      "CREATE TABLE IF NOT EXISTS sessions (due_ms INTEGER, id TEXT, PRIMARY KEY (due_ms, id)) WITHOUT ROWID",
    );
  }
}

/** A session, as lists know it. */
export interface ListedSession {
  namespace: string;
  /** Of its object, in hexadecimal. */
  objectId: string;
  /** When it was last used, milliseconds since 1970. */
  usedMs: number;
}

/** The list of a tenant's day, and when its sessions are asked: `LIMITS.sessionIdleMsMax` behind the end of that day, milliseconds since 1970. */
export function listOf(
  env: Env,
  { namespace, usedMs }: Pick<ListedSession, "namespace" | "usedMs">,
): { list: DurableObjectStub<SessionExpiry>; dueMs: number } {
  // Days of different tenants end at different times, so that not all lists are due at once.
  const shiftMs = Number.parseInt(namespace.slice(0, 8), 16) % DAY_MS;
  const day = Math.floor((usedMs + shiftMs) / DAY_MS);
  const list = env.SESSION_EXPIRY.get(env.SESSION_EXPIRY.idFromName(`${namespace}/${day}`));
  return { list, dueMs: (day + 1) * DAY_MS - shiftMs + LIMITS.sessionIdleMsMax };
}

/** Has a session asked, when the time has come, whether it is to go. @throws when its list does not answer within `LIMITS.indexMsMax` */
export async function enlist(env: Env, session: ListedSession): Promise<void> {
  const { list, dueMs } = listOf(env, session);
  await within(LIMITS.indexMsMax, list.enter(session.objectId, dueMs));
}

/** The same for a session that can do without, with an alarm of its own. @returns whether a list has it */
export async function tryEnlist(env: Env, session: ListedSession): Promise<boolean> {
  try {
    await enlist(env, session);
    return true;
  } catch (thrown) {
    logError(`enlist ${session.objectId}`, thrown);
    return false;
  }
}
