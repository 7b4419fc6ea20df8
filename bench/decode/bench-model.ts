/** A model on a device with room for one sequence, or a few of one length, driven without the engine: what is timed is the step alone. */

import { UsageError } from "../../cli/usage-error.ts";
import {
  BLOCK_TOKENS,
  type Device,
  type KvEncoding,
  type MatrixEncoding,
  type SelectionPlan,
  type StepSlice,
  type SummaryKind,
} from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import type { ModelConfig, ModelRunner, SequenceResult } from "../../models/contract.ts";
import { LlamaRunner } from "../../models/llama.ts";
import { readModelConfig } from "../../models/model-files.ts";
import { openModel, openRunner, type RunnerOptions } from "../../models/open.ts";
import { activationBytes, poolUnitBytes, weightBytes } from "../../models/plan-memory.ts";
import { QuireError } from "../../protocol/errors.ts";
import { noiseWeights } from "../gpu/noise.ts";
import { openGpu } from "../gpu/open-gpu.ts";
import { SeededWeights } from "../make-shape/seeded-weights.ts";
import { type ShapeName, shapeConfig } from "../shapes.ts";
import { sequenceTable } from "./sequence-table.ts";

/** Rows of a prefill chunk, as the engine takes them. */
export const CHUNK_ROWS = 512;
/** A chunk that begins inside a block touches one block more, and decoding goes on beside it. */
const OPEN_SLOTS = CHUNK_ROWS / BLOCK_TOKENS + 2;
/** Distinct sets of rows that `fillRandom` keeps; positions turn the keys of each, so that no two blocks are equal. */
export const FILL_ROW_SETS = 7;
/** Kept free for tables and scores of a step. */
const SPARE_SHARE = 1 / 32;

/** What to open. */
export interface BenchModelOptions {
  shape: ShapeName;
  /** A HF folder or GGUF file instead of the shape's seeded weights. */
  model?: string | undefined;
  /** Default wasm. On webgpu a shape's weights are noise that is made there. */
  device?: "wasm" | "webgpu";
  /** Default int8. */
  weights?: MatrixEncoding;
  /** Sequences, each with room for the longest context; default 1. */
  batch?: number;
  seed: number;
  threads?: number | undefined;
  kvEncoding: KvEncoding;
  summaryKinds: readonly SummaryKind[];
  /** Longest context that will be reached. */
  contextTokens: number;
  /** Tokens whose blocks the pool holds, where that is to be less (its summaries are of all). */
  poolTokens?: number | undefined;
  memoryBytesMax?: number | undefined;
}

/** Rows to run: tokens at absolute positions, attending to everything before them. */
export interface BenchStep {
  position: number;
  tokens: Uint32Array;
  plan: SelectionPlan;
  groupTokens: number;
  samples: boolean;
  /** Rows that go on with a choice, or are asked for theirs (`RunChoices`). */
  run?: Pick<StepSlice, "voters" | "choice" | "reportChoice">;
}

/** The model, its sequences, and what its memory holds. */
export interface BenchModel {
  config: ModelConfig;
  device: Device;
  runner: ModelRunner;
  /** Tokens that the pool holds of each sequence. */
  capacityTokens: number;
  memory: { weightBytes: number; activationBytes: number; poolBytes: number };
  /** Where a sequence's KV is; default the first. */
  blockTable(sequence?: number): { blockIds: Int32Array; blockCapacity: number; summarySlots: Int32Array };
  /** One step of the first sequence. */
  step(step: BenchStep): Promise<SequenceResult>;
  /** One step of the first sequences together, rows of each in order. */
  stepAll(steps: readonly BenchStep[]): Promise<SequenceResult[]>;
  close(): Promise<void>;
}

/**
 * Opens device and model; the caller closes them.
 * @throws {UsageError} when the context does not fit into the device's memory or the model's positions; says how many tokens would.
 */
