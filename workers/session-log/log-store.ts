/** The truth of one session in SQLite: exact token ids, messages with their borders in the log, provenance spans. */
import { assert } from "../../protocol/assert.ts";
import type { Span } from "../../protocol/generate.ts";
import { bytesToIds, idsToBytes } from "../../protocol/ids.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { ChatMessage } from "../../tokenizer/contract.ts";
import { LogMemory, type WholeLog } from "./log-memory.ts";

/** What is true of the session as a whole. */
export interface SessionMeta {
  id: string;
  namespace: string;
  model: string;
  /** Chat sessions grow by messages, raw ones by text; they do not mix. */
  kind: "chat" | "raw";
  /** Somebody named this session: transcripts that match it fork it instead of growing it. */
  named: boolean;
  createdS: number;
  /** The same moment in milliseconds, at its first turn's beginning; absent in logs of before. Tells it from one of its name that was deleted. */
  bornMs?: number | undefined;
  turnCount: number;
  /** The session this one was forked from: its pages serve this one too. */
  parentId?: string | undefined;
  /** The engine that served the last turn. */
  engineId?: string | undefined;
  /** When a turn last wrote its log, or a fork copied it, milliseconds since 1970. Absent, like the next one, in logs of before: those have alarms of their own. */
  usedMs?: number | undefined;
  /** A list of its tenant has it asked whether it is time to go (`session-expiry.ts`); otherwise it has an alarm of its own. */
  isListed?: boolean | undefined;
  /** Another one after each turn; absent in logs that were written before there were any. */
  version?: string | undefined;
}

/** Names what a log holds: undefined for one that has not begun, empty where it has no name. */
export function versionOf(meta: SessionMeta | undefined): string | undefined {
  return meta && (meta.version ?? "");
}

/** When a log began, milliseconds since 1970. */
export function bornMsOf({ bornMs, createdS }: SessionMeta): number {
  return bornMs ?? createdS * 1_000;
}

/** A message of the log. */
export interface StoredMessage extends ChatMessage {
  /** Transcript hash after this message. */
  chain: string;
  /** Generated here, not sent by the client. */
  reply: boolean;
  /** Where log and rendered text agree behind this message, if they do (`turn-plan.ts`). */
  tokenEnd?: number | undefined;
  textEnd?: number | undefined;
  /** SHA-256 of the rendered text up to there. */
  textHash?: string | undefined;
}

/** A session and its log, as a turn finds them. */
export interface KnownLog {
  meta: SessionMeta;
  log: WholeLog;
}

/** One change of the log: all of it is written, or nothing. */
export interface LogCommit {
  meta: SessionMeta;
  keepTokens: number;
  appendTokens: ArrayLike<number>;
  keepMessages: number;
  appendMessages: readonly StoredMessage[];
  /** All spans of the log after the change. */
  spans: readonly Span[];
}

/** SQLite in a Durable Object takes values up to 2 MB. */
const PART_BYTES = 1024 * 1024;

const SCHEMA = `
  CREATE TABLE IF NOT EXISTS meta (one INTEGER PRIMARY KEY CHECK (one = 1), json TEXT NOT NULL, token_count INTEGER NOT NULL);
  CREATE TABLE IF NOT EXISTS log_rows (start INTEGER PRIMARY KEY, ids BLOB NOT NULL);
  CREATE TABLE IF NOT EXISTS spans (end INTEGER PRIMARY KEY, how TEXT NOT NULL);
  CREATE TABLE IF NOT EXISTS messages (position INTEGER PRIMARY KEY, role TEXT NOT NULL, name TEXT, chain TEXT NOT NULL,
    reply INTEGER NOT NULL, token_end INTEGER, text_end INTEGER, text_hash TEXT);
  CREATE TABLE IF NOT EXISTS message_parts (position INTEGER, part INTEGER, utf8 BLOB NOT NULL, PRIMARY KEY (position, part));
`;

/**
 * Owns the tables: nobody else writes, so what was read or written last is remembered, the log where it is small. An object that starts
 * again sees exactly what was committed. The first commit creates the tables: asking for a session that does not exist writes nothing. Only
 * {@link meta} and {@link commit} may be called before it.
 */
export class LogStore {
  readonly #storage: DurableObjectStorage;
  readonly #sql: SqlStorage;
  /** The last that was read or written: nobody else writes. Null: the session does not exist. */
  #meta: SessionMeta | null | undefined;
  readonly #memory = new LogMemory();

