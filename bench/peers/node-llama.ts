/** The npm package node-llama-cpp as a peer: llama.cpp as a TypeScript user gets it, prebuilt. */
import { execFile } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { UsageError } from "../../cli/usage-error.ts";
import type { ChildCase } from "./node-llama-child.ts";
import type { Peer, PeerRow } from "./peer.ts";

const RUN_MS_MAX = 20 * 60 * 1000;

/** What is measured: the package in a `node_modules` folder, with a model. */
export interface NodeLlamaOptions {
  modulesPath: string;
  ggufPath: string;
  threads: number;
}

/** The repository's own `node_modules`, where the package is found if somebody installed it. */
export const ownModulesPath = fileURLToPath(new URL("../../node_modules", import.meta.url));

/** Undefined where the package is not in that folder. Each case runs in processes of its own, with flash attention off and on. */
export function nodeLlamaPeer({ modulesPath, ggufPath, threads }: NodeLlamaOptions): Peer | undefined {
  const packagePath = join(modulesPath, "node-llama-cpp");
  const manifestPath = join(packagePath, "package.json");
  if (!existsSync(manifestPath)) return undefined;
  const { version } = JSON.parse(readFileSync(manifestPath, "utf8")) as { version: string };
  const entryPath = join(packagePath, "dist", "index.js");
  const childPath = join(dirname(fileURLToPath(import.meta.url)), "node-llama-child.ts");
  return {
    name: `node-llama-cpp ${version}`,
    async measure(item, signal) {
      const rows: PeerRow[] = [];
      for (const flashAttention of [false, true]) {
        const asked: ChildCase = { ...item, entryPath, ggufPath, threads, flashAttention };
        rows.push(await runChild([childPath, JSON.stringify(asked)], signal));
      }
      return rows;
    },
  };
}

async function runChild(args: readonly string[], signal: AbortSignal): Promise<PeerRow> {
  try {
    const how = { signal, timeout: RUN_MS_MAX, maxBuffer: 2 ** 24 };
    const { stdout } = await promisify(execFile)(process.execPath, args, how);
    return JSON.parse(stdout.trim().split("\n").at(-1) ?? "") as PeerRow;
  } catch (error) {
    if (signal.aborted) throw error;
    const { stderr, message } = error as Error & { stderr?: string };
    const reason = (stderr || message).split("\n").find((line) => /^\s*(\w*Error|error)\b.*: /.test(line)) ?? message;
    throw new UsageError(`node-llama-cpp failed: ${reason.trim().slice(0, 300)}`);
  }
}
