/** `quire sessions`: what is stored of conversations, and how to carry one from store to store. */
import { createReadStream } from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import type { Readable } from "node:stream";
import type { PageStore } from "../storage/contract.ts";
import { FormatError } from "../storage/format-error.ts";
import { deleteManifestAndTail } from "../storage/gc.ts";
import { loadManifest } from "../storage/manifest.ts";
import { syncFolder } from "../storage/replace-file.ts";
import { exportSession, importSession } from "../storage/session-archive.ts";
import { type ListedSession, listSessions } from "../storage/session-list.ts";
import type { Command } from "./command.ts";
import {
  type CommandLine,
  describeFlags,
  type Flags,
  type FlagValues,
  parseCommandLine,
  parseSwitched,
  parseText,
} from "./flags.ts";
import { orRefuse } from "./output-file.ts";
import { listenForStop } from "./stop-request.ts";
import { namespaceMeant, openPlace, prefixOf, storeFlags, tenantFlags } from "./store/flags.ts";
import { describeSession } from "./store/session-report.ts";
import { size, table, time } from "./store/tables.ts";
import { readTar, TAR_END, tarEntry } from "./store/tar.ts";
import { UsageError } from "./usage-error.ts";

const placeFlags = { ...storeFlags, ...tenantFlags } as const;
const exportFlags = {
  ...placeFlags,
  out: { help: "the archive; without it standard output", placeholder: "FILE", parse: parseText },
} as const;
const importFlags = {
  ...placeFlags,
  in: { help: "the archive; without it standard input", placeholder: "FILE", parse: parseText },
  as: { help: "another id for the session", placeholder: "ID", parse: parseText },
} as const;
const switches = {
  json: "ls, show: JSON instead of text",
  replace: "import: in the place of a session of that id",
} as const;

const usage = `Usage: quire sessions <action> [flags]

  ls            sessions in the store
  show ID       what is stored of one
  rm ID         deletes what is stored of one; its log at the edge stays, and its next turn computes the pages anew
  export ID     a tar with everything that is stored of one, verified on the way
  import        stores a session from such a tar, for --tenant or --namespace

`;

/** The command. */
export const sessionsCommand: Command = {
  help: () =>
    `${usage}${describeFlags({ ...placeFlags, out: exportFlags.out, in: importFlags.in, as: importFlags.as }, switches)}\n`,
  run: (args) => runSessions(args, process.env),
};

async function runSessions([action, ...args]: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  switch (action) {
    case "ls": {
      const { values, given } = parseSwitched({ flags: placeFlags, switches }, args, env);
      return await withStore(values, env, (store, prefix) => list(store, prefix, given.has("json")));
    }
    case "show":
      return await onSession(args, { flags: placeFlags, env, action }, (store, found, { given }) =>
        show(store, found, given),
      );
    case "rm":
      return await onSession(args, { flags: placeFlags, env, action }, remove);
    case "export":
      return await onSession(args, { flags: exportFlags, env, action }, (store, found, { values }) =>
        writeArchive(store, found, values.out),
      );
    case "import": {
      const { values, given } = parseSwitched({ flags: importFlags, switches }, args, env);
      return await runImport(values, { env, replace: given.has("replace") });
    }
    default:
      throw new UsageError("sessions needs an action: ls, show, rm, export or import");
  }
}

async function withStore(
  values: FlagValues<typeof placeFlags>,
  env: NodeJS.ProcessEnv,
  use: (store: PageStore, prefix: string) => Promise<number>,
): Promise<number> {
  const prefix = prefixOf(await namespaceMeant(values, env));
  const store = await openPlace(values, env);
  try {
    return await use(store, prefix);
  } finally {
    await store.close();
  }
}

/** Finds the one session that an action is for. */
async function onSession<F extends Flags & typeof placeFlags>(
  args: readonly string[],
  options: { flags: F; env: NodeJS.ProcessEnv; action: string },
  use: (store: PageStore, found: ListedSession, line: CommandLine<F>) => Promise<number>,
): Promise<number> {
  const line = parseCommandLine({ flags: options.flags, switches }, args, options.env);
  const { values, operands } = line;
  const [id] = operands;
  if (id === undefined || operands.length > 1)
    throw new UsageError(`sessions ${options.action} needs one session's id`);
  return await withStore(values, options.env, async (store, prefix) => {
    const found: ListedSession[] = [];
    for await (const session of listSessions(store, prefix, { sessionId: id })) found.push(session);
    const [first, second] = found;
    if (first === undefined) throw new UsageError(`no session ${JSON.stringify(id)} is stored here`);
    if (second !== undefined) {
      const places = found.map(({ namespace, space }) => `  --namespace ${namespace}  (${space})`).join("\n");
      const sameTenant = new Set(found.map(({ namespace }) => namespace)).size === 1;
      if (!sameTenant)
        throw new UsageError(`several tenants have a session ${JSON.stringify(id)}; say which:\n${places}`);
      if (options.action !== "rm") {
        const newest = [...found].sort((a, b) => (b.record?.updatedMs ?? 0) - (a.record?.updatedMs ?? 0))[0];
        process.stderr.write(`quire: stored for ${found.length} models or layouts; this is the latest\n`);
        return await use(store, newest as ListedSession, line);
      }
      for (const session of found) await use(store, session, line);
      return 0;
    }
    return await use(store, first, line);
  });
}

