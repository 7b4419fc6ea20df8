/** What `wrangler deploy` would upload, offline. */
import { execFile } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { beforeAll, describe, expect, it } from "vitest";
import { devVars, localConfig } from "../../cli/edge-process.ts";
import { withTempFolder } from "../cli/run-quire.ts";
import { repositoryRoot } from "../style/source-tree.ts";

/** Free plans take 3 MB compressed; what starts within a second is far below. It is about 170 KiB now. */
const bundleGzipBytesMax = 200 * 1024;

const offline = {
  CI: "1",
  NO_COLOR: "1",
  CLOUDFLARE_CF_FETCH_ENABLED: "false",
  WRANGLER_HIDE_BANNER: "true",
  WRANGLER_SEND_ERROR_REPORTS: "false",
  WRANGLER_SEND_METRICS: "false",
};
const secretNames = ["QUIRE_API_KEYS", "QUIRE_TENANT_SALT", "QUIRE_ENGINE_KEY"];
const secrets = {
  apiKey: "qk-a",
  operatorKey: "qk-o",
  engineKey: "an-engine-key-of-enough-length",
  tenantSalt: "a-salt",
  s3AccessKeyId: "id",
  s3SecretAccessKey: "sec",
};
let output = "";
let bundle = "";
let uploadedNames: string[] = [];

beforeAll(async () => {
  await withTempFolder(async (folder) => {
    const wrangler = join(repositoryRoot, "node_modules/wrangler/bin/wrangler.js");
    const out = join(folder, "out");
    const env = { ...process.env, ...offline, WRANGLER_LOG_PATH: join(folder, "logs") };
    const run = promisify(execFile)(process.execPath, [wrangler, "deploy", "--dry-run", "--outdir", out], {
      cwd: repositoryRoot,
      env,
      timeout: 60_000,
    });
    output = (await run).stdout;
    uploadedNames = (await readdir(out)).filter((name) => !name.endsWith(".map") && name !== "README.md");
    bundle = await readFile(join(out, "index.js"), "utf8");
  });
}, 90_000);

describe("wrangler deploy --dry-run", () => {
  it("bundles the Worker and the playground, small enough to start at once", () => {
    expect(output).toContain("--dry-run: exiting now.");
    expect(uploadedNames).toHaveLength(4);
    expect(gzipSync(bundle).byteLength).toBeLessThan(bundleGzipBytesMax);
    expect(gzipSync(bundle).byteLength).toBeGreaterThan(bundleGzipBytesMax / 4);
  });

  it("binds every object that the Worker exports, the bucket and the settings", async () => {
    const entry = await readFile(join(repositoryRoot, "workers/index.ts"), "utf8");
    const classes = [...entry.matchAll(/^export \{ (\w+) \}/gm)].map(([, name]) => name);
    expect(classes.length).toBeGreaterThan(4);
    for (const name of classes) expect(output).toMatch(new RegExp(`\\(${name}\\) +Durable Object`));
    expect(output).toMatch(/env\.PAGES \(quire-pages\) +R2 Bucket/);
    const config = await readFile(join(repositoryRoot, "wrangler.toml"), "utf8");
    const migrated = [...config.matchAll(/^new_sqlite_classes = \[(.*)\]$/gm)].flatMap(([, names = ""]) =>
      names.split(",").map((name) => JSON.parse(name) as string),
    );
    expect(migrated.sort()).toEqual([...classes].sort());
  });

  it("knows its secrets by name and holds none", async () => {
    const config = await readFile(join(repositoryRoot, "wrangler.toml"), "utf8");
    const required = /^required = (\[.*\])$/m.exec(config)?.[1] ?? "[]";
    expect(JSON.parse(required)).toEqual(secretNames);
    for (const name of secretNames) expect(`${config}${output}`).not.toMatch(new RegExp(`${name}\\W*[=:]`));
    expect(bundle).not.toMatch(/quire-local-development|\bqk-[\w-]{20}/);
  });
});

describe("the configuration on one's own machine", () => {
  it("differs in the entry's path, the local bucket's keys, secrets and settings, and in nothing else", async () => {
    const config = await readFile(join(repositoryRoot, "wrangler.toml"), "utf8");
    const local = localConfig(config, secrets).split("\n");
    const changed = config.split("\n").flatMap((line, index) => (line === local[index] ? [] : [line.split(" ")[0]]));
    expect(changed).toEqual(["main", "accessKeyId", "secretAccessKey"]);
    const set = devVars(secrets, { policy: "quest" })
      .trim()
      .split("\n")
      .map((line) => line.split("=")[0] ?? "");
    // What .dev.vars may set: secrets, and settings that are declared.
    const settings = [...config.slice(config.indexOf("[vars]")).matchAll(/^(QUIRE_\w+) = /gm)].map(([, name]) => name);
    for (const name of set) expect([...secretNames, ...settings]).toContain(name);
    for (const name of secretNames) expect(set).toContain(name);
  });
});
