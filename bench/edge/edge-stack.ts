/** The edge in a bare workerd and an engine that costs nothing, registered with it. */
import { randomBytes } from "node:crypto";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { startRegistration } from "../../engine/http/registration.ts";
import type { EngineHeartbeat } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { startBareEdge } from "./bare-edge.ts";
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
  const workerd = await startBareEdge({
    tenants: [[apiKey, { tenant: "bench" }]],
    limits: { requests_per_minute: LIMITS.requestsPerMinuteMax, tokens_per_minute: LIMITS.tokensPerMinuteMax },
    modelFolder: fileURLToPath(new URL(`../../weights/${model}`, import.meta.url)),
    ...{ engineKey, isInspected },
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
