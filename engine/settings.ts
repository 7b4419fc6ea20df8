/** What an engine can be told. Every limit has a default here or in `protocol/limits.ts`. */
import type { Calibration } from "../models/selection/calibration.ts";
import type { HeadProfile } from "../models/selection/head-profile.ts";
import type { ResumeMode } from "../protocol/generate.ts";
import { LIMITS } from "../protocol/limits.ts";

/**
 * What is set aside when a request is admitted: blocks for the longest it may become, or for its prompt, and more as it grows (then a sequence may be
 * suspended while others need its memory).
 */
export type ReserveMode = "full" | "prompt";

/** Limits and defaults of one engine. */
export interface EngineSettings {
  /** Names the engine to the edge and in logs. */
  engineId: string;
  /** Model id as requests name it. */
  modelId: string;
  /** Sequences that decode together. */
  runningMax: number;
  /** Requests that wait; one more is refused with `queue_full`. */
  queueMax: number;
  /** A request is refused when its prompt would have to wait longer, as far as can be told. */
  waitMsMax: number;
  /**
   * Selection budget of turns that come when the wait is over `degradeWaitMs`, where they ask for more; undefined: never less than asked.
   * Their usage says so (`budgetTokensAsked`), and so does the provenance of their KV.
   */
  degradedBudgetTokens?: number;
  degradeWaitMs: number;
  /**
   * Reading speed: while a prompt waits, streams that are two seconds of reading ahead of it give way (their readers notice nothing); undefined: none
   * does, since a program reads as fast as it gets.
   */
  paceTokensPerS?: number;
  /** Rows of one step. */
  stepRowsMax: number;
  /** Prefill chunks shrink until a step stays below this. */
  stepMsTarget: number;
  /** Beside decodes: prefill makes their steps at most so many times longer ... */
  interTokenGrowthMax: number;
  /** ... or as long as this, if that is more. */
  interTokenMsMin: number;
  /** Longest context (prompt and reply) of one request. */
  contextTokensMax: number;
  /** Tokens of one segment; a multiple of 64. */
  segmentTokens: number;
  /** Summaries of so many tokens become one object; a multiple of `segmentTokens`. Engines that share sessions agree on it, or find each other's summaries later. */
  summaryRunTokens: number;
  /** Of a summary object, the first layers are read at once: one at least, and as many as fit into so many bytes. */
  summaryFirstBytesMax: number;
  /** What `auto` stands for on this model; undefined: nobody has measured it. */
  calibration?: Calibration;
  /** Which KV heads of this model retrieve; undefined: nobody has measured it. */
  heads?: HeadProfile;
  /** How sessions come back from the page store, for requests that do not say. */
  resume: ResumeMode;
  /** What streams in behind a resumed turn may take of the store, bytes a second. */
  fillBytesPerS: number;
  /**
   * Default mode: how long the prompt of a resumed turn waits for missing pages before it goes on without them, counted from its admission; at least
   * half of it is left when its summaries are there.
   */
  missWaitMs: number;
  /** Host memory for blocks that left the device pool; taken as they leave. 0: they are found in the store, or computed again. */
  hostPoolBytes: number;
  /** Without host memory `full`, whatever is said here. */
  reserve: ReserveMode;
  storeGetMsMax: number;
  storePutMsMax: number;
  storeConcurrency: number;
  /** Reads that take longer than 95 of 100 are asked for a second time, at most this share of all reads; 0: never. */
  hedgeShareMax: number;
  /** An object (other than a manifest) that was absent is not asked for again for so long. */
  absentMs: number;
  /** Segment bytes that may wait to be written; beyond it the work is dropped and done at the end of the turn. */
  writeBehindBytesMax: number;
  manifestCommitMs: number;
  turnMsMax: number;
}

/** What an engine does when it is told nothing. */
export const ENGINE_DEFAULTS: Omit<EngineSettings, "engineId" | "modelId" | "contextTokensMax"> = {
  runningMax: LIMITS.engineRunningMax,
  queueMax: LIMITS.engineQueueMax,
  waitMsMax: LIMITS.waitMsMax,
  degradeWaitMs: 5_000,
  stepRowsMax: LIMITS.stepRowsMax,
  stepMsTarget: LIMITS.stepMsMax * 0.6,
  interTokenGrowthMax: 1.5,
  interTokenMsMin: 12,
  segmentTokens: 256,
  summaryRunTokens: 4096,
  summaryFirstBytesMax: 1024 * 1024,
  resume: "lazy",
  fillBytesPerS: 64 * 1024 * 1024,
  missWaitMs: 300,
  hostPoolBytes: 256 * 1024 * 1024,
  reserve: "prompt",
  storeGetMsMax: LIMITS.storeGetMsMax,
  storePutMsMax: LIMITS.storePutMsMax,
  storeConcurrency: LIMITS.storeConcurrency,
  hedgeShareMax: 0.05,
  absentMs: 2_000,
  writeBehindBytesMax: LIMITS.writeBehindBytesMax,
  manifestCommitMs: LIMITS.manifestCommitMs,
  turnMsMax: LIMITS.turnMsMax,
};

/** Time, injected so that the engine runs in a simulation. */
export interface Clock {
  nowMs(): number;
  /** Milliseconds since 1970, for what is written down. */
  wallMs(): number;
  sleep(ms: number): Promise<void>;
  /** Lets I/O run for at least so long. */
  breathe(ms: number): Promise<void>;
  /** A signal that fires after so long: what a remote call must keep to. */
  deadline(ms: number): AbortSignal;
}

/** The machine's monotonic clock. */
export const systemClock: Clock = {
  nowMs: () => performance.now(),
  wallMs: () => Date.now(),
  sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
  async breathe(ms) {
    const untilMs = performance.now() + ms;
    do await new Promise<void>((resolve) => setImmediate(resolve));
    while (performance.now() < untilMs);
  },
  deadline: (ms) => AbortSignal.timeout(ms),
};

/** Structured log of an engine: an event name and plain fields, never prompt text. */
export type EngineLog = (event: string, fields: Record<string, unknown>) => void;
