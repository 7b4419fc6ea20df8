/** `quire-pull.json`: what a pulled folder holds and where it is from. */
import { open, readFile, rename, stat } from "node:fs/promises";
import { join } from "node:path";
import { checkPaths, type FileHash, type HubFile } from "./hub-files.ts";
import { onDisk, startHash } from "./part-file.ts";

/** One file as it was put in place. */
export interface RecordedFile {
  sizeBytes: number;
  hash: FileHash;
  /** Of the file on this disk, so that it need not be read to see that it is the same. */
  mtimeMs: number;
}

/** The record of one folder. */
export interface ModelRecord {
  repo: string;
  /** As it was asked for: a branch, a tag or a commit. */
  revision: string;
  commit: string;
  include?: string;
  /** False while files are being moved into place: some may still be those of an older revision. */
  complete: boolean;
  /** By path below the folder. */
  files: Record<string, RecordedFile>;
}

const recordName = "quire-pull.json";
const readBytes = 1 << 20;

/** Undefined where there is none, or none that can be understood. */
export async function readModelRecord(folder: string): Promise<ModelRecord | undefined> {
  try {
    const record = JSON.parse(await readFile(join(folder, recordName), "utf8")) as ModelRecord;
    checkPaths(Object.keys(record.files));
    return record;
  } catch {
    return undefined;
  }
}

/** Writes it whole or not at all. */
export async function writeModelRecord(folder: string, record: ModelRecord): Promise<void> {
  const path = join(folder, recordName);
  await onDisk(path, async () => {
    const file = await open(`${path}.new`, "w");
    try {
      await file.writeFile(`${JSON.stringify(record, undefined, 2)}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(`${path}.new`, path);
  });
}

/** True when the folder's file is still the one that was put in place: same size, not written to since. */
export async function isUntouched(folder: string, path: string, recorded: RecordedFile): Promise<boolean> {
  const found = await stat(join(folder, path)).catch(() => undefined);
  return found?.isFile() === true && found.size === recorded.sizeBytes && found.mtimeMs === recorded.mtimeMs;
}

/** Reads a file of the folder and compares its hash. */
export async function hasContent(folder: string, file: HubFile, signal: AbortSignal): Promise<boolean> {
  const handle = await open(join(folder, file.path));
  try {
    if ((await handle.stat()).size !== file.sizeBytes) return false;
    const hash = startHash(file);
    const piece = new Uint8Array(readBytes);
    for (let offset = 0; ; ) {
      signal.throwIfAborted();
      const { bytesRead } = await handle.read(piece, 0, piece.length, offset);
      if (bytesRead === 0) return hash.digest("hex") === file.hash.hex;
      hash.update(piece.subarray(0, bytesRead));
      offset += bytesRead;
    }
  } finally {
    await handle.close();
  }
}
