/** A folder that one process uses at a time. */
import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { isSqliteBusy } from "../storage/fs-lock.ts";

/** A lock that is held until it is let go or the process ends, however it ends. */
export interface ProcessLock {
  release(): Promise<void>;
}

/**
 * Takes the lock of an existing folder, or returns undefined when another process (or this one) holds it. It is SQLite's lock of the file
 * `lock.db`, which the kernel takes back when its holder dies: a number in a file would have to be judged, and two who
 * judge it dead at the same moment would both go in. The file `lock` tells people who the holder is ({@link lockHolder}).
 * @throws {Error} when the folder cannot be written, with the operating system's or SQLite's code.
 */
export async function takeProcessLock(folder: string): Promise<ProcessLock | undefined> {
  const database = new DatabaseSync(join(folder, "lock.db"), { timeout: 0 });
  try {
    database.exec("BEGIN EXCLUSIVE");
    await writeFile(join(folder, "lock"), String(process.pid), { mode: 0o600 });
  } catch (error) {
    database.close();
    if (isSqliteBusy(error)) return undefined;
    throw error;
  }
  const release = async (): Promise<void> => {
    if (!database.isOpen) return;
    await rm(join(folder, "lock"), { force: true });
    database.close();
  };
  return { release };
}

/** The process that took the folder's lock last, as far as it can be read: for messages. */
export async function lockHolder(folder: string): Promise<string> {
  const text = await readFile(join(folder, "lock"), "utf8").catch(() => "");
  return /^\d{1,10}$/.test(text) ? `process ${text}` : "another process";
}
