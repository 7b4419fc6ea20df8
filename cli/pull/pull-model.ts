/** A whole pull: list, choose, download beside the model, and move into place once every file is checked. */
import { mkdir, rename, rm, stat, statfs } from "node:fs/promises";
import { dirname, join } from "node:path";
import { downloadFile } from "./download-file.ts";
import type { HubClient } from "./hub-client.ts";
import { checkPaths, type HubFile, type HubRevision, readRevision } from "./hub-files.ts";
import { hasContent, isUntouched, type ModelRecord, readModelRecord, writeModelRecord } from "./model-record.ts";
import { onDisk, stagedPath } from "./part-file.ts";
import { PullError } from "./pull-error.ts";
import { type Patience, withRetries } from "./retry.ts";
import { selectFiles } from "./select-files.ts";
import { isStageLeft, openStage } from "./stage.ts";

/** What is wanted. */
export interface PullRequest {
  /** `NAME` or `OWNER/NAME`. */
  repo: string;
  /** A branch, a tag or a commit. */
  revision: string;
  /** The model's folder. */
  out: string;
  /** See {@link selectFiles}. */
  include: string | undefined;
  /** Files at a time. */
  concurrency: number;
}

/** What happens on the way, for whoever watches. */
export interface PullObserver {
  onStart(files: readonly HubFile[]): void;
  onProgress(file: HubFile, thereBytes: number): void;
  onDone(file: HubFile): void;
  onRetry(message: string, delayMs: number): void;
}

/** What a pull works with. */
export interface PullContext {
  hub: HubClient;
  patience: Patience;
  /** Aborted: the pull ends with its reason, and can be taken up again. */
  signal: AbortSignal;
  random(): number;
  observer: PullObserver;
}

/** How a pull ended. */
export interface PullResult {
  commit: string;
  /** All files of the model, below its folder. */
  paths: string[];
  /** How many of them had to be downloaded. */
  downloadedCount: number;
}

const listingBytesMax = 32 << 20;
/** Of the small files that are parsed; a vocabulary of a million entries stays below. */
const companionBytesMax = 256 << 20;
/** What stays free on the disk. */
const spareBytes = 64 << 20;

/**
 * Makes `out` hold the revision's model. Nothing in it changes before all that is missing has been downloaded and checked; a file that is not
 * from an earlier pull and differs is never replaced.
 * @throws {PullError} one line; the signal's reason once it is aborted. Parts stay for the next time.
 */
export async function pullModel(request: PullRequest, context: PullContext): Promise<PullResult> {
  const record = await readModelRecord(request.out);
  if (record !== undefined && record.repo !== request.repo) {
    throw new PullError(`${request.out} holds ${record.repo}: choose another folder with --out`);
  }
  if (record !== undefined && (await isPinnedAndThere(request, record))) {
    return { commit: record.commit, paths: Object.keys(record.files), downloadedCount: 0 };
  }
  const revision = await listRevision(request, context);
  const paths = selectFiles(revision.paths, request.include);
  checkPaths(paths);
  const files = paths.map((path) => revision.file(path));
  const missing = await findMissing(files, { out: request.out, record, signal: context.signal });
  if (missing.length > 0 || (await isStageLeft(request.out)))
    await obtain(missing, { request, context, revision, files, record });
  await keepRecord({ request, revision, files, record }, true);
  return { commit: revision.commit, paths, downloadedCount: missing.length };
}

/** A commit never changes: with all of it there, the hub need not be asked. */
async function isPinnedAndThere({ revision, include, out }: PullRequest, record: ModelRecord): Promise<boolean> {
  if (!record.complete || revision !== record.commit || include !== record.include) return false;
  const checks = Object.entries(record.files).map(([path, recorded]) => isUntouched(out, path, recorded));
  return (await Promise.all(checks)).every(Boolean);
}

async function listRevision({ repo, revision }: PullRequest, context: PullContext): Promise<HubRevision> {
  const { hub, observer } = context;
  const path = `/api/models/${repo}/revision/${encodeURIComponent(revision)}?blobs=true`;
  const text = await withRetries(
    async () => {
      const response = await hub.get(path, { what: `${repo} at ${revision}`, signal: context.signal });
      const pieces: Uint8Array[] = [];
      let bytes = 0;
      for await (const piece of response.body()) {
        bytes += piece.length;
        if (bytes > listingBytesMax)
          throw new PullError(`${hub.host} lists more than ${listingBytesMax} bytes of files`);
        pieces.push(piece);
      }
      return Buffer.concat(pieces).toString("utf8");
    },
    { ...context, onRetry: (message, delayMs) => observer.onRetry(message, delayMs) },
  );
  return readRevision(text, hub.host);
}

interface Place {
  out: string;
  record: ModelRecord | undefined;
  signal: AbortSignal;
}

async function findMissing(files: readonly HubFile[], place: Place): Promise<HubFile[]> {
  const missing: HubFile[] = [];
  for (const file of files) if (!(await isInPlace(file, place))) missing.push(file);
  return missing;
}

