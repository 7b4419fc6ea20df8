/** The edge on this machine: wrangler dev with settings generated into the data folder. */
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { assert } from "../protocol/assert.ts";
import type { SelectionRequest } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";
import { type Child, startChild } from "./child-process.ts";
import { apiKeyTable, type DataFolder, type Secrets } from "./data-folder.ts";

const root = fileURLToPath(new URL("..", import.meta.url));

/** The bucket of `wrangler.toml`. */
export const bucketName = "quire-pages";

/** Selection of requests that name none; absent fields are the Worker's own defaults. */
export interface DefaultSelection {
  policy?: SelectionRequest["policy"] | undefined;
  budgetTokens?: number | undefined;
  exact?: boolean | undefined;
}

/** Where the edge listens and what it is told. */
export interface EdgeOptions {
  data: DataFolder;
  host: string;
  port: number;
  inspectorPort: number;
  selection: DefaultSelection;
  /** Further settings of the Worker, by name (`workers/env.ts`). */
  vars?: Readonly<Record<string, string>> | undefined;
  onWarning(line: string): void;
}

/** Writes the settings and starts wrangler; it answers `/healthz` a few seconds later. */
export async function startEdge(options: EdgeOptions): Promise<Child> {
  const { data, host, port } = options;
  const config = await readFile(join(root, "wrangler.toml"), "utf8");
  await data.writePrivate("wrangler.toml", localConfig(config, data.secrets));
  await data.writePrivate(".dev.vars", devVars(data.secrets, options.selection, options.vars));
  // What wrangler bundled for a process that was killed.
  await rm(data.at(".wrangler"), { recursive: true, force: true });
  const wrangler = join(root, "node_modules/wrangler/bin/wrangler.js");
  const listen = ["--ip", host, "--port", String(port), "--inspector-port", String(options.inspectorPort)];
  const state = ["--config", data.at("wrangler.toml"), "--persist-to", data.at("edge")];
  return startChild({
    name: "edge",
    program: process.execPath,
    args: [join(root, "cli/guard.mjs"), process.execPath, wrangler, "dev", ...state, ...listen],
    cwd: data.path,
    env: edgeEnvironment(data),
    logPath: data.at("logs", "edge.log"),
    onWarning: options.onWarning,
    isNoise: (line) => /POST \/v1\/engines\/heartbeat 2\d\d/.test(line),
    // Which engine failed a turn is in the log: here it is one of this machine, whose end is told by itself.
    isWarning: (line) => /\[(WARNING|ERROR)\]|^\s*(Uncaught|\w*Error:)/.test(line) && !line.includes('"engine.failed"'),
  });
}

/** Offline and quiet: no metrics, no crash reports, no request traces, no look-up of account data. */
function edgeEnvironment(data: DataFolder): NodeJS.ProcessEnv {
  return {
    ...process.env,
    CI: "1",
    NO_COLOR: "1",
    CLOUDFLARE_CF_FETCH_ENABLED: "false",
    WRANGLER_HIDE_BANNER: "true",
    WRANGLER_LOG_PATH: data.at("logs", "wrangler"),
    WRANGLER_REGISTRY_PATH: data.at("registry"),
    WRANGLER_SEND_ERROR_REPORTS: "false",
    WRANGLER_SEND_METRICS: "false",
    // wrangler's own page on what is stored shows every session and every page to whoever can open a connection, without a key.
    X_LOCAL_EXPLORER: "false",
    X_LOCAL_OBSERVABILITY: "false",
  };
}

/** `wrangler.toml` of the repository with the entry's absolute path and this data folder's object store key. */
export function localConfig(config: string, secrets: Secrets): string {
  const main = join(root, "workers/index.ts");
  return [
    ["main", main],
    ["accessKeyId", secrets.s3AccessKeyId],
    ["secretAccessKey", secrets.s3SecretAccessKey],
  ].reduce((text, [name, value]) => setTomlString(text, String(name), String(value)), config);
}

function setTomlString(toml: string, name: string, value: string): string {
  const pattern = new RegExp(`^${name} = ".*"$`, "gm");
  assert(toml.match(pattern)?.length === 1, `wrangler.toml has exactly one line ${name} = "..."`);
  return toml.replace(pattern, () => `${name} = ${JSON.stringify(value)}`);
}

/** Whoever starts an edge on a machine of their own has nobody to be protected from. */
const ownMachineLimits = {
  requests_per_minute: LIMITS.requestsPerMinuteMax,
  tokens_per_minute: LIMITS.tokensPerMinuteMax,
  turns_concurrent: LIMITS.turnsConcurrentMax,
};

/** The Worker's secrets in the format of `.dev.vars`; JSON stands in single quotes, which it never contains. */
export function devVars(
  secrets: Secrets,
  selection: DefaultSelection,
  vars: Readonly<Record<string, string>> = {},
): string {
  const lines = [
    `QUIRE_API_KEYS='${apiKeyTable(secrets)}'`,
    `QUIRE_TENANT_SALT=${secrets.tenantSalt}`,
    `QUIRE_ENGINE_KEY=${secrets.engineKey}`,
    `QUIRE_LIMITS='${JSON.stringify(ownMachineLimits)}'`,
  ];
  const { policy, budgetTokens, exact } = selection;
  const json = JSON.stringify({ policy, budget_tokens: budgetTokens, exact });
  if (json !== "{}") lines.push(`QUIRE_SELECTION='${json}'`);
  for (const [name, value] of Object.entries(vars)) lines.push(`${name}=${value}`);
  return `${lines.join("\n")}\n`;
}