export async function openBenchModel(options: BenchModelOptions): Promise<BenchModel> {
  const { shape, model, seed, kvEncoding, summaryKinds, weights: encoding = "int8", batch = 1 } = options;
  const config = model === undefined ? shapeConfig(shape) : await readModelConfig(model);
  const device = await openBenchDevice(options);
  try {
    const blockCapacity = Math.ceil(options.contextTokens / BLOCK_TOKENS) + 1;
    const poolBlocks = options.poolTokens === undefined ? blockCapacity : Math.ceil(options.poolTokens / BLOCK_TOKENS);
    assertContextFits(config, options, device.report.memoryBytesMax);
    const kv = {
      encoding: kvEncoding,
      summaryKinds: [...summaryKinds],
      blockCount: batch * poolBlocks * config.layerCount,
      openSlotCount: OPEN_SLOTS * batch,
      summarySlotCount: batch * blockCapacity,
    };
    const how = { device, encoding, kv, rowsMax: CHUNK_ROWS, sampledMax: batch };
    const runner = await openRunnerOf(how, { config, seed, model });
    await device.allocated?.();
    return new BenchSequences({ config, device, runner, blockCapacity, batch, encoding });
  } catch (error) {
    await device.close();
    throw error instanceof QuireError ? new UsageError(error.message) : error;
  }
}

function openBenchDevice({ device = "wasm", threads, memoryBytesMax }: BenchModelOptions): Promise<Device> {
  if (device === "webgpu") return openGpu({ memoryBytesMax });
  return openDevice({
    kind: "wasm",
    ...(threads === undefined ? {} : { threads }),
    ...(memoryBytesMax === undefined ? {} : { memoryBytesMax }),
  });
}

/** A model's files, seeded weights from the host, or noise from the GPU. */
async function openRunnerOf(
  how: RunnerOptions & { sampledMax: number },
  { config, seed, model }: { config: ModelConfig; seed: number; model: string | undefined },
): Promise<ModelRunner> {
  if (model !== undefined) return openModel({ ...how, folder: model });
  const { device, encoding, kv } = how;
  if (!(device instanceof WebGpuDevice)) return openRunner({ ...how, config, source: new SeededWeights(config, seed) });
  const { layerCount, kvHeadCount, headDim } = config;
  return new LlamaRunner({
    ...{ device, config, rowsMax: how.rowsMax, sampledMax: how.sampledMax, fingerprint: `noise-${seed}` },
    weights: await noiseWeights({ device, seed }, config, encoding),
    pool: device.kvPool({ layerCount, kvHeadCount, headDim, ...kv }),
  });
}

/**
 * How many tokens of each sequence fit into a device beside weights, activations and what `fillRandom` takes; whole blocks, 0 where the
 * weights do not fit.
 */
export function tokensThatFit(
  config: ModelConfig,
  {
    kvEncoding,
    summaryKinds,
    weights = "int8",
    batch = 1,
  }: Pick<BenchModelOptions, "kvEncoding" | "summaryKinds" | "weights" | "batch">,
  memoryBytesMax: number,
): number {
  const unit = poolUnitBytes(config, kvEncoding, summaryKinds);
  const fixedBytes =
    weightBytes(config, weights) +
    activationBytes(config, CHUNK_ROWS, batch) +
    batch * OPEN_SLOTS * unit.openSlotBytes +
    CHUNK_ROWS * (config.headCount + FILL_ROW_SETS * config.kvHeadCount) * config.headDim * 4;
  const tokenBytes = unit.tokenBytes + config.headDim * 4;
  const room = memoryBytesMax * (1 - SPARE_SHARE) - fixedBytes;
  return Math.max(0, Math.floor(room / batch / tokenBytes / BLOCK_TOKENS) - 1) * BLOCK_TOKENS;
}

