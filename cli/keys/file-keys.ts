/** Keys in a file: a table as the Worker's secret `QUIRE_API_KEYS` holds it, for `wrangler secret put QUIRE_API_KEYS < FILE`. */
import { readFile, stat } from "node:fs/promises";
import { QuireError } from "../../protocol/errors.ts";
import { StoreError } from "../../storage/contract.ts";
import { FolderLock } from "../../storage/fs-lock.ts";
import { replaceFile } from "../../storage/replace-file.ts";
import { type KeyRecord, keyIdOf, keyTableJson, readKeyTable } from "../../workers/auth/key-record.ts";
import { assertWritable, orRefuse } from "../output-file.ts";
import { UsageError } from "../usage-error.ts";
import type { KeyStore } from "./key-store.ts";

/** How long others that change the same file are waited for. */
const LOCK_MS_MAX = 10_000;

/**
 * The keys of a file; it is made when the first one is added, readable by its owner only. Whoever asks for its keys before is told that it is not there.
 * Changes are made one at a time, by a lock beside the file (`FILE.lock`), so that none undoes another.
 */
export function fileKeys(path: string, nowS: () => number): KeyStore {
  const change = async <T>(
    edit: (table: Map<string, KeyRecord>) => T,
    read: (path: string) => Promise<Map<string, KeyRecord>> = readTable,
  ): Promise<T> => {
    // What cannot be read or written is refused before anything is made beside it.
    await read(path);
    await assertWritable(path);
    return whileLocked(path, async () => {
      const table = await read(path);
      const result = edit(table);
      // Whole or not at all, and read back before it is in place: a table that cannot be read locks everybody out.
      const text = tableText(table);
      parseTable(path, text);
      await orRefuse(path, () => replaceFile(path, text));
      return result;
    });
  };
  return {
    add: (hash, given) =>
      change((table) => {
        const record = { ...given, id: keyIdOf(hash), createdS: nowS() };
        table.set(hash, record);
        return record;
      }, readTableIfAny),
    list: async (tenant) => {
      const records = [...(await readTable(path)).values()];
      return records
        .filter((record) => tenant === undefined || record.tenant === tenant)
        .sort((a, b) => (a.id < b.id ? -1 : 1));
    },
    get: async (id) => find(await readTable(path), id)[1],
    expire: (id, expiresS) =>
      change((table) => {
        const [hash, known] = find(table, id);
        const record = { ...known, expiresS: Math.min(expiresS, known.expiresS ?? expiresS) };
        table.set(hash, record);
        return record;
      }),
    revoke: (id) => change((table) => void table.delete(find(table, id)[0])),
  };
}

async function whileLocked<T>(path: string, work: () => Promise<T>): Promise<T> {
  const refuse = (why: string): never => {
    throw new UsageError(`${path} cannot be changed (${why})`);
  };
  let lock: FolderLock;
  try {
    lock = new FolderLock(`${path}.lock`);
  } catch (error) {
    if (error instanceof StoreError)
      refuse(`its lock ${path}.lock cannot be opened: ${(error.cause as Error | undefined)?.message ?? error.code}`);
    throw error;
  }
  const signal = AbortSignal.timeout(LOCK_MS_MAX);
  try {
    return await lock.run(signal, work);
  } catch (error) {
    return error === signal.reason
      ? refuse(`others have changed it for ${LOCK_MS_MAX / 1_000} s`)
      : Promise.reject(error);
  } finally {
    await lock.close();
  }
}

/** A line per key: readable, and short enough for some twenty of them in a secret of 5 KB. */
function tableText(table: ReadonlyMap<string, KeyRecord>): string {
  const lines = Object.entries(keyTableJson(table)).map(([hash, record]) => `"${hash}":${JSON.stringify(record)}`);
  return `{\n${lines.join(",\n")}\n}\n`;
}

function find(table: ReadonlyMap<string, KeyRecord>, id: string): [string, KeyRecord] {
  const found = [...table].find(([, record]) => record.id === id);
  if (!found) throw new UsageError(`there is no key ${id}`);
  return found;
}

async function readTable(path: string): Promise<Map<string, KeyRecord>> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    throw new UsageError(`${path} cannot be read (${(error as NodeJS.ErrnoException).code})`);
  }
  return parseTable(path, text);
}

async function readTableIfAny(path: string): Promise<Map<string, KeyRecord>> {
  const isThere = (await stat(path).catch(() => undefined)) !== undefined;
  return isThere ? readTable(path) : new Map();
}

function parseTable(path: string, text: string): Map<string, KeyRecord> {
  try {
    return new Map(readKeyTable(text));
  } catch (error) {
    if (error instanceof QuireError) throw new UsageError(`${path}: ${error.message}`);
    throw new UsageError(`${path} is no table of keys`);
  }
}
