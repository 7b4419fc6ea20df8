/** An engine of a benchmark's own: `quire serve` as a user starts it, on a free port. */
import { fileURLToPath } from "node:url";
import { type Child, startChild } from "../../cli/child-process.ts";
import { ENGINE_ENVIRONMENT, ENGINE_NODE_FLAGS } from "../../cli/engine-start.ts";
import { UsageError } from "../../cli/usage-error.ts";
import type { BenchContext } from "../bench.ts";

/** What to start. */
export interface EngineProcessOptions {
  /** Flags of `quire serve`. */
  args: readonly string[];
  engineKey: string;
  logPath: string;
  /** Without it a free one. */
  port?: number | undefined;
  /** Its V8 can be asked to collect: {@link EngineProcess.inspectorUrl}. */
  isInspected?: boolean;
  context: Pick<BenchContext, "env" | "signal">;
}

/** A running engine. */
export interface EngineProcess {
  url: string;
  /** Web socket of its V8's inspector, where it was asked for. */
  inspectorUrl?: string | undefined;
  child: Child;
}

const repositoryRoot = fileURLToPath(new URL("../..", import.meta.url));
const program = `${repositoryRoot}/bin/quire.mjs`;
const readyMsMax = 180_000;

/**
 * Starts one and waits until it serves. Undefined when the user stopped it; nothing is left of it then.
 * @throws {UsageError} with the last words of an engine that did not come up; nothing is left of it.
 */
export async function startEngineProcess(options: EngineProcessOptions): Promise<EngineProcess | undefined> {
  const { args, engineKey, logPath, port = 0, isInspected, context } = options;
  const ready = Promise.withResolvers<string>();
  const inspector = isInspected ? ["--inspect=127.0.0.1:0"] : [];
  let inspectorUrl: string | undefined;
  const child = startChild({
    name: "the engine",
    program: process.execPath,
    args: [...ENGINE_NODE_FLAGS, ...inspector, program, "serve", `--port=${port}`, "--host=127.0.0.1", ...args],
    cwd: repositoryRoot,
    env: { ...ENGINE_ENVIRONMENT, ...context.env, QUIRE_ENGINE_KEY: engineKey },
    logPath,
    isWarning: () => true,
    onWarning(line) {
      inspectorUrl ??= /^Debugger listening on (ws:\S+)$/.exec(line)?.[1];
      const url = readyUrl(line);
      if (url !== undefined) ready.resolve(url);
    },
  });
  try {
    const url = await waitForReady(child, ready.promise, context.signal);
    if (url !== undefined) return { url, inspectorUrl, child };
  } catch (error) {
    child.kill();
    await child.ended;
    throw error;
  }
  child.kill();
  await child.ended;
  return undefined;
}

function readyUrl(line: string): string | undefined {
  return /^quire: engine \S+ is ready on (http:\S+)$/.exec(line)?.[1];
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
