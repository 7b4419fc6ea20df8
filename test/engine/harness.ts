/** An engine on the reference device with the tiny model, and a client that keeps a session's log as the edge does. */

import { randomUUID } from "node:crypto";
import { expect, onTestFinished } from "vitest";
import type { Ticket } from "../../engine/engine.ts";
import { type OpenEngineOptions, type OpenedEngine, openEngine } from "../../engine/open.ts";
import { type Clock, ENGINE_DEFAULTS, type EngineSettings, systemClock } from "../../engine/settings.ts";
import type { Device, SummaryKind } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import type { ModelRunner } from "../../models/contract.ts";
import { openRunner } from "../../models/open.ts";
import type { EngineUsage, FinishReason, GenerateRequest, SelectionRequest, Span } from "../../protocol/generate.ts";
import { idsToBytes } from "../../protocol/ids.ts";
import { poolFormOf } from "../../storage/block-encoding.ts";
import type { PageStore } from "../../storage/contract.ts";
import type { StoredEncoding } from "../../storage/geometry.ts";
import { MemoryStore } from "../../storage/memory-store.ts";
import { TINY_CONFIG, TinyWeights, uniform } from "./tiny-model.ts";

/** The tenant of most tests. */
export const NAMESPACE = "0123456789abcdef";

/** An opened engine with its device and its log. */
export interface TestEngine extends OpenedEngine {
  runner: ModelRunner;
  device: Device;
  logged: { event: string; fields: Record<string, unknown> }[];
  /** As `kill -9`: nothing is flushed. */
  kill(): Promise<void>;
}

/** What tests vary. */
export interface TestEngineOptions {
  store: PageStore;
  /** Default reference; the CPU's on one thread. */
  device?: "reference" | "wasm";
  /** How pages are stored; the pool is what that asks for. Default int8. */
  pages?: StoredEncoding;
  summaryKinds?: readonly SummaryKind[];
  /** Default 2. */
  layerCount?: number;
  /** Default 8. */
  headDim?: number;
  blockCount?: number;
  /** Default: as many as blocks. */
  summarySlotCount?: number;
  openSlotCount?: number;
  rowsMax?: number;
  settings?: Partial<EngineSettings>;
  clock?: Clock;
  onDeviceLost?: OpenEngineOptions["onDeviceLost"];
  diskCache?: OpenEngineOptions["diskCache"];
}

/** Opens an engine; segments of 64 tokens, commits without delay. */
export async function openTestEngine(options: TestEngineOptions): Promise<TestEngine> {
  const device = await openDevice({ kind: options.device ?? "reference", threads: 1 });
  const rowsMax = options.rowsMax ?? 256;
  const { layerCount = TINY_CONFIG.layerCount, headDim = TINY_CONFIG.headDim } = options;
  const config = { ...TINY_CONFIG, layerCount, headDim };
  const blockCount = options.blockCount ?? config.layerCount * 64;
  const runner = await openRunner({
    config,
    source: new TinyWeights(config),
    device,
    encoding: "f32",
    kv: {
      ...poolFormOf(options.pages ?? "int8"),
      summaryKinds: options.summaryKinds ?? ["min-max", "mean-deviation"],
      blockCount,
      openSlotCount: options.openSlotCount ?? 24,
      summarySlotCount: options.summarySlotCount ?? blockCount,
    },
    rowsMax,
  });
  const logged: TestEngine["logged"] = [];
  const settings: EngineSettings = {
    ...ENGINE_DEFAULTS,
    engineId: "test-engine",
    modelId: "tiny",
    contextTokensMax: TINY_CONFIG.contextTokensMax,
    stepRowsMax: rowsMax,
    segmentTokens: 64,
    // Summaries come in layer by layer, small as they are.
    summaryFirstBytesMax: 1,
    manifestCommitMs: 0,
    ...options.settings,
  };
  // The line that every request has is left out: what remains is what went wrong.
  const log = (event: string, fields: Record<string, unknown>) => {
    if (event !== "request.ended") logged.push({ event, fields });
  };
  const opened = openEngine({
    runner,
    numericsId: device.numericsId,
    store: options.store,
    settings,
    clock: options.clock ?? systemClock,
    log,
    onDeviceLost: options.onDeviceLost,
    diskCache: options.diskCache,
  });
  return { ...opened, runner, device, logged, kill: () => device.close() };
}

