/** Starts wrangler's local R2, which speaks S3, in a folder of its own and on a free port. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, dirname, join, resolve } from "node:path";
import { findPort } from "../../cli/ports.ts";

const READY_MS_MAX = 25_000;
const STOP_MS_MAX = 5_000;
const FIXTURES = ["r2.wrangler.toml", "r2-worker.mjs"];

/** A running local R2. */
export interface LocalR2 {
  endpoint: string;
  bucket: string;
  region: string;
  accessKeyId: string;
  secretAccessKey: string;
  stop(): Promise<void>;
}

/** Starts it and waits until it answers; the credentials are those of `fixtures/r2.wrangler.toml`. */
export async function startLocalR2(): Promise<LocalR2> {
  // Between finding a free port and using it somebody else may take it.
  return startOnFreePort().catch(() => startOnFreePort());
}

async function startOnFreePort(): Promise<LocalR2> {
  const folder = await mkdtemp(join(tmpdir(), "quire-local-r2-"));
  for (const name of FIXTURES) await cp(join(import.meta.dirname, "fixtures", name), join(folder, name));
  const port = await findPort({ host: "127.0.0.1", port: 0, flag: "--port" });
  const wrangler = resolve(import.meta.dirname, "../../node_modules/wrangler/bin/wrangler.js");
  const options = [
    "dev",
    "-c",
    "r2.wrangler.toml",
    "--persist-to",
    "state",
    "--ip",
    "127.0.0.1",
    "--inspector-port",
    "0",
  ];
  const child = spawn(process.execPath, [wrangler, ...options, "--port", String(port)], {
    cwd: folder,
    env: environment(folder),
    stdio: ["ignore", "pipe", "pipe"],
    // A group of its own, so that workerd ends with it.
    detached: true,
  });
  const endWithUs = (): void => signalGroup(child, "SIGKILL");
  process.once("exit", endWithUs);
  const stop = async (): Promise<void> => {
    await endGroup(child);
    process.off("exit", endWithUs);
    await rm(folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  };
  try {
    await untilReady(child, `http://127.0.0.1:${port}/`);
  } catch (error) {
    await stop();
    throw error;
  }
  return {
    endpoint: `http://127.0.0.1:${port}/cdn-cgi/local/r2/s3`,
    bucket: "quire-test",
    region: "auto",
    accessKeyId: "quire-test-key",
    secretAccessKey: "quire-test-secret",
    stop,
  };
}

function environment(folder: string): NodeJS.ProcessEnv {
  return {
    ...process.env,
    PATH: `${dirname(process.execPath)}${delimiter}${process.env.PATH ?? ""}`,
    CI: "1",
    WRANGLER_SEND_METRICS: "false",
    WRANGLER_SEND_ERROR_REPORTS: "false",
    WRANGLER_LOG_PATH: join(folder, "wrangler.log"),
    CLOUDFLARE_CF_FETCH_ENABLED: "false",
    X_LOCAL_OBSERVABILITY: "false",
  };
}

async function untilReady(child: ChildProcess, url: string): Promise<void> {
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on("data", (chunk) => {
      output = (output + String(chunk)).slice(-4_000);
    });
  }
  const endMs = performance.now() + READY_MS_MAX;
  while (performance.now() < endMs && !hasEnded(child)) {
    const answer = await fetch(url, { signal: AbortSignal.timeout(10_000) }).catch(() => undefined);
    if (answer?.ok === true && (await answer.text()) === "ready") return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`the local R2 did not start:\n${output}`);
}

async function endGroup(child: ChildProcess): Promise<void> {
  if (hasEnded(child)) return;
  const closed = once(child, "close");
  signalGroup(child, "SIGTERM");
  const killer = setTimeout(() => signalGroup(child, "SIGKILL"), STOP_MS_MAX);
  await closed;
  clearTimeout(killer);
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid !== undefined && !hasEnded(child)) process.kill(-child.pid, signal);
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}
