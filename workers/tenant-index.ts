/** Durable Object, one per tenant: which session holds a transcript, for clients that send all of it without a session id. */
import { DurableObject } from "cloudflare:workers";
import { LIMITS } from "../protocol/limits.ts";
import type { Env } from "./env.ts";

/** A transcript (named by its last hash, see `chain.ts`) and the session whose log begins with it. */
export interface IndexRow {
  chain: string;
  sessionId: string;
  /** Somebody named the session, so it is forked, never continued, by requests that do not name it. */
  named: boolean;
  messageCount: number;
  tokenCount: number;
}

/** SQLite in a Durable Object binds at most 100 values to a statement. */
const BATCH = 90;

/** When it is noted that an entry was used. */
const TOUCH_MS = 20;

/** Bounded by row count (least recently used go first) and age; an entry is a hint that the session itself checks. */
export class TenantIndex extends DurableObject<Env> {
  readonly #sql: SqlStorage;
  #rowCount: number;

  constructor(state: DurableObjectState, env: Env) {
    super(state, env);
    this.#sql = state.storage.sql;
    this.#sql.exec(`CREATE TABLE IF NOT EXISTS transcripts (
      chain TEXT PRIMARY KEY, session_id TEXT NOT NULL, named INTEGER NOT NULL, message_count INTEGER NOT NULL, token_count INTEGER NOT NULL,
      used_ms INTEGER NOT NULL) WITHOUT ROWID`);
    this.#sql.exec("CREATE INDEX IF NOT EXISTS transcripts_by_use ON transcripts (used_ms)");
    this.#sql.exec("CREATE INDEX IF NOT EXISTS transcripts_by_session ON transcripts (session_id)");
    this.#rowCount = this.#count();
  }

  /** The entry of the longest known beginning of a transcript, given the hash after each of its messages. */
  async resolve(chain: string[]): Promise<IndexRow | undefined> {
    for (let end = chain.length; end > 0; end -= BATCH) {
      const batch = chain.slice(Math.max(0, end - BATCH), end);
      const marks = batch.map(() => "?").join(",");
      const rows = this.#sql.exec(
        `SELECT chain, session_id, named, message_count, token_count FROM transcripts WHERE chain IN (${marks})
         ORDER BY message_count DESC LIMIT 1`,
        ...batch,
      );
      const [row] = rows.toArray();
      if (row === undefined) continue;
      this.#touchLater(row.chain);
      return {
        chain: String(row.chain),
        sessionId: String(row.session_id),
        named: row.named === 1,
        messageCount: Number(row.message_count),
        tokenCount: Number(row.token_count),
      };
    }
    return undefined;
  }

  /** Enters transcripts; the session that reached one last is the one that is found. */
  async put(rows: IndexRow[]): Promise<void> {
    const now = Date.now();
    this.ctx.storage.transactionSync(() => {
      for (const row of rows) {
        const known = this.#sql.exec("SELECT 1 FROM transcripts WHERE chain = ?", row.chain).toArray().length;
        this.#sql.exec(
          "INSERT OR REPLACE INTO transcripts VALUES (?, ?, ?, ?, ?, ?)",
          row.chain,
          row.sessionId,
          row.named ? 1 : 0,
          row.messageCount,
          row.tokenCount,
          now,
        );
        this.#rowCount += 1 - known;
      }
    });
    if (this.#rowCount > LIMITS.indexRowCountMax) this.#prune(now);
  }

  /** Leaves out every transcript of a session that is gone. */
  async forget(sessionId: string): Promise<void> {
    this.#sql.exec("DELETE FROM transcripts WHERE session_id = ?", sessionId);
    this.#rowCount = this.#count();
  }

  /** Behind the answer, which would wait for the disk otherwise. */
  #touchLater(chain: SqlStorageValue | undefined): void {
    const usedMs = Date.now();
    setTimeout(() => this.#sql.exec("UPDATE transcripts SET used_ms = ? WHERE chain = ?", usedMs, chain), TOUCH_MS);
  }

  #count(): number {
    return Number(this.#sql.exec("SELECT COUNT(*) AS n FROM transcripts").one().n);
  }

  /** Drops what is too old and then an eighth of the rest, so that the next pruning is far away. */
  #prune(now: number): void {
    this.#sql.exec("DELETE FROM transcripts WHERE used_ms < ?", now - LIMITS.sessionIdleMsMax);
    this.#sql.exec(
      `DELETE FROM transcripts WHERE chain IN (SELECT chain FROM transcripts ORDER BY used_ms LIMIT ?)`,
      Math.floor(LIMITS.indexRowCountMax / 8),
    );
    this.#rowCount = this.#count();
  }
}