/** As {@link openTestEngine}, for the running test: it is killed when that is over, after `atEnd` has looked at it. */
export async function openForTest(
  options: Partial<TestEngineOptions> = {},
  atEnd: (engine: TestEngine) => Promise<void> = async () => {},
): Promise<TestEngine> {
  const engine = await openTestEngine({ store: new MemoryStore(), ...options });
  onTestFinished(async () => {
    await atEnd(engine);
    await engine.kill();
  });
  return engine;
}

/** Waits until it is idle: sequences hold nothing then, and once what idles has left, nobody does. */
export async function expectNothingHeld(engine: TestEngine): Promise<void> {
  await untilIdle(engine);
  engine.evictIdle();
  expect(engine.engine.status).toMatchObject({ heldBlockCount: 0, heldSlotCount: 0 });
}

/** What one generation gave. */
export interface TurnResult {
  ids: number[];
  /** Of each token, where the request asked for them: a far sharper oracle than the ids. */
  logprobs: number[];
  usage: EngineUsage;
  reason: FinishReason;
  spans: Span[];
}

/** A greedy, dense request for the tiny model, with a fresh id; `fields` overrides. */
export function request(fields: Partial<GenerateRequest> & { tokens: Uint8Array }): GenerateRequest {
  return {
    version: 1,
    requestId: `request-${randomUUID()}`,
    model: "tiny",
    namespace: NAMESPACE,
    turnStart: 0,
    spans: [],
    maxTokens: 16,
    stopTokens: [],
    sampling: {
      temperature: 0,
      topP: 1,
      topK: 0,
      minP: 0,
      seed: 1,
      frequencyPenalty: 0,
      presencePenalty: 0,
      repetitionPenalty: 1,
      logitBias: [],
    },
    selection: { policy: "dense", budgetTokens: 0, exact: true },
    ...fields,
  };
}

/** Submits and waits for the end; `ids` grows while the turn runs. */
export function generate(
  engine: TestEngine,
  fields: GenerateRequest,
  onTicket?: (ticket: Ticket, ids: readonly number[]) => void,
): Promise<TurnResult> {
  return new Promise((resolve, reject) => {
    const ids: number[] = [];
    const logprobs: number[] = [];
    const ticket = engine.engine.submit(fields, {
      token: (id, logprob) => {
        ids.push(id);
        if (logprob) logprobs.push(logprob.logprob);
      },
      done: (reason, usage, spans) => resolve({ ids, logprobs, usage: structuredClone(usage), reason, spans }),
      failed: reject,
    });
    onTicket?.(ticket, ids);
  });
}

/** The truth of one session, as the edge's log holds it. */
export class TestSession {
  readonly id: string;
  readonly selection: SelectionRequest;
  ids: number[] = [];
  spans: Span[] = [];

  constructor(id: string, selection: SelectionRequest) {
    this.id = id;
    this.selection = selection;
  }

  async turn(
    engine: TestEngine,
    prompt: readonly number[],
    fields: Partial<GenerateRequest> = {},
    onTicket?: (ticket: Ticket) => void,
  ): Promise<TurnResult> {
    const turnStart = this.ids.length;
    const result = await generate(
      engine,
      request({
        session: { id: this.id },
        tokens: idsToBytes([...this.ids, ...prompt]),
        turnStart,
        spans: this.spans,
        selection: this.selection,
        ...fields,
      }),
      onTicket,
    );
    this.ids.push(...prompt, ...result.ids);
    this.spans = [...this.spans, ...result.spans.filter((span) => span.end > turnStart)];
    return result;
  }

  fork(id: string): TestSession {
    const copy = new TestSession(id, this.selection);
    copy.ids = [...this.ids];
    copy.spans = [...this.spans];
    return copy;
  }
}

/** Seeded token ids of the tiny vocabulary. */
export function randomIds(seed: number, count: number): number[] {
  const next = uniform(seed);
  return Array.from({ length: count }, () => Math.floor(next() * TINY_CONFIG.vocabularySize));
}

/** Waits until the engine holds nothing, or fails. */
export async function untilIdle(engine: TestEngine): Promise<void> {
  for (let tries = 0; tries < 500; tries++) {
    const { runningCount, queuedCount } = engine.engine.status;
    if (runningCount + queuedCount === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error(`engine is not idle: ${JSON.stringify(engine.engine.status)}`);
}
