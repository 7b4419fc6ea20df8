/** The staging folder of a pull, inside the model's folder, so that moving files into place is a rename. */
import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { makeFolder } from "../../storage/make-folder.ts";
import { lockHolder, takeProcessLock } from "../process-lock.ts";
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
  await onDisk(out, () => makeFolder(folder));
  const lock = await onDisk(folder, () => takeProcessLock(folder));
  if (!lock) throw new PullError(`${out}: ${await lockHolder(folder)} is pulling into it`);
  return {
    folder,
    release: lock.release,
    remove: async () => {
      await rm(folder, { recursive: true, force: true });
      await lock.release();
    },
  };
}