  constructor(storage: DurableObjectStorage) {
    this.#storage = storage;
    this.#sql = storage.sql;
  }

  /** Undefined for a session without a finished turn. */
  meta(): SessionMeta | undefined {
    if (this.#meta === undefined) this.#meta = this.#readMeta() ?? null;
    return this.#meta ?? undefined;
  }

  /** The session and its whole log, which is not to be changed; undefined for a session without a finished turn. */
  known(): KnownLog | undefined {
    const meta = this.meta();
    return meta && { meta, log: this.whole() };
  }

  tokenCount(): number {
    const [row] = this.#sql.exec("SELECT token_count FROM meta").toArray();
    return Number(row?.token_count ?? 0);
  }

  /** The whole log; its parts are not to be changed. */
  whole(): WholeLog {
    const known = this.#memory.log;
    if (known) return known;
    const log = { tokens: this.tokens(), spans: this.spans(), messages: this.messages() };
    this.#memory.keep(log);
    return log;
  }

  /** All ids. */
  tokens(): Uint32Array<ArrayBuffer> {
    const log = new Uint32Array(this.tokenCount());
    let end = 0;
    for (const row of this.#sql.exec("SELECT start, ids FROM log_rows ORDER BY start")) {
      const ids = bytesToIds(blob(row.ids));
      assert(Number(row.start) === end && end + ids.length <= log.length, "log rows are without holes");
      log.set(ids, end);
      end += ids.length;
    }
    assert(end === log.length, "log rows cover the log");
    return log;
  }

  spans(): Span[] {
    return this.#sql
      .exec("SELECT end, how FROM spans ORDER BY end")
      .toArray()
      .map((row) => ({ end: Number(row.end), how: String(row.how) }));
  }

  /** All messages with their content. */
  messages(): StoredMessage[] {
    const parts = new Map<number, Uint8Array[]>();
    for (const row of this.#sql.exec("SELECT position, utf8 FROM message_parts ORDER BY position, part")) {
      const position = Number(row.position);
      const list = parts.get(position) ?? [];
      list.push(blob(row.utf8));
      parts.set(position, list);
    }
    return this.#sql
      .exec("SELECT * FROM messages ORDER BY position")
      .toArray()
      .map((row) => readMessage(row, decodeParts(parts.get(Number(row.position)) ?? [])));
  }

  /** Roles and borders of all messages, without their text. */
  outline(): { role: string; tokenEnd?: number | undefined }[] {
    return this.#sql
      .exec("SELECT role, token_end FROM messages ORDER BY position")
      .toArray()
      .map((row) => ({ role: String(row.role), tokenEnd: row.token_end === null ? undefined : Number(row.token_end) }));
  }

  /** Writes one change. */
  commit(commit: LogCommit): void {
    const isFirst = this.meta() === undefined;
    this.#storage.transactionSync(() => {
      const tokenCount = commit.keepTokens + commit.appendTokens.length;
      assert((commit.spans.at(-1)?.end ?? 0) === tokenCount, "spans cover the log");
      if (isFirst) this.#create(commit);
      else this.#cut(commit);
      commit.appendMessages.forEach((message, index) => {
        this.#insertMessage(commit.keepMessages + index, message);
      });
      for (const span of commit.spans) this.#sql.exec("INSERT INTO spans VALUES (?, ?)", span.end, span.how);
      this.#sql.exec("INSERT OR REPLACE INTO meta VALUES (1, ?, ?)", JSON.stringify(commit.meta), tokenCount);
    });
    this.#meta = commit.meta;
    this.#memory.apply(commit);
  }

  /** Notes that the session was used, at `usedMs`; one that does not exist stays so. Its log is as it was, and is named so. */
  touch(usedMs: number): void {
    const meta = this.meta();
    if (!meta || usedMs <= (meta.usedMs ?? 0)) return;
    this.#meta = { ...meta, usedMs };
    this.#sql.exec("UPDATE meta SET json = ?", JSON.stringify(this.#meta));
  }

  #readMeta(): SessionMeta | undefined {
    const isCreated = this.#sql.exec("SELECT 1 FROM sqlite_master WHERE name = 'meta'").toArray().length > 0;
    if (!isCreated) return undefined;
    const [row] = this.#sql.exec("SELECT json FROM meta").toArray();
    return row === undefined ? undefined : (JSON.parse(String(row.json)) as SessionMeta);
  }

  /** Each statement that an object has run stays compiled as long as it lives (some 3 KB), so a new log's first change runs none that finds nothing. */
  #create({ keepTokens, keepMessages, appendTokens }: LogCommit): void {
    assert(keepTokens === 0 && keepMessages === 0, "a log is cut within its length");
    this.#sql.exec(SCHEMA);
    this.#putRows(0, Uint32Array.from(appendTokens));
  }

  /** Takes away what is not kept, all spans, and where later text began, and appends the tokens. */
  #cut({ keepTokens, keepMessages, appendTokens }: LogCommit): void {
    this.#cutTokens(keepTokens);
    this.#appendTokens(keepTokens, appendTokens);
    this.#sql.exec("DELETE FROM messages WHERE position >= ?", keepMessages);
    this.#sql.exec("DELETE FROM message_parts WHERE position >= ?", keepMessages);
    this.#sql.exec(
      "UPDATE messages SET token_end = NULL, text_end = NULL, text_hash = NULL WHERE token_end > ?",
      keepTokens,
    );
    this.#sql.exec("DELETE FROM spans");
  }

  #cutTokens(keep: number): void {
    this.#sql.exec("DELETE FROM log_rows WHERE start >= ?", keep);
    const [last] = this.#sql.exec("SELECT start, ids FROM log_rows ORDER BY start DESC LIMIT 1").toArray();
    if (last === undefined) {
      assert(keep === 0, "a log is cut within its length");
      return;
    }
    const ids = bytesToIds(blob(last.ids));
    const start = Number(last.start);
    assert(start + ids.length >= keep, "a log is cut within its length");
    if (start + ids.length > keep) this.#putRow(start, ids.subarray(0, keep - start));
  }

  #appendTokens(from: number, tokens: ArrayLike<number>): void {
    const ids = Uint32Array.from(tokens);
    let done = 0;
    const [last] = this.#sql.exec("SELECT start, ids FROM log_rows ORDER BY start DESC LIMIT 1").toArray();
    if (last !== undefined && ids.length > 0) {
      const old = bytesToIds(blob(last.ids));
      done = Math.min(LIMITS.logRowIdsMax - old.length, ids.length);
      const joined = new Uint32Array(old.length + done);
      joined.set(old);
      joined.set(ids.subarray(0, done), old.length);
      this.#putRow(Number(last.start), joined);
    }
    this.#putRows(from + done, ids.subarray(done));
  }

  #putRows(from: number, ids: Uint32Array): void {
    for (let done = 0; done < ids.length; done += LIMITS.logRowIdsMax) {
      this.#putRow(from + done, ids.subarray(done, done + LIMITS.logRowIdsMax));
    }
  }

  #putRow(start: number, ids: Uint32Array): void {
    this.#sql.exec("INSERT OR REPLACE INTO log_rows VALUES (?, ?)", start, idsToBytes(ids));
  }

  #insertMessage(position: number, message: StoredMessage): void {
    this.#sql.exec(
      "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
      position,
      message.role,
      message.name ?? null,
      message.chain,
      message.reply ? 1 : 0,
      message.tokenEnd ?? null,
      message.textEnd ?? null,
      message.textHash ?? null,
    );
    const utf8 = new TextEncoder().encode(message.content);
    for (let part = 0; part * PART_BYTES < utf8.byteLength; part++) {
      const bytes = utf8.slice(part * PART_BYTES, (part + 1) * PART_BYTES);
      this.#sql.exec("INSERT INTO message_parts VALUES (?, ?, ?)", position, part, bytes);
    }
  }
}

function readMessage(row: Record<string, SqlStorageValue>, content: string): StoredMessage {
  const optional = (value: SqlStorageValue | undefined) => (typeof value === "number" ? value : undefined);
  const message: StoredMessage = {
    role: String(row.role) as StoredMessage["role"],
    content,
    chain: String(row.chain),
    reply: row.reply === 1,
    tokenEnd: optional(row.token_end),
    textEnd: optional(row.text_end),
    textHash: typeof row.text_hash === "string" ? row.text_hash : undefined,
  };
  if (typeof row.name === "string") message.name = row.name;
  return message;
}

function decodeParts(parts: readonly Uint8Array[]): string {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  return parts.map((part) => decoder.decode(part, { stream: true })).join("") + decoder.decode();
}

function blob(value: SqlStorageValue | undefined): Uint8Array {
  assert(value instanceof ArrayBuffer, "the column holds bytes");
  return new Uint8Array(value);
}
