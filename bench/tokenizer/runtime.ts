/** Where the tokenizers run: in this process, or in a bare workerd. */
import { fileURLToPath } from "node:url";
import { startWorkerd } from "../workerd.ts";
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

/** The workerd that wrangler brings, on a free port. @throws {Error} when it does not come up. */
export async function workerdRuntime(): Promise<Runtime> {
  const entry = fileURLToPath(new URL("./worker.ts", import.meta.url));
  const { version, url, close } = await startWorkerd({ entry, config: CONFIG });
  return { name: `workerd ${version}`, ...remoteSession(url), close };
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
