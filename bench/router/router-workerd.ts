/** The prompt router in a bare workerd, as `wrangler deploy` would upload it, behind a Worker that asks it. */
import { execFile } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { type BareWorkerd, startWorkerd } from "../workerd.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const BUNDLE_MS_MAX = 120_000;

/** What would be uploaded: files by name, the entry first. */
export async function bundleRouter(): Promise<Map<string, Uint8Array>> {
  const folder = await mkdtemp(join(tmpdir(), "quire-router-bundle-"));
  try {
    const wrangler = join(dirname(createRequire(import.meta.url).resolve("wrangler/package.json")), "bin/wrangler.js");
    const config = join(ROOT, "workers/prompt-router/wrangler.toml");
    const out = join(folder, "out");
    await promisify(execFile)(process.execPath, [wrangler, "deploy", "--dry-run", "-c", config, "--outdir", out], {
      cwd: ROOT,
      timeout: BUNDLE_MS_MAX,
      env: {
        ...process.env,
        CI: "1",
        CLOUDFLARE_CF_FETCH_ENABLED: "false",
        WRANGLER_SEND_ERROR_REPORTS: "false",
        WRANGLER_SEND_METRICS: "false",
        WRANGLER_LOG_PATH: join(folder, "logs"),
      },
    });
    const names = (await readdir(out)).filter((name) => /\.(js|wasm|onnx)$/.test(name));
    names.sort((a, b) => Number(b === "index.js") - Number(a === "index.js"));
    return new Map(await Promise.all(names.map(async (name) => [name, await readFile(join(out, name))] as const)));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Starts workerd with `test/workers/router-worker.ts`, bound to the router. */
export async function startRouter(bundle: ReadonlyMap<string, Uint8Array>): Promise<BareWorkerd> {
  const entry = join(ROOT, "test/workers/router-worker.ts");
  return startWorkerd({ entry, config: configOf([...bundle.keys()]), files: Object.fromEntries(bundle) });
}

function configOf(names: readonly string[]): string {
  const kinds: Readonly<Record<string, string>> = { js: "esModule", wasm: "wasm", onnx: "data" };
  const modules = names.map((name) => `(name = "${name}", ${kinds[name.split(".").at(-1) ?? ""]} = embed "${name}")`);
  return `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = (
      modules = [(name = "worker.js", esModule = embed "worker.js")],
      compatibilityDate = "2026-10-01",
      bindings = [(name = "PROMPT_ROUTER", service = "router")],
    )),
    (name = "router", worker = (modules = [${modules.join(", ")}], compatibilityDate = "2026-10-01")),
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);
`;
}
