/** A stack of the benchmark's own: started as a user starts it, in a temporary folder, and gone afterwards. */
import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Child, startChild } from "../../cli/child-process.ts";
import { UsageError } from "../../cli/usage-error.ts";
import type { BenchContext } from "../bench.ts";

/** A running target of this run's own. */
export interface OwnStack {
  url: string;
  /** The edge's API key, or the engine's key. */
  key: string;
  /** Ends it, in order, and removes its folder; at once when the user insists. */
  stop(): Promise<void>;
}

/** What to start. */
export interface OwnStackOptions {
  kind: "edge" | "engine";
  /** Flags of the engine, as `quire start` and `quire serve` take them. */
  engineArgs: readonly string[];
  context: BenchContext;
}

const repositoryRoot = fileURLToPath(new URL("../..", import.meta.url));
const readyMsMax = 180_000;
/** Longer than `quire start` gives its own children. */
const graceMs = 45_000;

/**
 * Starts `quire start` or `quire serve` on free ports and waits until it serves. Undefined when the user stopped it.
 * @throws {UsageError} with the last words of a stack that did not come up; nothing is left of it.
 */
export async function startOwnStack({ kind, engineArgs, context }: OwnStackOptions): Promise<OwnStack | undefined> {
  const folder = await mkdtemp(join(tmpdir(), "quire-bench-"));
  const engineKey = randomBytes(32).toString("hex");
  const ready = Promise.withResolvers<string>();
  const place =
    kind === "edge"
      ? ["start", "--port=0", "--engine-port=0", "--host=127.0.0.1", `--data=${join(folder, "data")}`]
      : ["serve", "--port=0", "--host=127.0.0.1", `--store=fs:${join(folder, "pages")}`];
  const child = startChild({
    name: kind === "edge" ? "the stack" : "the engine",
    program: process.execPath,
    args: [join(repositoryRoot, "bin/quire.mjs"), ...place, ...engineArgs],
    cwd: repositoryRoot,
    env: { ...context.env, ...(kind === "engine" && { QUIRE_ENGINE_KEY: engineKey }) },
    logPath: join(folder, "output.log"),
    isWarning: (line) => readyUrl(line) !== undefined,
    onWarning: (line) => ready.resolve(readyUrl(line) ?? ""),
  });
  const stop = async (): Promise<void> => {
    void context.insisted.then(() => child.kill());
    await child.stop(graceMs);
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  };
  try {
    const url = await waitForReady(child, ready.promise, context.signal);
    if (url === undefined) {
      await stop();
      return undefined;
    }
    return { url, key: kind === "edge" ? await readApiKey(folder) : engineKey, stop };
  } catch (error) {
    // The logs go with the folder, so what they say is shown now.
    for (const line of await lastLogLines(folder)) context.progress(`  ${line}`);
    await stop();
    throw error;
  }
}

const shownLinesMax = 12;

async function lastLogLines(folder: string): Promise<string[]> {
  const paths = [join(folder, "data", "logs", "engine.log"), join(folder, "output.log")];
  for (const path of paths) {
    const text = await readFile(path, "utf8").catch(() => "");
    if (text !== "") return text.trimEnd().split("\n").slice(-shownLinesMax);
  }
  return [];
}

function readyUrl(line: string): string | undefined {
  return /(?:^Quire is ready on|^quire: engine \S+ is ready on) (http:\S+)$/.exec(line)?.[1];
}

async function waitForReady(child: Child, ready: Promise<string>, signal: AbortSignal): Promise<string | undefined> {
  const stopped = Promise.withResolvers<undefined>();
  const onAbort = (): void => stopped.resolve(undefined);
  if (signal.aborted) onAbort();
  signal.addEventListener("abort", onAbort, { once: true });
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(failure(child, "did not come up in time")), readyMsMax);
  const ended = child.ended.then((how) => {
    throw failure(child, how);
  });
  // Whichever of them loses the race is not unhandled.
  ended.catch(() => undefined);
  try {
    return await Promise.race([ready, stopped.promise, ended, late.promise]);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
  }
}

function failure(child: Child, how: string): UsageError {
  const words = child.lastLines().at(-1);
  return new UsageError(`${child.name} ${how}${words === undefined ? "" : `; its last words: ${words}`}`);
}

async function readApiKey(folder: string): Promise<string> {
  const secrets: unknown = JSON.parse(await readFile(join(folder, "data", "secrets.json"), "utf8"));
  return (secrets as { apiKey: string }).apiKey;
}
