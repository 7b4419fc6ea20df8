/** The staging folder of a pull, inside the model's folder, so that moving files into place is a rename. */
import { mkdir, open, readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { onDisk } from "./part-file.ts";
import { PullError } from "./pull-error.ts";

/** A staging folder that no other process uses until it is let go. */
export interface Stage {
  folder: string;
  /** Another process may use it; parts stay. */
  release(): Promise<void>;
  /** All of it goes. */
  remove(): Promise<void>;
}

const stageName = ".pull";

/** True where an earlier pull has left its staging folder, with parts or for nothing. */
export async function isStageLeft(out: string): Promise<boolean> {
  return (await stat(join(out, stageName)).catch(() => undefined)) !== undefined;
}

/** Opens or makes the staging folder of a model's folder. @throws {PullError} when another pull is at work there. */
export async function openStage(out: string): Promise<Stage> {
  const folder = join(out, stageName);
  const lockPath = join(folder, "lock");
  await onDisk(out, () => mkdir(folder, { recursive: true }));
  await takeLock(out, lockPath);
  return {
    folder,
    release: () => rm(lockPath, { force: true }),
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}

/** The lock names its process; one whose process is gone is taken over. */
async function takeLock(out: string, lockPath: string): Promise<void> {
  for (let attempt = 0; attempt < 2; attempt++) {
    try {
      const file = await open(lockPath, "wx");
      await file.writeFile(String(process.pid));
      return await file.close();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") await onDisk(lockPath, () => Promise.reject(error));
    }
    const holder = Number(await readFile(lockPath, "utf8").catch(() => ""));
    if (isAlive(holder)) throw new PullError(`${out}: process ${holder} is pulling into it`);
    await rm(lockPath, { force: true });
  }
  throw new PullError(`${out}: another process is pulling into it`);
}

function isAlive(pid: number): boolean {
  if (!Number.isSafeInteger(pid) || pid <= 0) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
