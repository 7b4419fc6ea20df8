/** Durable Object "keys": the API keys of deployments that have more of them than a secret should hold. Hashes only. */
import { DurableObject } from "cloudflare:workers";
import { LIMITS } from "../../protocol/limits.ts";
import type { Env } from "../env.ts";
import { type KeyRecord, keyRecordJson, readKeyRecord } from "./key-record.ts";

/** What became of a new key. */
export type AddedKey = "added" | "known" | "full";

/** One table, bounded by `LIMITS.keyRingCountMax`; keys that expired make room first. Isolates keep what they read for a few seconds. */
export class KeyRing extends DurableObject<Env> {
  readonly #sql: SqlStorage;

  constructor(state: DurableObjectState, env: Env) {
    super(state, env);
    this.#sql = state.storage.sql;
    this.#sql.exec(`CREATE TABLE IF NOT EXISTS keys (
      hash TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, expires_s INTEGER, record TEXT NOT NULL) WITHOUT ROWID`);
    this.#sql.exec("CREATE INDEX IF NOT EXISTS keys_by_expiry ON keys (expires_s)");
  }

  /** The record of a hash. An index look-up by a hash of 256 random bits: its timing helps nobody to a key. */
  async find(hash: string): Promise<KeyRecord | undefined> {
    const [row] = this.#sql.exec("SELECT hash, record FROM keys WHERE hash = ?", hash).toArray();
    return row && recordOf(row);
  }

  async add(hash: string, record: KeyRecord): Promise<AddedKey> {
    if (this.#sql.exec("SELECT 1 FROM keys WHERE hash = ? OR id = ?", hash, record.id).toArray().length > 0)
      return "known";
    if (this.#count() >= LIMITS.keyRingCountMax) {
      this.#sql.exec("DELETE FROM keys WHERE expires_s <= ?", Math.floor(Date.now() / 1000));
      if (this.#count() >= LIMITS.keyRingCountMax) return "full";
    }
    this.#write(hash, record);
    return "added";
  }

  /** Records in the order of their ids, behind `after`. */
  async list(options: { tenant?: string | undefined; after: string; countMax: number }): Promise<KeyRecord[]> {
    const { tenant, after, countMax } = options;
    const rows = this.#sql.exec(
      "SELECT hash, record FROM keys WHERE id > ? AND (? IS NULL OR tenant = ?) ORDER BY id LIMIT ?",
      after,
      tenant ?? null,
      tenant ?? null,
      countMax,
    );
    return rows.toArray().map(recordOf);
  }

  /** Undefined when there is none of that id. */
  async get(id: string): Promise<KeyRecord | undefined> {
    const [row] = this.#sql.exec("SELECT hash, record FROM keys WHERE id = ?", id).toArray();
    return row && recordOf(row);
  }

  /** Lets a key end at `expiresS`, never later than it would have; undefined when there is none of that id. */
  async expire(id: string, expiresS: number): Promise<KeyRecord | undefined> {
    const [row] = this.#sql.exec("SELECT hash, record FROM keys WHERE id = ?", id).toArray();
    if (row === undefined) return undefined;
    const known = recordOf(row);
    const record = { ...known, expiresS: Math.min(expiresS, known.expiresS ?? expiresS) };
    this.#write(String(row.hash), record);
    return record;
  }

  /** @returns false when there is none of that id */
  async revoke(id: string): Promise<boolean> {
    return this.#sql.exec("DELETE FROM keys WHERE id = ?", id).rowsWritten > 0;
  }

  #write(hash: string, record: KeyRecord): void {
    this.#sql.exec(
      "INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?)",
      hash,
      record.id,
      record.tenant,
      record.expiresS ?? null,
      JSON.stringify(keyRecordJson(record)),
    );
  }

  #count(): number {
    return Number(this.#sql.exec("SELECT COUNT(*) AS n FROM keys").one().n);
  }
}

function recordOf(row: Record<string, SqlStorageValue>): KeyRecord {
  return readKeyRecord(String(row.hash), JSON.parse(String(row.record)));
}

/** The one KeyRing object. */
export function keyRingOf(env: Env): DurableObjectStub<KeyRing> {
  return env.KEY_RING.get(env.KEY_RING.idFromName("keys"));
}
