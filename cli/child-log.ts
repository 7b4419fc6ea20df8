/** The log file of a child process. */
import { closeSync, openSync, renameSync, statSync, writeSync } from "node:fs";

const logBytesMax = 16 * 1024 * 1024;

/**
 * Appends lines; a log that has grown long is put aside first, as `<path>.old`. A line that cannot be written (a disk that is full) is left out: what
 * is logged goes on all the same. Synchronous, so that a slow disk is waited for and not kept in memory.
 */
export class ChildLog {
  readonly #path: string;
  readonly #onGap: (message: string) => void;
  #file: number | undefined;
  #isFailing = false;

  /** @param onGap told once of each run of lines that are left out */
  constructor(path: string, onGap: (message: string) => void) {
    this.#path = path;
    this.#onGap = onGap;
    if ((statSync(path, { throwIfNoEntry: false })?.size ?? 0) > logBytesMax) renameSync(path, `${path}.old`);
    this.#file = openSync(path, "a", 0o600);
  }

  write(line: string): void {
    if (this.#file === undefined) return;
    try {
      writeSync(this.#file, `${line}\n`);
      this.#isFailing = false;
    } catch (error) {
      if (!this.#isFailing) this.#onGap(`${this.#path} has a gap: ${(error as NodeJS.ErrnoException).code}`);
      this.#isFailing = true;
    }
  }

  /** What comes after is left out. */
  close(): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = undefined;
  }
}
