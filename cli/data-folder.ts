/** The data folder of `quire start`: secrets, generated settings, logs, and the edge's state. */
import { createHash, randomBytes } from "node:crypto";
import type { StatsFs } from "node:fs";
import { chmod, readFile, statfs } from "node:fs/promises";
import { join, resolve } from "node:path";
import { makeFolder } from "../storage/make-folder.ts";
import { replaceFile } from "../storage/replace-file.ts";
import { lockHolder, takeProcessLock } from "./process-lock.ts";
import { UsageError } from "./usage-error.ts";

/** Made at random once and kept, so that keys and stored pages stay valid across restarts. */
export interface Secrets {
  /** What clients send as bearer token. */
  apiKey: string;
  /** For `quire keys`: manages API keys, and nothing else. */
  operatorKey: string;
  /** Shared by edge and engine. */
  engineKey: string;
  /** Names all stored pages; changing it orphans them. */
  tenantSalt: string;
  s3AccessKeyId: string;
  s3SecretAccessKey: string;
}

/** An open data folder; nobody else uses it until {@link DataFolder.release}. */
export interface DataFolder {
  /** Absolute. */
  path: string;
  secrets: Secrets;
  /** Path below the folder. */
  at(...names: string[]): string;
  /** Writes a file that only this user can read, whole or not at all. @throws {UsageError} */
  writePrivate(name: string, text: string): Promise<void>;
  release(): Promise<void>;
}

/**
 * Opens or creates the folder, with its secrets and its `logs` folder, and locks it for this process.
 * @throws {UsageError} when another process uses it, its secrets do not parse, it cannot be written, or its disk is as good as full.
 */
export async function openDataFolder(folder: string): Promise<DataFolder> {
  const path = resolve(folder);
  try {
    await makeFolder(join(path, "logs"), { mode: 0o700 });
    await chmod(path, 0o700);
  } catch (error) {
    throw notWritten(folder, error);
  }
  const lock = await takeProcessLock(path).catch((error: unknown) => Promise.reject(notWritten(folder, error)));
  if (!lock)
    throw new UsageError(`data folder ${folder} is in use by ${await lockHolder(path)}; choose another with --data`);
  const at = (...names: string[]): string => join(path, ...names);
  const writePrivate = async (name: string, text: string): Promise<void> => {
    try {
      await replaceFile(at(name), text);
    } catch (error) {
      throw notWritten(folder, error);
    }
  };
  try {
    checkRoom(folder, await statfs(path));
    const secrets = await loadSecrets(folder, at("secrets.json"), writePrivate);
    return { path, secrets, at, writePrivate, release: lock.release };
  } catch (error) {
    await lock.release();
    throw error;
  }
}

/** What a model's tokenizer and an empty edge take, and some first sessions; on a full disk the edge hangs instead of saying so. */
const roomBytesMin = 32 * 2 ** 20;

/** @throws {UsageError} for a file system that has not so much left; one that tells no size is taken as it is. */
export function checkRoom(
  folder: string,
  { blocks, bavail, bsize }: Pick<StatsFs, "blocks" | "bavail" | "bsize">,
): void {
  const leftBytes = bavail * bsize;
  if (blocks === 0 || leftBytes >= roomBytesMin) return;
  const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  throw new UsageError(
    `the disk of data folder ${folder} has ${mib(leftBytes)} left, ${mib(roomBytesMin)} are needed; make room or choose another with --data`,
  );
}

/** The one line for a folder that cannot be written; SQLite says what it met in words. */
function notWritten(folder: string, error: unknown): UsageError {
  const { code, errstr } = error as NodeJS.ErrnoException & { errstr?: string };
  return new UsageError(`data folder ${folder} cannot be written (${errstr ?? code})`);
}

async function loadSecrets(folder: string, path: string, writePrivate: DataFolder["writePrivate"]): Promise<Secrets> {
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    // Not to be made anew: with another salt everything stored would be lost.
    throw new UsageError(`${folder}/secrets.json cannot be read (${error.code})`);
  });
  if (text === undefined) {
    const secrets = newSecrets();
    await writePrivate("secrets.json", `${JSON.stringify(secrets, undefined, 2)}\n`);
    return secrets;
  }
  await chmod(path, 0o600);
  const known = parseSecrets(text);
  if (known === undefined)
    throw new UsageError(`${folder}/secrets.json is damaged: restore it, or remove it to start anew`);
  if (known.operatorKey !== undefined) return { ...known, operatorKey: known.operatorKey };
  // A folder from before there were operators.
  const secrets = { ...known, operatorKey: newKey() };
  await writePrivate("secrets.json", `${JSON.stringify(secrets, undefined, 2)}\n`);
  return secrets;
}

function newKey(): string {
  return `qk-${randomBytes(32).toString("base64url")}`;
}

function newSecrets(): Secrets {
  const random = (bytes: number): string => randomBytes(bytes).toString("hex");
  return {
    apiKey: newKey(),
    operatorKey: newKey(),
    engineKey: random(32),
    tenantSalt: random(32),
    s3AccessKeyId: random(10),
    s3SecretAccessKey: random(20),
  };
}

function parseSecrets(text: string): (Omit<Secrets, "operatorKey"> & Partial<Secrets>) | undefined {
  try {
    const value = JSON.parse(text) as Record<string, unknown>;
    const names = ["apiKey", "engineKey", "tenantSalt", "s3AccessKeyId", "s3SecretAccessKey"];
    const isWhole = names.every((name) => /^[\w-]{16,}$/.test(String(value[name])));
    return isWhole ? (value as unknown as Secrets) : undefined;
  } catch {
    return undefined;
  }
}

/** The edge's table of API keys: hashes only. The client's key is the development tenant's, the operator's manages others. */
export function apiKeyTable({ apiKey, operatorKey }: Pick<Secrets, "apiKey" | "operatorKey">): string {
  const hash = (key: string) => createHash("sha256").update(key).digest("hex");
  return JSON.stringify({
    [hash(apiKey)]: { tenant: "dev" },
    [hash(operatorKey)]: { tenant: "operators", scopes: ["keys"] },
  });
}
