/** Folders of a run's own in the temporary folder. A run that is killed leaves them; the next one, of whatever bench, takes them away. */
import { mkdtemp, readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PREFIX = "quire-bench-run-";
/** Says which process runs in the folder. */
const PID_FILE = "process.pid";

/**
 * Makes a folder that is named for this process, behind removing those of processes that are gone.
 * @param parent default: the system's temporary folder
 */
export async function makeRunFolder(parent: string = tmpdir()): Promise<string> {
  await removeStale(parent);
  return mkdtemp(join(parent, `${PREFIX}${process.pid}-`));
}

/** Notes that a process runs in the folder, as its working directory: one that outlives its run is ended with the folder. */
export async function noteProcess(folder: string, pid: number): Promise<void> {
  await writeFile(join(folder, PID_FILE), String(pid));
}

async function removeStale(parent: string): Promise<void> {
  for (const name of await readdir(parent)) {
    const pid = new RegExp(`^${PREFIX}(\\d+)-`).exec(name)?.[1];
    if (pid === undefined || isAlive(Number(pid))) continue;
    const folder = join(parent, name);
    await endOrphan(folder);
    // Another run may be at it, too.
    await rm(folder, { recursive: true, force: true, maxRetries: 5 }).catch(() => undefined);
  }
}

/** Only of a process whose working directory is the folder (Linux tells): a number alone may be somebody else's by now. */
async function endOrphan(folder: string): Promise<void> {
  const pid = Number(await readFile(join(folder, PID_FILE), "utf8").catch(() => ""));
  if (!(pid > 0) || (await readlink(`/proc/${pid}/cwd`).catch(() => "")) !== folder) return;
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended by itself.
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