/** @throws {PullError} for a file that is somebody else's. */
async function isInPlace(file: HubFile, { out, record, signal }: Place): Promise<boolean> {
  const found = await stat(join(out, file.path)).catch(() => undefined);
  if (found === undefined) return false;
  const recorded = record?.files[file.path];
  if (recorded !== undefined && (await isUntouched(out, file.path, recorded)))
    return recorded.hash.hex === file.hash.hex;
  if (found.isFile() && (await onDisk(file.path, () => hasContent(out, file, signal)))) return true;
  if (recorded !== undefined && record?.complete === false) return false;
  throw new PullError(
    `${join(out, file.path)} is there and is not the hub's: remove it, or choose another folder with --out`,
  );
}

interface Work {
  request: PullRequest;
  revision: HubRevision;
  /** All of the model. */
  files: readonly HubFile[];
  record: ModelRecord | undefined;
}

async function obtain(missing: readonly HubFile[], work: Work & { context: PullContext }): Promise<void> {
  const { request, context, revision } = work;
  const stage = await openStage(request.out);
  try {
    await checkRoom(missing, stage.folder);
    if (missing.length > 0) context.observer.onStart(missing);
    await downloadAll(missing, { ...work, stage: stage.folder, commit: revision.commit });
    context.signal.throwIfAborted();
    await removeStale(work);
    await keepRecord(work, false);
    for (const file of missing) await moveIntoPlace(file, stage.folder, request.out);
    await stage.remove();
  } finally {
    await stage.release();
  }
}

/** @throws {PullError} before the first byte of what cannot be held. */
async function checkRoom(files: readonly HubFile[], stage: string): Promise<void> {
  let neededBytes = spareBytes;
  for (const file of files) {
    if (!/\.(safetensors|gguf)$/.test(file.path) && file.sizeBytes > companionBytesMax) {
      throw new PullError(`${file.path} has ${file.sizeBytes} bytes, more than ${companionBytesMax}`);
    }
    const path = stagedPath(stage, file);
    const there = (await stat(path).catch(() => undefined)) ?? (await stat(`${path}.part`).catch(() => undefined));
    neededBytes += Math.max(0, file.sizeBytes - (there?.size ?? 0));
  }
  const disk = await onDisk(stage, () => statfs(stage));
  const freeBytes = disk.bavail * disk.bsize;
  if (neededBytes <= freeBytes) return;
  const gigabytes = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
  throw new PullError(`the disk has ${gigabytes(freeBytes)} free, ${gigabytes(neededBytes)} are needed`);
}

/** The first failure ends the others, too; what they have stays. */
async function downloadAll(
  files: readonly HubFile[],
  { context, request, stage, commit }: Work & { context: PullContext; stage: string; commit: string },
): Promise<void> {
  const { observer } = context;
  const failure = new AbortController();
  const signal = AbortSignal.any([context.signal, failure.signal]);
  const queue = [...files];
  const work = async (): Promise<void> => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
      signal.throwIfAborted();
      await downloadFile(file, { ...context, repo: request.repo, commit, stage, signal });
      observer.onDone(file);
    }
  };
  const workers = Array.from({ length: Math.min(request.concurrency, files.length) }, () =>
    work().catch((error: unknown) => {
      failure.abort(error);
      throw error;
    }),
  );
  await Promise.allSettled(workers);
  signal.throwIfAborted();
}

async function moveIntoPlace(file: HubFile, stage: string, out: string): Promise<void> {
  const path = join(out, file.path);
  await onDisk(path, async () => {
    await mkdir(dirname(path), { recursive: true });
    await rename(stagedPath(stage, file), path);
  });
}

/** What an older revision had and this one lacks would be read as part of it; a GGUF file stands for itself. */
async function removeStale({ request, files, record, revision }: Work): Promise<void> {
  if (record === undefined || record.commit === revision.commit) return;
  const kept = new Set(files.map((file) => file.path));
  for (const [path, recorded] of Object.entries(record.files)) {
    const isStale = !kept.has(path) && !path.endsWith(".gguf");
    if (isStale && (await isUntouched(request.out, path, recorded))) await rm(join(request.out, path), { force: true });
  }
}

async function keepRecord({ request, revision, files, record }: Work, complete: boolean): Promise<void> {
  const { repo, include, out } = request;
  const { commit } = revision;
  const entries: ModelRecord["files"] = {};
  // Other weights of the same commit, pulled before with another pattern.
  if (record?.commit === commit) Object.assign(entries, record.files);
  for (const { path, sizeBytes, hash } of files) {
    const found = await stat(join(out, path)).catch(() => undefined);
    // Before the move the file may be an older one of the same size: it has to be read the next time.
    entries[path] = { sizeBytes, hash, mtimeMs: (complete ? found?.mtimeMs : undefined) ?? 0 };
  }
  const names = { repo, revision: request.revision, commit, ...(include === undefined ? {} : { include }) };
  const next = { ...names, complete, files: entries };
  // A folder that cannot be written can still be found whole.
  if (JSON.stringify(next) !== JSON.stringify(record)) await writeModelRecord(out, next);
}
