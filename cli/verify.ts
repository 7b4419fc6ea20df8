/** `quire verify`: reads everything that sessions name, checks every checksum and reference, and repairs by dropping what fails. */
import { listAll } from "../storage/gc.ts";
import { parseObjectKey, sessionKeyOf } from "../storage/keys.ts";
import { type SessionVerdict, Verifier } from "../storage/verify.ts";
import type { Command } from "./command.ts";
import { describeFlags, parseSwitched, parseText } from "./flags.ts";
import { namespaceMeant, openPlace, prefixOf, storeFlags, tenantFlags } from "./store/flags.ts";
import { progressReport } from "./store/progress.ts";
import { count } from "./store/tables.ts";

const verifyFlags = {
  ...storeFlags,
  ...tenantFlags,
  session: { help: "this session only", placeholder: "ID", parse: parseText },
} as const;

const switches = {
  repair: "drop what cannot be trusted: manifests are cut or deleted, and the next turn computes the rest",
  json: "one JSON object per session, one per line",
} as const;

const usage = `Usage: quire verify [flags]

Reads every object that a session names. Exit code 0: everything is whole (or was repaired), 1: something is not.

`;

/** The command. */
export const verifyCommand: Command = {
  help: () => `${usage}${describeFlags(verifyFlags, switches)}\n`,
  run: (args) => runVerify(args, process.env),
};

async function runVerify(args: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  const { values, given } = parseSwitched({ flags: verifyFlags, switches }, args, env);
  const prefix = prefixOf(await namespaceMeant(values, env));
  const store = await openPlace(values, env);
  try {
    const verifier = new Verifier(store, { repair: given.has("repair") });
    const suffix = values.session === undefined ? "" : `/session/${sessionKeyOf(values.session)}`;
    const totals = { sessions: 0, objects: 0, broken: 0, unrepaired: 0 };
    const read = () => `${count(totals.sessions, "session")} with ${count(totals.objects, "object")} read`;
    const progress = progressReport(
      (line) => process.stderr.write(line),
      () => performance.now(),
    );
    for await (const { key } of listAll(store, prefix, undefined)) {
      if (parseObjectKey(key)?.kind !== "session" || !key.endsWith(suffix)) continue;
      const verdict = await verifier.session(key);
      if (verdict.isDeleted) continue;
      totals.sessions += 1;
      totals.objects += verdict.objectCount;
      progress(read);
      if (verdict.problems.length > 0) {
        totals.broken += 1;
        if (verdict.action !== "cut" && verdict.action !== "deleted") totals.unrepaired += 1;
      }
      const line = given.has("json") ? `${JSON.stringify({ ...verdict, isDeleted: undefined })}\n` : describe(verdict);
      if (line !== "") process.stdout.write(line);
    }
    if (!given.has("json"))
      process.stdout.write(`${read()}: ${totals.broken === 0 ? "all whole" : `${totals.broken} not whole`}\n`);
    return totals.unrepaired > 0 ? 1 : 0;
  } finally {
    await store.close();
  }
}

const outcomes: Record<SessionVerdict["action"], string> = {
  none: "--repair drops the rest",
  cut: "the rest was dropped",
  deleted: "its manifest was deleted",
  left: "left alone: of a version that is not read here, or committed anew meanwhile",
};

/** Nothing for a session that is whole. */
function describe(verdict: SessionVerdict): string {
  if (verdict.problems.length === 0) return "";
  const problems = verdict.problems.map(({ objectKey, what }) => `  ${objectKey}: ${what}\n`).join("");
  const name = verdict.sessionId ?? verdict.key;
  return `${name}: ${verdict.trustedTokens} of ${verdict.tokenCount} tokens can be trusted; ${outcomes[verdict.action]}\n${problems}`;
}