async function list(store: PageStore, prefix: string, asJson: boolean): Promise<number> {
  const sessions: ListedSession[] = [];
  for await (const session of listSessions(store, prefix)) sessions.push(session);
  sessions.sort((a, b) => (b.record?.updatedMs ?? 0) - (a.record?.updatedMs ?? 0));
  if (asJson) {
    process.stdout.write(`${JSON.stringify(sessions.map(plain), undefined, 2)}\n`);
    return 0;
  }
  const rows = sessions.map(({ key, namespace, space, manifestBytes, record, problem }) => [
    record?.sessionId ?? `(${problem})`,
    String(record?.tokenCount ?? ""),
    size(manifestBytes + (record?.objectBytes ?? 0)),
    record === undefined ? "" : time(record.updatedMs),
    namespace.slice(0, 12),
    record === undefined ? key : space,
  ]);
  if (rows.length === 0) process.stderr.write("quire: no sessions are stored here\n");
  else
    process.stdout.write(table(["SESSION", "TOKENS", "SIZE", "COMMITTED", "NAMESPACE", "MODEL.NUMERICS.LAYOUT"], rows));
  return 0;
}

/** As JSON: nothing that is not plain data. */
function plain({ key, namespace, space, manifestBytes, record, problem }: ListedSession) {
  const { objectKeys, ...fields } = record ?? { objectKeys: new Set<string>() };
  return { key, namespace, space, manifestBytes, objectCount: objectKeys.size, ...fields, ...(problem && { problem }) };
}

async function show(store: PageStore, found: ListedSession, given: ReadonlySet<string>): Promise<number> {
  if (found.record === undefined) throw new UsageError(`${found.key}: ${found.problem}`);
  if (found.record.formatVersion === 1) {
    process.stdout.write(`${JSON.stringify(plain(found), undefined, 2)}\n`);
    return 0;
  }
  const loaded = await loadManifest(store, found.key);
  if (loaded === undefined) throw new UsageError(`${found.key}: gone meanwhile`);
  const { manifest } = loaded;
  process.stdout.write(
    given.has("json") ? `${JSON.stringify(manifest, undefined, 2)}\n` : describeSession(found, manifest),
  );
  return 0;
}

async function remove(store: PageStore, found: ListedSession): Promise<number> {
  await deleteManifestAndTail(store, found.key);
  process.stderr.write(
    `quire: ${found.record?.sessionId ?? found.key} is deleted; what no other session shares goes with the next quire gc\n`,
  );
  return 0;
}

async function writeArchive(store: PageStore, found: ListedSession, out: string | undefined): Promise<number> {
  if (out === undefined && process.stdout.isTTY)
    throw new UsageError("export writes a tar: give --out FILE, or a pipe");
  const temporary = out === undefined ? undefined : `${out}.${process.pid}.tmp`;
  const openFile = () => open(String(temporary), "wx", 0o600);
  const file = out === undefined ? undefined : await orRefuse(out, openFile);
  // What is left of a file that nobody finishes goes with the command; a pipe ends as any program's does.
  const stop = new AbortController();
  if (file) void listenForStop(process, () => performance.now()).requested.then(() => stop.abort());
  let files = 0;
  try {
    const write = async (bytes: Uint8Array): Promise<void> => {
      if (file) await orRefuse(String(out), () => file.writeFile(bytes));
      else if (!process.stdout.write(bytes)) await new Promise((resolve) => process.stdout.once("drain", resolve));
    };
    for await (const entry of exportSession(store, found.key, stop.signal)) {
      stop.signal.throwIfAborted();
      await write(tarEntry(entry));
      files += 1;
    }
    await write(TAR_END);
    if (file !== undefined && temporary !== undefined && out !== undefined)
      await orRefuse(out, async () => {
        await file.sync();
        await file.close();
        await rename(temporary, out);
        await syncFolder(dirname(out));
      });
  } catch (error) {
    await file?.close().catch(() => {});
    if (temporary !== undefined) await rm(temporary, { force: true });
    if (stop.signal.aborted) throw new UsageError("stopped; nothing was written");
    if (error instanceof FormatError) throw new UsageError(`not exported: ${error.message} (quire verify says more)`);
    throw error;
  }
  process.stderr.write(`quire: ${files} files of ${found.record?.sessionId} exported${out ? ` to ${out}` : ""}\n`);
  return 0;
}

async function runImport(
  values: FlagValues<typeof importFlags>,
  options: { env: NodeJS.ProcessEnv; replace: boolean },
): Promise<number> {
  const namespace = await namespaceMeant(values, options.env);
  if (namespace === undefined) throw new UsageError("sessions import needs --tenant or --namespace: whose it will be");
  const input: Readable = values.in === undefined ? process.stdin : createReadStream(values.in);
  if (values.in === undefined && process.stdin.isTTY)
    throw new UsageError("import reads a tar: give --in FILE, or a pipe");
  const store = await openPlace(values, options.env, { mayBeNew: true });
  try {
    const { replace } = options;
    const into = { namespace, sessionId: values.as, replace, nowMs: Date.now() };
    const manifest = await importSession(store, readTar(input), into);
    if (manifest === undefined)
      throw new UsageError("there is a session of that id already, or it changed meanwhile: --as ID or --replace");
    process.stderr.write(`quire: ${manifest.sessionId} is stored with ${manifest.tokenCount} tokens\n`);
    return 0;
  } catch (error) {
    if (error instanceof FormatError) throw new UsageError(`not imported: ${error.message}`);
    if ((error as NodeJS.ErrnoException).code === "ENOENT") throw new UsageError(`--in: ${values.in} cannot be read`);
    throw error;
  } finally {
    input.destroy();
    await store.close();
  }
}
