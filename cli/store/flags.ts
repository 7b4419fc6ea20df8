/** The flags by which `quire gc`, `sessions` and `verify` find a page store, and a tenant in it. */
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { LIMITS } from "../../protocol/limits.ts";
import type { PageStore } from "../../storage/contract.ts";
import { namespacePrefix, ROOT_PREFIX } from "../../storage/keys.ts";
import { openStore } from "../../storage/open.ts";
import { namespaceOf } from "../../workers/auth/namespace.ts";
import type { Secrets } from "../data-folder.ts";
import { bucketName } from "../edge-process.ts";
import { storeEnvironment } from "../engine-process.ts";
import { parseHttpUrl, parseText } from "../flags.ts";
import { UsageError } from "../usage-error.ts";

/** A namespace as it stands in keys. */
export function parseNamespace(text: string): string {
  if (/^[0-9a-f]{1,64}$/.test(text)) return text;
  throw new UsageError("must be 1-64 lower-case hex digits");
}

/** Where the store is. */
export const storeFlags = {
  store: {
    help: "fs:FOLDER or s3://BUCKET?endpoint=URL (keys: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY); without it that of `quire start`",
    placeholder: "ADDRESS",
    env: "QUIRE_STORE",
    parse: parseText,
  },
  data: {
    help: "data folder of `quire start`, for its store's keys and tenant salt",
    placeholder: "FOLDER",
    env: "QUIRE_DATA",
    fallback: ".data",
    parse: parseText,
  },
  edge: {
    help: "address at which `quire start` runs, which serves its store",
    placeholder: "URL",
    env: "QUIRE_EDGE",
    fallback: "http://127.0.0.1:8787",
    parse: parseHttpUrl,
  },
} as const;

/** Whose sessions. */
export const tenantFlags = {
  tenant: {
    help: "sessions of this tenant only; the salt comes from QUIRE_TENANT_SALT or --data",
    placeholder: "NAME",
    parse: parseText,
  },
  namespace: {
    help: "the same, by the tenant's namespace as it stands in keys",
    placeholder: "HEX",
    parse: parseNamespace,
  },
} as const;

/** Values of {@link storeFlags}. */
export interface StorePlace {
  store: string | undefined;
  data: string;
  edge: string;
}

/**
 * Opens the store; the caller closes it. A folder has to be there already unless `mayBeNew`: a mistyped one would look empty.
 * `plain`: without decryption, whatever keys there are.
 * @throws {UsageError | QuireError} one line, for an address that cannot work.
 */
export async function openPlace(
  place: StorePlace,
  env: NodeJS.ProcessEnv,
  options: { mayBeNew?: boolean; plain?: boolean } = {},
): Promise<PageStore> {
  const keys = options.plain === true || !env.QUIRE_STORE_KEYS ? {} : { QUIRE_STORE_KEYS: env.QUIRE_STORE_KEYS };
  if (place.store !== undefined) {
    if (place.store === "memory:")
      throw new UsageError("--store: memory: holds nothing that another process could see");
    const folder = /^fs:(.+)$/.exec(place.store)?.[1];
    if (folder !== undefined && options.mayBeNew !== true && !existsSync(folder))
      throw new UsageError(`--store: there is no folder ${folder}`);
    return await openStore(place.store, { ...env, QUIRE_STORE_KEYS: undefined, ...keys });
  }
  const secrets = await secretsIn(place.data);
  if (secrets === undefined)
    throw new UsageError(`--store is needed: ${place.data} is not a data folder of \`quire start\``);
  await assertAnswers(place.edge);
  const endpoint = encodeURIComponent(`${place.edge}/cdn-cgi/local/r2/s3`);
  const address = `s3://${bucketName}?endpoint=${endpoint}`;
  return await openStore(address, { ...storeEnvironment(secrets as Secrets), ...keys });
}

/** The store would be tried again and again, and say no more than that it got no answer. */
async function assertAnswers(edge: string): Promise<void> {
  try {
    const response = await fetch(`${edge}/healthz`, { signal: AbortSignal.timeout(LIMITS.statusMsMax) });
    await response.body?.cancel();
  } catch (error) {
    throw new UsageError(
      `no edge answers at ${edge}, and \`quire start\` serves its store only while it runs: start it, or say with --edge where it is`,
      { cause: error },
    );
  }
}

/** The namespace that is meant, undefined for all. @throws {UsageError} when a name is given and there is no salt. */
export async function namespaceMeant(
  values: { tenant: string | undefined; namespace: string | undefined; data: string },
  env: NodeJS.ProcessEnv,
): Promise<string | undefined> {
  const { tenant, namespace } = values;
  if (tenant !== undefined && namespace !== undefined)
    throw new UsageError("--tenant and --namespace mean the same: give one");
  return tenant === undefined ? namespace : await namespaceOfTenant(tenant, values.data, env);
}

/** The namespace of a tenant's name. @throws {UsageError} without a salt. */
export async function namespaceOfTenant(tenant: string, data: string, env: NodeJS.ProcessEnv): Promise<string> {
  const salt = env.QUIRE_TENANT_SALT || (await secretsIn(data))?.tenantSalt;
  if (!salt) throw new UsageError("--tenant needs the tenant salt: QUIRE_TENANT_SALT, or --data; or give --namespace");
  return await namespaceOf(tenant, salt);
}

/** Prefix of a tenant's objects, or of everybody's. */
export function prefixOf(namespace: string | undefined): string {
  return namespace === undefined ? ROOT_PREFIX : namespacePrefix(namespace);
}

async function secretsIn(folder: string): Promise<Partial<Secrets> | undefined> {
  try {
    return JSON.parse(await readFile(join(folder, "secrets.json"), "utf8")) as Partial<Secrets>;
  } catch {
    return undefined;
  }
}
