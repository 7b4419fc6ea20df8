/** Files that a command leaves for its user: what cannot be written is one line, and is said before long work where there is any. */
import { access, constants, stat, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { UsageError } from "./usage-error.ts";

/** @throws {UsageError} naming the file and why, where {@link writeOutput} would fail now. Makes nothing. */
export async function assertWritable(path: string): Promise<void> {
  await orRefuse(path, async () => {
    const known = await stat(path).catch(() => undefined);
    if (known?.isDirectory()) throw Object.assign(new Error("a folder"), { code: "EISDIR" });
    await access(known === undefined ? dirname(path) : path, constants.W_OK);
  });
}

/** Writes a file, in the place of what was there. @throws {UsageError} naming it and why it cannot be written. */
export async function writeOutput(path: string, content: string | Uint8Array): Promise<void> {
  await orRefuse(path, () => writeFile(path, content));
}

/** @throws {UsageError} for whatever the file system says while `work` writes. */
export async function orRefuse<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === undefined) throw error;
    throw new UsageError(`${path} cannot be written (${code})`);
  }
}