function assertContextFits(config: ModelConfig, options: BenchModelOptions, memoryBytesMax: number): void {
  const { contextTokens } = options;
  const fits = Math.min(config.contextTokensMax, tokensThatFit(config, options, memoryBytesMax));
  if (contextTokens <= fits) return;
  const unit = poolUnitBytes(config, options.kvEncoding, options.summaryKinds);
  throw new UsageError(
    `a context of ${contextTokens} tokens does not fit: at most ${fits} do (${mebibytes(memoryBytesMax)} of memory, ` +
      `${mebibytes(weightBytes(config, options.weights ?? "int8"))} of weights, ${(unit.tokenBytes / 1024).toFixed(1)} KiB of KV and summaries a token, ` +
      `${config.contextTokensMax} positions)`,
  );
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(0)} MiB`;
}

class BenchSequences implements BenchModel {
  readonly config: ModelConfig;
  readonly device: Device;
  readonly runner: ModelRunner;
  readonly capacityTokens: number;
  readonly #tables: readonly ReturnType<BenchModel["blockTable"]>[];
  readonly #encoding: MatrixEncoding;

  constructor(
    parts: Pick<BenchModel, "config" | "device" | "runner"> & {
      blockCapacity: number;
      batch: number;
      encoding: MatrixEncoding;
    },
  ) {
    const { config, device, runner, blockCapacity, batch } = parts;
    this.config = config;
    this.device = device;
    this.runner = runner;
    this.capacityTokens = blockCapacity * BLOCK_TOKENS;
    const { layerCount } = config;
    this.#tables = Array.from({ length: batch }, (_, sequence) =>
      sequenceTable({ sequence, layerCount, blockCapacity }),
    );
    this.#encoding = parts.encoding;
  }

  get memory() {
    const { spec, blockBytes, openSlotBytes, summaryBytes } = this.runner.pool;
    const slotBytes = spec.summaryKinds.length * summaryBytes;
    const poolBytes =
      spec.blockCount * blockBytes + spec.openSlotCount * openSlotBytes + spec.summarySlotCount * slotBytes;
    return {
      weightBytes: weightBytes(this.config, this.#encoding),
      activationBytes: activationBytes(this.config, CHUNK_ROWS, this.runner.sampledMax),
      poolBytes,
    };
  }

  blockTable(sequence = 0) {
    return this.#tables[sequence]!;
  }

  async step(step: BenchStep): Promise<SequenceResult> {
    return (await this.stepAll([step]))[0]!;
  }

  stepAll(steps: readonly BenchStep[]): Promise<SequenceResult[]> {
    return this.runner.step(steps.map((step, sequence) => this.#sequenceStep(step, sequence)));
  }

  #sequenceStep({ position, tokens, plan, groupTokens, samples, run = {} }: BenchStep, sequence: number) {
    const rowCount = tokens.length;
    const groupCount = plan.kind === "dense" ? 1 : Math.ceil(rowCount / groupTokens);
    const slice = {
      ...this.blockTable(sequence),
      position,
      rowCount,
      openSlots: openSlotsFor(position, rowCount).map((slot) => sequence * OPEN_SLOTS + slot),
      groupStarts: Int32Array.from({ length: groupCount }, (_, group) => group * groupTokens),
      plan,
      ...run,
    };
    const sample = samples ? { sample: greedyAt(position + rowCount) } : {};
    return { slice, tokens, exact: false, ...sample };
  }

  close(): Promise<void> {
    return this.device.close();
  }
}

/** The open slots of the logical blocks that some rows touch: block b always has slot b modulo their number. */
export function openSlotsFor(position: number, rowCount: number): Int32Array {
  const first = Math.floor(position / BLOCK_TOKENS);
  const last = Math.floor((position + rowCount - 1) / BLOCK_TOKENS);
  return Int32Array.from({ length: last - first + 1 }, (_, i) => (first + i) % OPEN_SLOTS);
}

/** Sampling of the token at a position: the most likely. */
export function greedyAt(position: number) {
  return {
    ...{ temperature: 0, topK: 0, topP: 1, minP: 0 },
    ...{ frequencyPenalty: 0, presencePenalty: 0, repetitionPenalty: 1 },
    ...{ seenIds: new Uint32Array(), seenCounts: new Uint32Array() },
    ...{ biasIds: new Uint32Array(), biasValues: new Float32Array() },
    ...{ seed: 0, position },
  };
}
