import { open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";

/** Its owner alone may read it. */
const OWN_MODE = 0o600;

/**
 * Puts a file in the place of what was there: whoever reads it, and whatever a crash or a power failure leaves, has all of one of them. Of several at once
 * the last one stays. `mode` is for what may be read by others, as far as the process's mask lets them.
 * @throws {NodeJS.ErrnoException} what the file system says; what was there is there still.
 */
export async function replaceFile(path: string, content: string | Uint8Array, mode = OWN_MODE): Promise<void> {
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    const file = await open(temporary, "w", mode);
    try {
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  await syncFolder(dirname(path));
}

/** What was renamed into a folder is there after a power failure, too. */
export async function syncFolder(folder: string): Promise<void> {
  // Windows cannot open folders; its rename is durable by journal.
  if (process.platform === "win32") return;
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
