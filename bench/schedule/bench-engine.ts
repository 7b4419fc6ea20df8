/** A whole engine in this process, without HTTP and without a store worth the name: what is timed is scheduling and steps. */
import { setTimeout as sleep } from "node:timers/promises";
import { UsageError } from "../../cli/usage-error.ts";
import type { Ticket } from "../../engine/engine.ts";
import { type OpenedEngine, openEngine } from "../../engine/open.ts";
import { ENGINE_DEFAULTS, type EngineSettings, systemClock } from "../../engine/settings.ts";
import { BLOCK_TOKENS, type Device } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import type { ModelConfig, ModelRunner } from "../../models/contract.ts";
import { readModelConfig } from "../../models/model-files.ts";
import { openModel, openRunner } from "../../models/open.ts";
import type { EngineUsage, FinishReason, GenerateRequest, SelectionRequest, Span } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { SeededWeights } from "../make-shape/seeded-weights.ts";
import { seededRandom } from "../random.ts";
import { type ShapeName, shapeConfig } from "../shapes.ts";

/** What to open. */
export interface BenchEngineOptions {
  shape: ShapeName;
  /** A HF folder or GGUF file instead of the shape's seeded weights. */
  model?: string | undefined;
  seed: number;
  threads?: number | undefined;
  /** Tokens of all sequences that the pool has to hold at once. */
  poolTokens: number;
  settings?: Partial<EngineSettings>;
}

/** An engine and what it runs on. */
export interface BenchEngine extends OpenedEngine {
  config: ModelConfig;
  runner: ModelRunner;
  device: Device;
  close(): Promise<void>;
}

/** Open slots beyond one per running sequence: a prefill step writes into several. */
const SPARE_SLOTS = 2 * (LIMITS.stepRowsMax / BLOCK_TOKENS) + 4;

/** Opens device, model and engine; the caller closes them. */
export async function openBenchEngine(options: BenchEngineOptions): Promise<BenchEngine> {
  const { shape, model, seed, threads, poolTokens } = options;
  const config = model === undefined ? shapeConfig(shape) : await readModelConfig(model);
  const device = await openDevice({ kind: "wasm", ...(threads === undefined ? {} : { threads }) });
  try {
    const blockCount = Math.ceil(poolTokens / BLOCK_TOKENS) + LIMITS.engineRunningMax;
    const kv = {
      encoding: "int8",
      summaryKinds: ["min-max"],
      blockCount: blockCount * config.layerCount,
      openSlotCount: LIMITS.engineRunningMax + SPARE_SLOTS,
      summarySlotCount: blockCount,
    } as const;
    const how = { device, encoding: "int8", kv, rowsMax: LIMITS.stepRowsMax } as const;
    const runner =
      model === undefined
        ? await openRunner({ ...how, config, source: new SeededWeights(config, seed) })
        : await openModel({ ...how, folder: model });
    const settings = {
      ...ENGINE_DEFAULTS,
      ...{ engineId: "bench", modelId: "bench", contextTokensMax: config.contextTokensMax },
      ...options.settings,
    };
    const store = new MemoryStore();
    const opened = openEngine({ runner, numericsId: device.numericsId, store, settings, clock: systemClock, log() {} });
    return {
      ...opened,
      ...{ config, runner, device },
      async close() {
        await opened.engine.stop(0);
        await device.close();
      },
    };
  } catch (error) {
    await device.close();
    throw error;
  }
}

/** One request as a benchmark makes it: greedy, without stop tokens, so that every reply has the length that was asked for. */
export interface BenchRequest {
  tokens: ArrayLike<number>;
  maxTokens: number;
  selection: SelectionRequest;
  namespace?: string;
}

/** What a request saw; times in milliseconds of the process's clock. */
export interface BenchTurn {
  submittedMs: number;
  ids: number[];
  tokensMs: number[];
  endMs: number;
  reason: FinishReason;
  usage: EngineUsage;
  /** How the turn's tokens were computed: the next turn of the session names them. */
  spans: Span[];
}

/** A request under way. */
export interface RunningTurn {
  /** What has come so far. */
  readonly tokensMs: readonly number[];
  readonly ended: Promise<BenchTurn>;
  cancel(): void;
}

/** Submits a request. @throws {QuireError} when it is refused. */
export function startTurn(
  { engine }: Pick<BenchEngine, "engine">,
  what: BenchRequest & Partial<Omit<GenerateRequest, "tokens">>,
): RunningTurn {
  const submittedMs = performance.now();
  const ids: number[] = [];
  const tokensMs: number[] = [];
  const { tokens, ...fields } = what;
  const ended = Promise.withResolvers<BenchTurn>();
  const ticket: Ticket = engine.submit(greedyRequest({ ...fields, tokens: idsToBytes(tokens) }), {
    token(id) {
      ids.push(id);
      tokensMs.push(performance.now());
    },
    done: (reason, usage, spans) =>
      ended.resolve({ submittedMs, ids, tokensMs, endMs: performance.now(), reason, usage, spans }),
    failed: ended.reject,
  });
  return { tokensMs, ended: ended.promise, cancel: () => ticket.cancel() };
}

function greedyRequest(
  fields: Partial<GenerateRequest> & Pick<GenerateRequest, "tokens" | "maxTokens" | "selection">,
): GenerateRequest {
  return {
    version: 1,
    requestId: `bench-${crypto.randomUUID()}`,
    model: "bench",
    namespace: "00000000000be4c4",
    turnStart: 0,
    spans: [],
    stopTokens: [],
    sampling: {
      ...{ temperature: 0, topP: 1, topK: 0, minP: 0, seed: 0 },
      ...{ frequencyPenalty: 0, presencePenalty: 0, repetitionPenalty: 1, logitBias: [] },
    },
    ...fields,
  };
}

/** Waits, or until the user stops the run; never rejects. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => undefined);
}

/** Seeded token ids of a model's vocabulary. */
export function randomTokens(config: ModelConfig, seed: number, count: number): number[] {
  const random = seededRandom(seed, 7);
  return Array.from({ length: count }, () => Math.floor(random() * config.vocabularySize));
}

/** Nearest rank. @throws {UsageError} for a run so short that there is nothing to rank. */
export function percentileMs(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const found = sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)];
  if (found === undefined) throw new UsageError("the run was too short to measure anything");
  return found;
}

/** Times between neighbours in `[fromMs, toMs)`, of all turns. */
export function gapsBetween(turns: readonly { tokensMs: readonly number[] }[], fromMs: number, toMs: number): number[] {
  return turns.flatMap(({ tokensMs }) => {
    const inside = tokensMs.filter((ms) => ms >= fromMs && ms < toMs);
    return inside.slice(1).map((ms, i) => ms - inside[i]!);
  });
}
