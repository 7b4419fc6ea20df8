/** The events of a session's last resumable turn in SQLite: its stream can be resumed also when the object has started again since. */
import type { AnswerHead } from "../turn-job.ts";
import { concatFrames } from "./replay-buffer.ts";

/** A finished turn, whole. */
export interface StoredReplay {
  streamId: string;
  idempotencyKey?: string | undefined;
  head: AnswerHead;
  numericsId: string;
  endedMs: number;
  /** Number of the first event in `frames`. */
  first: number;
  /** One after the other, as they were sent. */
  frames: readonly Uint8Array[];
}

/** SQLite in a Durable Object takes values up to 2 MB. */
const PART_BYTES = 1024 * 1024;

const SCHEMA = `
  CREATE TABLE IF NOT EXISTS replay (one INTEGER PRIMARY KEY CHECK (one = 1), json TEXT NOT NULL);
  CREATE TABLE IF NOT EXISTS replay_parts (part INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
`;

/** Replaces what was kept of an earlier turn. */
export function keepReplay(storage: DurableObjectStorage, replay: StoredReplay): void {
  const { frames, ...facts } = replay;
  const bytes = concatFrames(frames);
  const frameBytes = frames.map(({ byteLength }) => byteLength);
  storage.transactionSync(() => {
    storage.sql.exec(SCHEMA);
    storage.sql.exec("DELETE FROM replay_parts");
    storage.sql.exec("INSERT OR REPLACE INTO replay VALUES (1, ?)", JSON.stringify({ ...facts, frameBytes }));
    for (let part = 0; part * PART_BYTES < bytes.byteLength; part++) {
      const slice = bytes.slice(part * PART_BYTES, (part + 1) * PART_BYTES);
      storage.sql.exec("INSERT INTO replay_parts VALUES (?, ?)", part, slice);
    }
  });
}

/** What is kept; undefined when there is nothing. */
export function readReplay(storage: DurableObjectStorage): StoredReplay | undefined {
  const { sql } = storage;
  if (sql.exec("SELECT 1 FROM sqlite_master WHERE name = 'replay'").toArray().length === 0) return undefined;
  const [row] = sql.exec("SELECT json FROM replay").toArray();
  if (row === undefined) return undefined;
  const { frameBytes, ...facts } = JSON.parse(String(row.json)) as Omit<StoredReplay, "frames"> & {
    frameBytes: number[];
  };
  const parts = sql.exec("SELECT bytes FROM replay_parts ORDER BY part").toArray();
  const bytes = concatFrames(parts.map((part) => new Uint8Array(part.bytes as ArrayBuffer)));
  let offset = 0;
  const frames = frameBytes.map((length) => {
    offset += length;
    return bytes.subarray(offset - length, offset);
  });
  return { ...facts, frames };
}

/** Forgets what is kept. */
export function dropReplay(storage: DurableObjectStorage): void {
  if (storage.sql.exec("SELECT 1 FROM sqlite_master WHERE name = 'replay'").toArray().length === 0) return;
  storage.sql.exec("DELETE FROM replay");
  storage.sql.exec("DELETE FROM replay_parts");
}
