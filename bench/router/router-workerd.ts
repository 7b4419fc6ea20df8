/** The prompt router in a bare workerd, as `wrangler deploy` would upload it, behind a Worker that asks it. */
import { execFile } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { type BareWorkerd, startWorkerd } from "../workerd.ts";
import { workerdConfig } from "../workerd-config.ts";

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
  const config = workerdConfig({ texts: {}, classes: [], workers: { PROMPT_ROUTER: [...bundle.keys()] } });
  return startWorkerd({ entry, config, files: Object.fromEntries(bundle), folders: ["disk"] });
}
