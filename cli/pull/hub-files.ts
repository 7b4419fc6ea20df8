/** What a hub says a revision holds: checked before any of it becomes a path on this disk. */
import { PullError } from "./pull-error.ts";

/** The hash by which a file is named on the hub: SHA-256 of large files, git's blob id of the others. */
export interface FileHash {
  kind: "sha256" | "git-sha1";
  /** Lower-case hex. */
  hex: string;
}

/** One file of a revision. */
export interface HubFile {
  /** Below the repository, `/`-separated; safe to join to a folder once {@link checkPaths} has passed it. */
  path: string;
  sizeBytes: number;
  hash: FileHash;
}

/** A revision, pinned to its commit. */
export interface HubRevision {
  /** 40 hex digits. */
  commit: string;
  /** Names of all files, not yet checked as paths of this disk. */
  paths: string[];
  /** @throws {PullError} when the hub gives no size or hash: what cannot be checked is not downloaded. */
  file(path: string): HubFile;
}

const filesMax = 20_000;
const hexOf = (length: number): RegExp => new RegExp(`^[0-9a-f]{${length}}$`);

/**
 * Reads the answer of `GET /api/models/REPO/revision/REVISION?blobs=true`.
 * @throws {PullError} for what is not one, and for a name that leads out of the repository.
 */
export function readRevision(text: string, host: string): HubRevision {
  const value = parseObject(text, host);
  const { sha, siblings } = value;
  if (typeof sha !== "string" || !hexOf(40).test(sha) || !Array.isArray(siblings)) {
    throw new PullError(`${host} did not answer with a model's revision: is it a hub?`);
  }
  if (siblings.length > filesMax) throw new PullError(`${host} lists ${siblings.length} files, more than ${filesMax}`);
  const entries = new Map<string, Record<string, unknown>>();
  for (const sibling of siblings as unknown[]) {
    const entry = Object(sibling) as Record<string, unknown>;
    const path = entry.rfilename;
    if (typeof path !== "string" || leadsOut(path)) {
      throw new PullError(`${host} lists a file named ${JSON.stringify(path)?.slice(0, 200)}: refused`);
    }
    entries.set(path, entry);
  }
  return { commit: sha, paths: [...entries.keys()], file: (path) => readFile(path, entries.get(path), host) };
}

function parseObject(text: string, host: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(text)) as Record<string, unknown>;
  } catch {
    throw new PullError(`${host} did not answer with JSON: is it a hub?`);
  }
}

function leadsOut(path: string): boolean {
  return (
    /^[/\\]|^[A-Za-z]:/.test(path) || path.split(/[/\\]/).some((part) => part === ".." || part === "." || part === "")
  );
}

function readFile(path: string, entry: Record<string, unknown> | undefined, host: string): HubFile {
  const lfs = entry?.lfs as { sha256?: unknown; size?: unknown } | null | undefined;
  const sizeBytes = lfs?.size ?? entry?.size;
  const hex = lfs ? lfs.sha256 : entry?.blobId;
  const isHashed = typeof hex === "string" && hexOf(lfs ? 64 : 40).test(hex);
  if (!isHashed || typeof sizeBytes !== "number" || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
    throw new PullError(`${host} gives no size or hash for ${path}, so that it could not be checked`);
  }
  return { path, sizeBytes, hash: { kind: lfs ? "sha256" : "git-sha1", hex } };
}

const safePart = /^(?![.~-])[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\\:*?"<>|]{1,200}(?<![. ])$/u;

/**
 * Refuses names that some file system reads as something else, and names that would meet in one file.
 * @throws {PullError} naming the file.
 */
export function checkPaths(paths: readonly string[]): void {
  const seen = new Map<string, string>();
  for (const path of paths) {
    if (!path.split("/").every((part) => safePart.test(part))) {
      throw new PullError(`the repository's file ${JSON.stringify(path)} cannot be stored under that name`);
    }
    const folded = path.normalize("NFC").toLowerCase();
    if (seen.has(folded))
      throw new PullError(`the repository's files ${seen.get(folded)} and ${path} differ only in case`);
    seen.set(folded, path);
  }
}
