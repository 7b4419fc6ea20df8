/** Where the tokenizers run: in this process, or in a bare workerd. */
import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import { rolldown } from "rolldown";
import { type Implementation, TokenizerSession } from "./session.ts";

/** A session somewhere; times of calls are taken outside of it. */
export interface Runtime {
  readonly name: string;
  open(implementation: Implementation, file: ArrayBuffer): Promise<void>;
  setTexts(texts: string[]): Promise<void>;
  encode(index: number, times: number): Promise<{ tokens: number; sum: number }>;
  close(): Promise<void>;
}

/** This process. */
export function nodeRuntime(): Runtime {
  const session = new TokenizerSession();
  return {
    name: `Node ${process.versions.node}`,
    open: async (implementation, file) => session.open(implementation, file),
    setTexts: async (texts) => session.setTexts(texts),
    encode: async (index, times) => session.encode(index, times),
    close: async () => {},
  };
}

const LISTEN_MS_MAX = 20_000;

/** The workerd that wrangler brings, on a free port. @throws {Error} when it does not come up. */
export async function workerdRuntime(): Promise<Runtime> {
  const require = createRequire(createRequire(import.meta.url).resolve("wrangler"));
  const program = (require("workerd") as { default: string }).default;
  const { version } = require("workerd/package.json") as { version: string };
  const folder = await mkdtemp(join(tmpdir(), "quire-bench-tokenizer-"));
  await bundle(join(folder, "worker.js"));
  await writeFile(join(folder, "config.capnp"), CONFIG);
  const child = spawn(program, ["serve", "config.capnp", "--control-fd=3"], {
    cwd: folder,
    stdio: ["ignore", "ignore", "inherit", "pipe"],
  });
  const gone = new Promise<void>((resolve) => child.once("close", () => resolve()));
  const close = async (): Promise<void> => {
    child.kill("SIGKILL");
    await gone;
    await rm(folder, { recursive: true, force: true });
  };
  try {
    const port = await listeningPort(child.stdio[3] as Readable, gone);
    return { name: `workerd ${version}`, ...remoteSession(`http://127.0.0.1:${port}`), close };
  } catch (error) {
    await close();
    throw error;
  }
}

const CONFIG = `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = (
    modules = [(name = "worker.js", esModule = embed "worker.js")],
    compatibilityDate = "2026-10-01",
  ))],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);
`;

async function bundle(file: string): Promise<void> {
  const build = await rolldown({ input: fileURLToPath(new URL("./worker.ts", import.meta.url)), platform: "browser" });
  await build.write({ file, format: "esm" });
  await build.close();
}

async function listeningPort(control: Readable, gone: Promise<void>): Promise<number> {
  const found = new Promise<number>((resolve, reject) => {
    let text = "";
    control.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      const port = /"event":"listen".*?"port":(\d+)/.exec(text)?.[1];
      if (port !== undefined) resolve(Number(port));
    });
    void gone.then(() => reject(new Error("workerd ended before it listened")));
    setTimeout(() => reject(new Error("workerd does not listen")), LISTEN_MS_MAX).unref();
  });
  return found;
}

function remoteSession(url: string): Omit<Runtime, "name" | "close"> {
  const post = async (path: string, body: ArrayBuffer | string = ""): Promise<unknown> => {
    // No connection is kept: while this process computes, it would not see workerd close it.
    const response = await fetch(url + path, { method: "POST", body, headers: { connection: "close" } });
    if (!response.ok) throw new Error(`workerd: ${path} failed with ${response.status}`);
    return response.json();
  };
  return {
    open: async (implementation, file) => void (await post(`/open?implementation=${implementation}`, file)),
    setTexts: async (texts) => void (await post("/texts", JSON.stringify(texts))),
    encode: async (index, times) =>
      (await post(`/encode?index=${index}&times=${times}`)) as { tokens: number; sum: number },
  };
}
