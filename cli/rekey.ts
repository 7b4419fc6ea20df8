/** `quire rekey`: encrypts a store, or changes the key it is encrypted with. */
import { parseKeyRing } from "../storage/key-ring.ts";
import { rekeyStore } from "../storage/rekey.ts";
import type { Command } from "./command.ts";
import { describeFlags, parseSwitched } from "./flags.ts";
import { namespaceMeant, openPlace, prefixOf, storeFlags, tenantFlags } from "./store/flags.ts";
import { count, size } from "./store/tables.ts";
import { UsageError } from "./usage-error.ts";

const rekeyFlags = { ...storeFlags, ...tenantFlags } as const;
const switches = { "dry-run": "say how much would be written, and write nothing" } as const;

const usage = `Usage: QUIRE_STORE_KEYS=NEW,OLD quire rekey [flags]

Rewrites every object that is not under the first key: what is not encrypted yet, and what another key of the list encrypted.
Engines may run meanwhile, with the same list. Afterwards the other keys can go.

`;

/** The command. */
export const rekeyCommand: Command = {
  help: () => `${usage}${describeFlags(rekeyFlags, switches)}\n`,
  run: (args) => runRekey(args, process.env),
};

async function runRekey(args: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  const { values, given } = parseSwitched({ flags: rekeyFlags, switches }, args, env);
  if (!env.QUIRE_STORE_KEYS)
    throw new UsageError("rekey needs QUIRE_STORE_KEYS: keys of 32 bytes in base64, the new one first");
  const ring = parseKeyRing(env.QUIRE_STORE_KEYS);
  const prefix = prefixOf(await namespaceMeant(values, env));
  const dryRun = given.has("dry-run");
  const store = await openPlace(values, env, { plain: true });
  try {
    const report = await rekeyStore(store, ring, { prefix, dryRun });
    const changed = report.changedCount === 0 ? "" : `, of which ${report.changedCount} changed meanwhile`;
    const verb = dryRun ? "would encrypt" : "encrypted";
    process.stdout.write(
      `${verb} ${count(report.rekeyedCount, "object")} (${size(report.rekeyedBytes)})${changed} under key ${ring[0].id}; ` +
        `${count(report.objectCount, "object")} looked at\n`,
    );
    for (const key of report.damagedKeys)
      process.stderr.write(`quire: ${key} is damaged and was left as it is (quire verify says more)\n`);
    return report.damagedKeys.length > 0 ? 1 : 0;
  } finally {
    await store.close();
  }
}
