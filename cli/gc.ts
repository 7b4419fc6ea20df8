/** `quire gc`: deletes what no session names any more, sessions that were not used for long, and what is beyond a tenant's bytes. */
import { readFile } from "node:fs/promises";
import { LIMITS } from "../protocol/limits.ts";
import { collectGarbage, type GarbageOptions, type GarbageReport, type TenantKeeping } from "../storage/gc.ts";
import type { Command } from "./command.ts";
import { describeFlags, parseBytes, parseSwitched, parseText } from "./flags.ts";
import { parseSpan } from "./keys/flags.ts";
import { namespaceMeant, namespaceOfTenant, openPlace, prefixOf, storeFlags, tenantFlags } from "./store/flags.ts";
import { count, size } from "./store/tables.ts";
import { UsageError } from "./usage-error.ts";

/** A turn may run that long, and its manifest comes behind its end. */
const graceMsMin = LIMITS.turnMsMax + LIMITS.commitAgeMsMax;

function parseGrace(text: string): number {
  const ms = parseSpan(text) * 1000;
  if (ms >= graceMsMin) return ms;
  throw new UsageError(`must be at least ${graceMsMin / 60_000}m, so that no running turn loses what it has stored`);
}

const gcFlags = {
  ...storeFlags,
  ...tenantFlags,
  ttl: {
    help: "delete sessions that were not committed for this long, such as 30d; without it none",
    placeholder: "TIME",
    env: "QUIRE_SESSION_TTL",
    parse: (text: string) => parseSpan(text) * 1000,
  },
  quota: {
    help: "bytes of one tenant's sessions; the least recently used go until it is kept; without it no limit",
    placeholder: "BYTES",
    env: "QUIRE_TENANT_QUOTA",
    parse: parseBytes,
  },
  tenants: {
    help: 'JSON file of tenants with others: {"NAME": {"ttl": "90d", "quota": "10G"}}',
    placeholder: "FILE",
    env: "QUIRE_TENANTS_FILE",
    parse: parseText,
  },
  grace: {
    help: "objects that are younger are kept whether a session names them or not",
    placeholder: "TIME",
    env: "QUIRE_GC_GRACE",
    fallback: "24h",
    parse: parseGrace,
  },
} as const;

const switches = {
  "dry-run": "say what would be deleted, and delete nothing",
  json: "one JSON object, with every key",
} as const;

/** The command. */
export const gcCommand: Command = {
  help: () => `Usage: quire gc [flags]\n\n${describeFlags(gcFlags, switches)}\n`,
  run: (args) => runGc(args, process.env),
};

async function runGc(args: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  const { values, given } = parseSwitched({ flags: gcFlags, switches }, args, env);
  const prefix = prefixOf(await namespaceMeant(values, env));
  const options: GarbageOptions = {
    graceMs: values.grace,
    nowMs: Date.now(),
    ...(values.ttl === undefined ? {} : { sessionAgeMsMax: values.ttl }),
    ...(values.quota === undefined ? {} : { tenantBytesMax: values.quota }),
    ...(values.tenants === undefined ? {} : { tenants: await tenantsOf(values.tenants, values.data, env) }),
    dryRun: given.has("dry-run"),
  };
  const store = await openPlace(values, env);
  try {
    const report = await collectGarbage(store, prefix, options);
    process.stdout.write(given.has("json") ? `${JSON.stringify(report, undefined, 2)}\n` : describe(report, options));
    for (const key of report.unreadableKeys)
      process.stderr.write(
        `quire: ${key} cannot be read: nothing of its tenant was collected (quire verify says more)\n`,
      );
    return report.unreadableKeys.length > 0 ? 1 : 0;
  } finally {
    await store.close();
  }
}

function describe(report: GarbageReport, { dryRun }: GarbageOptions): string {
  const { deletedKeys, expiredCount, overQuotaCount } = report;
  const expired = expiredCount === 0 ? "" : `, ${count(expiredCount, "session")} not used for too long`;
  const over = overQuotaCount === 0 ? "" : `, ${count(overQuotaCount, "session")} beyond a tenant's bytes`;
  const kept = `${count(report.manifestCount, "session")} kept, ${count(report.objectCount, "object")} looked at`;
  const keys = dryRun === true ? deletedKeys.map((key) => `  ${key}\n`).join("") : "";
  const verb = dryRun === true ? "would delete" : "deleted";
  return `${keys}${verb} ${count(deletedKeys.length, "object")} (${size(report.deletedBytes)})${expired}${over}; ${kept}\n`;
}

async function tenantsOf(file: string, data: string, env: NodeJS.ProcessEnv): Promise<Map<string, TenantKeeping>> {
  let value: unknown;
  try {
    value = JSON.parse(await readFile(file, "utf8"));
  } catch (error) {
    throw new UsageError(`--tenants: ${file} cannot be read as JSON (${(error as Error).message})`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new UsageError(`--tenants: ${file} must hold one object, tenants by name`);
  const tenants = new Map<string, TenantKeeping>();
  for (const [name, fields] of Object.entries(value as Record<string, unknown>))
    tenants.set(await namespaceOfTenant(name, data, env), keepingOf(file, name, fields));
  return tenants;
}

function keepingOf(file: string, name: string, fields: unknown): TenantKeeping {
  const refuse = (problem: string) => new UsageError(`--tenants: ${file}, tenant ${name}: ${problem}`);
  if (typeof fields !== "object" || fields === null) throw refuse("must be an object");
  const unknown = Object.keys(fields).find((field) => field !== "ttl" && field !== "quota");
  if (unknown !== undefined) throw refuse(`has the unknown field ${unknown}; ttl and quota are known`);
  const { ttl, quota } = fields as { ttl?: unknown; quota?: unknown };
  try {
    return {
      ...(ttl === undefined ? {} : { sessionAgeMsMax: parseSpan(String(ttl)) * 1000 }),
      ...(quota === undefined ? {} : { tenantBytesMax: parseBytes(String(quota)) }),
    };
  } catch (error) {
    throw refuse((error as Error).message);
  }
}
