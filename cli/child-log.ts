/** The log file of a child process. */
import { closeSync, existsSync, openSync, renameSync, statSync, writeSync } from "node:fs";

const bytesMaxDefault = 16 * 1024 * 1024;

/** Where a log is, and who hears of what is missing in it. */
export interface ChildLogOptions {
  path: string;
  /** Told once of each run of lines that are left out. */
  onGap(message: string): void;
  bytesMax?: number;
}

/**
 * Appends lines; a log that has grown beyond `bytesMax` is put aside, as `<path>.old`, in place of the one before. A line that cannot be written (a
 * disk that is full) is left out: what is logged goes on all the same. Synchronous, so that a slow disk is waited for and not kept in memory.
 */
export class ChildLog {
  readonly #options: Required<ChildLogOptions>;
  #file: number | undefined;
  #bytes: number;
  #isFailing = false;

  constructor(options: ChildLogOptions) {
    this.#options = { bytesMax: bytesMaxDefault, ...options };
    const { path, bytesMax } = this.#options;
    this.#bytes = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
    if (this.#bytes > bytesMax) this.#putAside();
    this.#file = openSync(path, "a", 0o600);
  }

  write(line: string): void {
    if (this.#file === undefined) return;
    const { path, bytesMax, onGap } = this.#options;
    try {
      if (this.#bytes > bytesMax) {
        this.#putAside();
        // Where there can be no new one, the old one goes on.
        const next = openSync(path, "a", 0o600);
        closeSync(this.#file);
        this.#file = next;
      }
      this.#bytes += writeSync(this.#file, `${line}\n`);
      this.#isFailing = false;
    } catch (error) {
      if (!this.#isFailing) onGap(`${path} has a gap: ${(error as NodeJS.ErrnoException).code}`);
      this.#isFailing = true;
    }
  }

  /** What comes after is left out. */
  close(): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = undefined;
  }

  #putAside(): void {
    const { path } = this.#options;
    // Somebody may have taken it away, to have the room.
    if (existsSync(path)) renameSync(path, `${path}.old`);
    this.#bytes = 0;
  }
}
