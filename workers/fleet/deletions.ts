/**
 * Sessions that were deleted, until every engine of their model has heard of it: those that are there at once, others with a heartbeat. What no engine has
 * heard of yet outlives the object that remembers it; each entry is told once at least to each engine, which may be told again.
 */
import { LIMITS } from "../../protocol/limits.ts";
import { ifWithin } from "../deadline.ts";
import type { PickedEngine } from "../fleet-table.ts";

/** A session that is over: no turn of it runs, and its log is about to go. */
export interface EndedSession {
  namespace: string;
  id: string;
  model: string;
  /** When its log began, milliseconds since 1970. */
  bornMs: number;
}

/** What it works with. */
export interface DeletionsOptions {
  sql: SqlStorage;
  /** Engines of a model that are there. */
  engines(model: string): PickedEngine[];
  /** Has an engine end a session. Rejects when it does not say that it has. */
  tell(engine: PickedEngine, session: EndedSession): Promise<void>;
  onFailure(session: EndedSession, cause: unknown): void;
  now(): number;
}

interface Entry {
  session: EndedSession;
  deletedMs: number;
  /** An engine has put the tombstone. */
  isDone: boolean;
  /** Ids of engines that have heard of it, and of those that are being told. */
  told: Set<string>;
}

/** See the head of this file. */
export class Deletions {
  readonly #options: DeletionsOptions;
  /** By number, oldest first; undefined before they were read. */
  #entries: Map<number, Entry> | undefined;
  readonly #telling = new Map<string, Promise<void>>();

  constructor(options: DeletionsOptions) {
    this.#options = options;
  }

  /** Notes a deletion, and tells the engines that are there; resolves when they have carried it out, or after `LIMITS.engineExpiryMs`. */
  async add(session: EndedSession): Promise<void> {
    const { sql, engines, now } = this.#options;
    const entries = this.#open();
    this.#forgetOld(entries);
    const deletedMs = now();
    const { id } = sql
      .exec<{ id: number }>(
        "INSERT INTO deletions (deleted_ms, is_done, json) VALUES (?, 0, ?) RETURNING id",
        deletedMs,
        JSON.stringify(session),
      )
      .one();
    const entry: Entry = { session, deletedMs, isDone: false, told: new Set() };
    entries.set(id, entry);
    const telling = inTurns(engines(session.model), async (engine) => {
      await this.#tellOne(engine, id, entry);
      return true;
    });
    await ifWithin(LIMITS.engineExpiryMs, telling);
  }

  /** An engine is there: resolves when it has been told of what it has not heard yet, or has failed once: it is told of the rest with its next beat. Never rejects. */
  tellAll(engine: PickedEngine, model: string): Promise<void> {
    const entries = this.#open();
    this.#forgetOld(entries);
    const known = this.#telling.get(engine.engineId);
    if (known) return known;
    const unheard = [...entries].filter(
      ([, { session, told }]) => session.model === model && !told.has(engine.engineId),
    );
    if (unheard.length === 0) return Promise.resolve();
    const telling = inTurns(unheard, ([id, entry]) => this.#tellOne(engine, id, entry)).finally(() =>
      this.#telling.delete(engine.engineId),
    );
    this.#telling.set(engine.engineId, telling);
    return telling;
  }

  /** False where it fails. */
  async #tellOne(engine: PickedEngine, id: number, entry: Entry): Promise<boolean> {
    const { sql, tell, onFailure } = this.#options;
    if (entry.told.has(engine.engineId)) return true;
    entry.told.add(engine.engineId);
    try {
      await tell(engine, entry.session);
    } catch (cause) {
      entry.told.delete(engine.engineId);
      onFailure(entry.session, cause);
      return false;
    }
    if (!entry.isDone) sql.exec("UPDATE deletions SET is_done = 1 WHERE id = ?", id);
    entry.isDone = true;
    return true;
  }

  #open(): Map<number, Entry> {
    if (this.#entries) return this.#entries;
    const { sql } = this.#options;
    sql.exec(
      "CREATE TABLE IF NOT EXISTS deletions (id INTEGER PRIMARY KEY AUTOINCREMENT, deleted_ms INTEGER, is_done INTEGER, json TEXT)",
    );
    this.#entries = new Map();
    for (const row of sql.exec("SELECT * FROM deletions ORDER BY id"))
      this.#entries.set(Number(row.id), {
        session: JSON.parse(String(row.json)) as EndedSession,
        deletedMs: Number(row.deleted_ms),
        isDone: row.is_done === 1,
        told: new Set(),
      });
    return this.#entries;
  }

  /** Those of whom an engine that was away for longer has nothing in memory any more, and the oldest of too many. */
  #forgetOld(entries: Map<number, Entry>): void {
    const { sql, now } = this.#options;
    for (const [id, { deletedMs, isDone }] of entries) {
      const ageMs = now() - deletedMs;
      const isOld = ageMs > (isDone ? LIMITS.deletionKeepMs : LIMITS.sessionIdleMsMax);
      if (!isOld && entries.size < LIMITS.deletionCountMax) {
        if (ageMs <= LIMITS.deletionKeepMs) return;
        continue;
      }
      entries.delete(id);
      sql.exec("DELETE FROM deletions WHERE id = ?", id);
    }
  }
}

/** A few at once, until one says that there is no use in going on. */
async function inTurns<T>(items: readonly T[], act: (item: T) => Promise<boolean>): Promise<void> {
  const queue = [...items];
  const work = async (): Promise<void> => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) if (!(await act(item))) queue.length = 0;
  };
  await Promise.all(Array.from({ length: Math.min(queue.length, LIMITS.deletionCallsMax) }, work));
}
