/** The edge in a bare workerd and an engine that costs nothing, registered with it. */
import { createHash, randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { startRegistration } from "../../engine/http/registration.ts";
import type { EngineHeartbeat } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { startWorkerd } from "../workerd.ts";
import { workerdConfig } from "../workerd-config.ts";
import type { EngineThreadData } from "./engine-thread.ts";

/** What the engine says. */
export interface EdgeStackOptions {
  tokenCount: number;
  gapMs: number;
  /** From the admission to the first token. */
  firstMs: number;
  /** The edge's V8 can be asked for what it holds: {@link EdgeStack.inspectorUrl}. */
  isInspected?: boolean;
}

/** A running stack, until it is closed. */
export interface EdgeStack {
  edgeUrl: string;
  engineUrl: string;
  apiKey: string;
  model: string;
  workerdVersion: string;
  workerdPid: number;
  /** Web socket of the edge's inspector, where it was asked for. */
  inspectorUrl?: string;
  /** When the engine sent each token of its last generation, milliseconds since 1970. */
  sentMs: Float64Array;
  close(): Promise<void>;
}

const model = "house-0";
/** The letter "a" to house-0, whose tokens are bytes. */
const tokenId = 97;
const modelFiles = ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"];

/**
 * Memory of an isolate on the platform. A bare workerd has no such bound: its V8 collects when it likes, and resident memory tells of that and not of what
 * the edge holds. Whatever needs more than this ends the run.
 */
const ISOLATE_MIB_MAX = 128;

/** Configuration of the whole edge in a bare workerd; its texts lie beside it (`keys.json`, `engine-key`, `limits.json`, `model.json`). */
export const edgeConfig = workerdConfig({
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

/** Starts both and waits until the edge knows the engine. @throws {Error} when it does not; nothing is left then. */
export async function openEdgeStack(options: EdgeStackOptions): Promise<EdgeStack> {
  const { tokenCount, gapMs, firstMs, isInspected = false } = options;
  const apiKey = `qk-${randomBytes(16).toString("hex")}`;
  const engineKey = randomBytes(32).toString("hex");
  const sentMs = new SharedArrayBuffer(8 * tokenCount);
  const thread = new Worker(new URL("./engine-thread.ts", import.meta.url), {
    workerData: { tokenCount, gapMs, firstMs, tokenId, sentMs } satisfies EngineThreadData,
  });
  const port = await new Promise<number>((resolve, reject) => {
    thread.once("message", resolve);
    thread.once("error", reject);
  });
  const engineUrl = `http://127.0.0.1:${port}`;
  const workerd = await startWorkerd({
    entry: fileURLToPath(new URL("../../test/workers/edge-worker.ts", import.meta.url)),
    config: edgeConfig,
    isInspected,
    files: {
      "keys.json": JSON.stringify({ [createHash("sha256").update(apiKey).digest("hex")]: { tenant: "bench" } }),
      "engine-key": engineKey,
      "limits.json": JSON.stringify({
        requests_per_minute: LIMITS.requestsPerMinuteMax,
        tokens_per_minute: LIMITS.tokensPerMinuteMax,
      }),
      "model.json": JSON.stringify(
        await edgeModelFiles(fileURLToPath(new URL(`../../weights/${model}`, import.meta.url))),
      ),
    },
    folders: ["disk"],
  });
  const beat = (): EngineHeartbeat => heartbeatOf(engineUrl);
  const registration = startRegistration({
    ...{ edgeUrl: workerd.url, key: engineKey, beat },
    ...{ log: () => undefined, onAway: () => undefined },
  });
  const close = async (): Promise<void> => {
    await registration.stop();
    await workerd.close();
    await thread.terminate();
  };
  try {
    await untilKnown(workerd.url, apiKey);
  } catch (error) {
    await close();
    throw error;
  }
  const stamps = new Float64Array(sentMs);
  return {
    edgeUrl: workerd.url,
    engineUrl,
    apiKey,
    model,
    workerdVersion: workerd.version,
    workerdPid: workerd.pid,
    ...(workerd.inspectorUrl === undefined ? {} : { inspectorUrl: workerd.inspectorUrl }),
    sentMs: stamps,
    close,
  };
}

/** What the edge reads of a model, by name. */
export async function edgeModelFiles(folder: string): Promise<Record<string, string>> {
  const read = (name: string) => readFile(join(folder, name), "utf8");
  return Object.fromEntries(await Promise.all(modelFiles.map(async (name) => [name, await read(name)])));
}

async function untilKnown(edgeUrl: string, apiKey: string): Promise<void> {
  for (const endMs = performance.now() + 20_000; performance.now() < endMs; ) {
    const response = await fetch(`${edgeUrl}/v1/models`, { headers: { authorization: `Bearer ${apiKey}` } });
    if ((await response.text()).includes(`"${model}"`)) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error("the edge does not know the engine");
}

function heartbeatOf(url: string): EngineHeartbeat {
  const counts = { runningCount: 0, queuedCount: 0, queueMax: 64, freeBlockCount: 100, blockCount: 100 };
  const names = { engineId: "bench", model, modelFingerprint: "bench", device: "none", numericsId: "bench-1" };
  return { ...counts, ...names, url, contextTokensMax: 32_768, draining: false };
}
