/** Chooses a page store by its address. Called from entry points only. */
import { QuireError } from "../protocol/errors.ts";
import { openCacheFolder } from "./cache-files.ts";
import type { PageStore } from "./contract.ts";
import { DiskCache, type DiskCacheOptions } from "./disk-cache.ts";
import { EncryptedStore } from "./encrypted-store.ts";
import { FsStore } from "./fs-store.ts";
import { parseKeyRing } from "./key-ring.ts";
import { MemoryStore } from "./memory-store.ts";
import { S3Store } from "./s3-store.ts";

const BUCKET_PATTERN = /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/;

/**
 * Opens the store at `address`:
 * - `memory:` lives with the process;
 * - `fs:PATH` a folder, made where there is none (relative to the working directory);
 * - `s3://BUCKET?endpoint=URL&region=REGION` any S3 API; region defaults to `auto`, the endpoint to AWS's own for a named
 *   region. Credentials come from `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and optionally `AWS_SESSION_TOKEN` in `env`.
 * Where `QUIRE_STORE_KEYS` is in `env`, tenants' objects are encrypted (see key-ring.ts, encrypted-store.ts).
 * @throws {QuireError} `invalid_request` with one clear line for an address or environment that cannot work.
 * @throws {StoreError} when the folder cannot be used. A bucket is not contacted before its first use.
 */
export async function openStore(
  address: string,
  env: Readonly<Record<string, string | undefined>>,
): Promise<PageStore> {
  const encrypt = encryption(env);
  return encrypt(await openPlain(address, env));
}

/** Where a disk cache lies and how much it may take. */
export interface DiskCacheFolder extends Pick<DiskCacheOptions, "bytesMax" | "clock"> {
  folder: string;
}

/**
 * {@link openStore} with a disk cache in front of it, which holds what is stored: where objects are encrypted, so are its files.
 * @throws {StoreError} also when the cache's folder cannot be used.
 */
export async function openCachedStore(
  address: string,
  env: Readonly<Record<string, string | undefined>>,
  { folder, ...options }: DiskCacheFolder,
): Promise<{ store: PageStore; cache: DiskCache }> {
  const encrypt = encryption(env);
  const files = await openCacheFolder(folder);
  const cache = new DiskCache(await openPlain(address, env), { ...options, files });
  return { store: encrypt(cache), cache };
}

function encryption(env: Readonly<Record<string, string | undefined>>): (store: PageStore) => PageStore {
  const ring = env.QUIRE_STORE_KEYS ? parseKeyRing(env.QUIRE_STORE_KEYS) : undefined;
  return (store) => (ring === undefined ? store : new EncryptedStore(store, ring));
}

async function openPlain(address: string, env: Readonly<Record<string, string | undefined>>): Promise<PageStore> {
  if (address === "memory:") return new MemoryStore();
  if (address.startsWith("fs:")) {
    const path = address.slice("fs:".length);
    if (path === "") throw refusal("fs: needs a folder, as in fs:.quire/store");
    return FsStore.open(path);
  }
  if (address.startsWith("s3://")) return openS3(address, env);
  throw refusal("a page store is memory:, fs:PATH or s3://BUCKET?endpoint=URL&region=REGION");
}

function openS3(address: string, env: Readonly<Record<string, string | undefined>>): S3Store {
  if (!URL.canParse(address)) throw refusal("the s3:// address does not parse");
  const { hostname: bucket, searchParams, username, pathname } = new URL(address);
  if (username !== "") throw refusal("credentials belong into the environment, not into the s3:// address");
  if (!BUCKET_PATTERN.test(bucket)) throw refusal("s3:// needs the name of a bucket");
  if (pathname !== "" && pathname !== "/") throw refusal("s3:// takes a bucket without a path");
  const unknown = [...searchParams.keys()].find((name) => name !== "endpoint" && name !== "region");
  if (unknown !== undefined) throw refusal(`s3:// takes endpoint and region, not ${unknown}`);
  const region = searchParams.get("region") ?? "auto";
  const accessKeyId = env.AWS_ACCESS_KEY_ID;
  const secretAccessKey = env.AWS_SECRET_ACCESS_KEY;
  if (!accessKeyId || !secretAccessKey) {
    throw refusal("s3:// needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment");
  }
  return new S3Store({
    endpoint: endpointOf(searchParams.get("endpoint"), region),
    bucket,
    region,
    accessKeyId,
    secretAccessKey,
    sessionToken: env.AWS_SESSION_TOKEN || undefined,
  });
}

function endpointOf(endpoint: string | null, region: string): string {
  if (endpoint === null) {
    if (region === "auto") throw refusal("s3:// needs endpoint=URL, or the region of an AWS bucket");
    return `https://s3.${region}.amazonaws.com`;
  }
  const usable = URL.canParse(endpoint) && ["http:", "https:"].includes(new URL(endpoint).protocol);
  if (!usable) throw refusal("the endpoint of s3:// must be an http or https URL");
  return endpoint;
}

function refusal(message: string): QuireError {
  return new QuireError("invalid_request", `page store: ${message}`, { param: "store" });
}
