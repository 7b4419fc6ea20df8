/** `quire keys`: makes, lists, ends and replaces API keys. A key is shown once, here, and kept nowhere but as its hash. */
import { createHash, randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { DEFAULT_SCOPES, type KeyRecord, type TenantLimits } from "../workers/auth/key-record.ts";
import type { Command } from "./command.ts";
import { describeFlags, type Flags, type FlagValues, parseFlags, parseWithOperand } from "./flags.ts";
import { edgeKeys } from "./keys/edge-keys.ts";
import { fileKeys } from "./keys/file-keys.ts";
import { createFlags, listFlags, placeFlags, rotateFlags } from "./keys/flags.ts";
import type { KeyStore, NewKeyRecord } from "./keys/key-store.ts";
import { UsageError } from "./usage-error.ts";

const usage = `Usage: quire keys <action> [flags]

  create        a new key: --tenant NAME
  list          all keys, no secrets
  revoke ID     ends a key now (at the edge within 10 s)
  rotate ID     a new key with the old one's rights; the old one ends after --overlap

Keys are kept as hashes: in the key ring of a running edge, or with --file in a table for the secret QUIRE_API_KEYS
(\`wrangler secret put QUIRE_API_KEYS < FILE\`). The new key is the only line on standard output.

`;

/** The command. */
export const keysCommand: Command = {
  help: () => `${usage}${describeFlags({ ...createFlags, overlap: rotateFlags.overlap })}\n`,
  run: (args) => runKeys(args, process.env),
};

const nowS = (): number => Math.floor(Date.now() / 1000);

async function runKeys([action, ...rest]: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  switch (action) {
    case "create": {
      const values = parseFlags(createFlags, rest, env);
      if (values.tenant === undefined) throw new UsageError("keys create needs --tenant");
      const expires = values["expires-in"];
      await create(await storeOf(values, env), {
        tenant: values.tenant,
        scopes: values.scopes ?? DEFAULT_SCOPES,
        expiresS: expires === undefined ? undefined : nowS() + expires,
        label: values.label,
        limits: limitsOf(values),
      });
      return 0;
    }
    case "list": {
      const values = parseFlags(listFlags, rest, env);
      process.stdout.write(tableOf(await (await storeOf(values, env)).list(values.tenant), nowS()));
      return 0;
    }
    case "revoke": {
      const { id, values } = parseWithId(action, placeFlags, rest, env);
      await (await storeOf(values, env)).revoke(id);
      process.stderr.write(`quire: ${id} is revoked\n`);
      return 0;
    }
    case "rotate": {
      const { id, values } = parseWithId(action, rotateFlags, rest, env);
      await rotate(await storeOf(values, env), id, values.overlap);
      return 0;
    }
    default:
      throw new UsageError(`keys needs an action: create, list, revoke or rotate`);
  }
}

/** The new key first: whatever goes wrong between the two, somebody holds one that works. */
async function rotate(store: KeyStore, id: string, overlapS: number): Promise<void> {
  const { id: _, createdS: __, ...old } = await store.get(id);
  // The new key ends when the old one would have.
  if (old.expiresS !== undefined && old.expiresS <= nowS()) {
    throw new UsageError(`${id} ended at ${isoTime(old.expiresS)}: make a new key with keys create`);
  }
  await create(store, old);
  const { expiresS = 0 } = await store.expire(id, nowS() + overlapS);
  process.stderr.write(`quire: ${id} ends at ${isoTime(expiresS)}\n`);
}

async function create(store: KeyStore, record: NewKeyRecord): Promise<void> {
  const key = `qk-${randomBytes(32).toString("base64url")}`;
  const added = await store.add(createHash("sha256").update(key).digest("hex"), record);
  process.stderr.write(`quire: ${added.id}, tenant ${added.tenant}, ${added.scopes.join(",")}, ${endOf(added)}\n`);
  process.stdout.write(`${key}\n`);
}

async function storeOf(values: FlagValues<typeof placeFlags>, env: NodeJS.ProcessEnv): Promise<KeyStore> {
  if (values.file !== undefined) return fileKeys(values.file, nowS);
  const operatorKey = env.QUIRE_OPERATOR_KEY || (await operatorKeyOf(values.data));
  return edgeKeys({ url: values.edge, operatorKey, fetch });
}

/** The data folder's, which may be in use. */
async function operatorKeyOf(folder: string): Promise<string> {
  const text = await readFile(join(folder, "secrets.json"), "utf8").catch(() => "{}");
  const key = (JSON.parse(text) as { operatorKey?: unknown }).operatorKey;
  if (typeof key === "string") return key;
  throw new UsageError(`${folder} holds no operator's key: set QUIRE_OPERATOR_KEY, or name the folder with --data`);
}

function parseWithId<F extends Flags>(action: string, flags: F, args: readonly string[], env: NodeJS.ProcessEnv) {
  const missing = `keys ${action} needs a key's id: key_ and 12 hex digits`;
  const { operand: id, values } = parseWithOperand(flags, args, { env, missing });
  if (!/^key_[0-9a-f]{12}$/.test(id)) throw new UsageError(missing);
  return { id, values };
}

function limitsOf(values: FlagValues<typeof createFlags>): TenantLimits | undefined {
  const limits: TenantLimits = {
    requestsPerMinute: values["requests-per-minute"],
    tokensPerMinute: values["tokens-per-minute"],
    turnsConcurrent: values["turns-concurrent"],
  };
  return Object.values(limits).some((limit) => limit !== undefined) ? limits : undefined;
}

/** One line per key; the times are UTC. */
export function tableOf(records: readonly KeyRecord[], atS: number): string {
  const rows = records.map((record) => [
    record.id,
    record.tenant,
    record.scopes.join(","),
    record.createdS === 0 ? "-" : isoTime(record.createdS),
    record.expiresS !== undefined && record.expiresS <= atS ? "expired" : endOf(record),
    record.label ?? "",
  ]);
  const all = [["id", "tenant", "scopes", "created", "ends", "label"], ...rows];
  const widths = all[0]?.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0))) ?? [];
  const lines = all.map((row) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  "));
  return `${lines.map((line) => line.trimEnd()).join("\n")}\n`;
}

function endOf({ expiresS }: KeyRecord): string {
  return expiresS === undefined ? "never ends" : isoTime(expiresS);
}

function isoTime(seconds: number): string {
  return new Date(seconds * 1000).toISOString().replace(".000Z", "Z");
}
