/**
 * One exclusive lock per folder, between tasks of a process and between processes. Between processes it is SQLite's
 * own file lock (an immediate transaction that writes nothing): the kernel gives it back when its holder dies, so there
 * is no stale lock to judge, unlike with a lock file. Taking it costs about 20 us.
 */
import { DatabaseSync } from "node:sqlite";
import { StoreError } from "./contract.ts";
import { Gate, pause } from "./deadline.ts";

const RETRY_MS_MIN = 1;
const RETRY_MS_MAX = 10;
/** SQLite's primary result code for a lock that another connection holds. */
const SQLITE_BUSY = 5;
/** How long opening waits for another process that makes the same file. */
const INITIALIZE_MS_MAX = 5_000;

/** Whether SQLite failed because another connection holds the lock. */
export function isSqliteBusy(error: unknown): boolean {
  return ((error as { errcode?: number }).errcode ?? 0) % 256 === SQLITE_BUSY;
}

/** The lock of one folder; several, in any number of processes, may stand for the same file. */
export class FolderLock {
  readonly #database: DatabaseSync;
  readonly #gate = new Gate(1);
  readonly #random: () => number;

  /** @throws {StoreError} `unavailable` when the lock file cannot be opened. */
  constructor(path: string, random: () => number = Math.random) {
    this.#random = random;
    try {
      this.#database = new DatabaseSync(path, { timeout: INITIALIZE_MS_MAX });
      initialize(this.#database);
    } catch (cause) {
      throw new StoreError("unavailable", `cannot open the store's lock file ${path}`, { cause });
    }
  }

  /** Runs `task` alone. A signal that fires while waiting ends the wait; `task` itself is never interrupted. */
  async run<T>(signal: AbortSignal, task: () => Promise<T>): Promise<T> {
    return this.#gate.run(signal, async () => {
      while (!this.#tryBegin()) {
        await pause(RETRY_MS_MIN + this.#random() * (RETRY_MS_MAX - RETRY_MS_MIN), signal);
      }
      try {
        return await task();
      } finally {
        this.#database.exec("ROLLBACK");
      }
    });
  }

  /** Waits for its turn, then frees the file. */
  async close(): Promise<void> {
    await this.#gate.run(new AbortController().signal, async () => {
      if (this.#database.isOpen) this.#database.close();
    });
  }

  #tryBegin(): boolean {
    try {
      this.#database.exec("BEGIN IMMEDIATE");
      return true;
    } catch (cause) {
      if (isSqliteBusy(cause)) return false;
      throw new StoreError("unavailable", "the store's lock failed", { cause });
    }
  }
}

/**
 * An immediate transaction on an empty file would begin with writing its first page, and could then not end while
 * another process waits. So the first to come makes the file a database; from then on nothing is ever written.
 */
function initialize(database: DatabaseSync): void {
  const version = database.prepare("PRAGMA user_version").get()?.user_version;
  if (version !== 1) database.exec("PRAGMA user_version = 1");
  database.exec("PRAGMA busy_timeout = 0");
}
