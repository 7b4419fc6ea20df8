/** The whole edge in a bare workerd, with tenants, limits and a model of the caller's. */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type BareWorkerd, startWorkerd } from "../workerd.ts";
import { workerdConfig } from "../workerd-config.ts";

const modelFiles = ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"];

/**
 * Memory of an isolate on the platform. A bare workerd has no such bound: its V8 collects when it likes, and resident memory tells of that and not of what
 * the edge holds. Whatever needs more than this ends the run.
 */
const ISOLATE_MIB_MAX = 128;

/** Configuration of the whole edge in a bare workerd; its texts lie beside it (`keys.json`, `engine-key`, `limits.json`, `model.json`). */
const edgeConfig = workerdConfig({
  texts: {
    QUIRE_API_KEYS: { file: "keys.json" },
    QUIRE_ENGINE_KEY: { file: "engine-key" },
    QUIRE_TENANT_SALT: "salt",
    QUIRE_LIMITS: { file: "limits.json" },
    MODEL_FILES: { file: "model.json" },
  },
  classes: ["SessionLog", "SessionExpiry", "Fleet", "TenantIndex", "KeyRing", "TenantLimiter"],
  heapMiBMax: ISOLATE_MIB_MAX,
});

/** What to start. */
export interface BareEdgeOptions {
  /** API keys, and what each is (as in the secret `QUIRE_API_KEYS`, where it stands under its hash). */
  tenants: readonly (readonly [apiKey: string, row: { tenant: string; scopes?: readonly string[] }])[];
  /** What it signs its calls of engines with. */
  engineKey: string;
  /** As in the variable `QUIRE_LIMITS`. */
  limits: Readonly<Record<string, number>>;
  /** HF folder whose tokenizer it has. */
  modelFolder: string;
  /** Its V8 can be asked for what it holds, and to collect it. */
  isInspected?: boolean;
}

/** Starts it; engines register with it. @throws {Error} when it does not come up; nothing is left of it. */
export async function startBareEdge(options: BareEdgeOptions): Promise<BareWorkerd> {
  const { tenants, engineKey, limits, modelFolder, isInspected = false } = options;
  const rows = tenants.map(([key, row]) => [createHash("sha256").update(key).digest("hex"), row] as const);
  return startWorkerd({
    entry: fileURLToPath(new URL("../../test/workers/edge-worker.ts", import.meta.url)),
    config: edgeConfig,
    isInspected,
    files: {
      "keys.json": JSON.stringify(Object.fromEntries(rows)),
      "engine-key": engineKey,
      "limits.json": JSON.stringify(limits),
      "model.json": JSON.stringify(await modelTexts(modelFolder)),
    },
    folders: ["disk"],
  });
}

/** What the edge reads of a model, by name. */
async function modelTexts(folder: string): Promise<Record<string, string>> {
  const read = (name: string) => readFile(join(folder, name), "utf8");
  return Object.fromEntries(await Promise.all(modelFiles.map(async (name) => [name, await read(name)])));
}
