import { mkdir, stat } from "node:fs/promises";
import { dirname } from "node:path";

/** Of a new folder. */
export interface MakeFolderOptions {
  /** Who may use it; default everybody, as far as the process's mask lets them. */
  mode?: number;
}

/**
 * Makes a folder and those above it, where there are none. Not `mkdir` with `recursive`: where the file system refuses a folder as if the one above it
 * were missing (`/proc` does), that tries for ever.
 * @throws {NodeJS.ErrnoException} what the file system says.
 */
export async function makeFolder(path: string, options: MakeFolderOptions = {}): Promise<void> {
  try {
    await mkdirOrFound(path, options);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT" || dirname(path) === path) throw error;
    await makeFolder(dirname(path), options);
    await mkdirOrFound(path, options);
  }
}

async function mkdirOrFound(path: string, options: MakeFolderOptions): Promise<void> {
  try {
    await mkdir(path, options);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST" || !(await stat(path)).isDirectory()) throw error;
  }
}
