/** A model on the CPU device with room for one sequence, driven without the engine: what is timed is the step alone. */

import { UsageError } from "../../cli/usage-error.ts";
import {
  BLOCK_TOKENS,
  type Device,
  type KvEncoding,
  type SelectionPlan,
  type StepSlice,
  type SummaryKind,
} from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import type { ModelConfig, ModelRunner, SequenceResult } from "../../models/contract.ts";
import { readModelConfig } from "../../models/model-files.ts";
import { openModel, openRunner } from "../../models/open.ts";
import { activationBytes, poolUnitBytes, weightBytes } from "../../models/plan-memory.ts";
import { SeededWeights } from "../make-shape/seeded-weights.ts";
import { type ShapeName, shapeConfig } from "../shapes.ts";

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
  seed: number;
  threads?: number | undefined;
  kvEncoding: KvEncoding;
  summaryKinds: readonly SummaryKind[];
  /** Longest context that will be reached. */
  contextTokens: number;
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

/** The model, its one sequence, and what its memory holds. */
export interface BenchModel {
  config: ModelConfig;
  device: Device;
  runner: ModelRunner;
  /** Tokens that the pool holds. */
  capacityTokens: number;
  memory: { weightBytes: number; activationBytes: number; poolBytes: number };
  blockTable(): { blockIds: Int32Array; blockCapacity: number; summarySlots: Int32Array };
  step(step: BenchStep): Promise<SequenceResult>;
  close(): Promise<void>;
}

/**
 * Opens device and model; the caller closes them.
 * @throws {UsageError} when the context does not fit into the device's memory or the model's positions; says how many tokens would.
 */
export async function openBenchModel(options: BenchModelOptions): Promise<BenchModel> {
  const { shape, model, seed, threads, kvEncoding, summaryKinds, memoryBytesMax } = options;
  const config = model === undefined ? shapeConfig(shape) : await readModelConfig(model);
  const device = await openDevice({
    kind: "wasm",
    ...(threads === undefined ? {} : { threads }),
    ...(memoryBytesMax === undefined ? {} : { memoryBytesMax }),
  });
  try {
    const blockCapacity = Math.ceil(options.contextTokens / BLOCK_TOKENS) + 1;
    assertContextFits(config, options, device.report.memoryBytesMax);
    const kv = {
      encoding: kvEncoding,
      summaryKinds: [...summaryKinds],
      blockCount: blockCapacity * config.layerCount,
      openSlotCount: OPEN_SLOTS,
      summarySlotCount: blockCapacity,
    };
    const how = { device, encoding: "int8", kv, rowsMax: CHUNK_ROWS, sampledMax: 1 } as const;
    const runner =
      model === undefined
        ? await openRunner({ ...how, config, source: new SeededWeights(config, seed) })
        : await openModel({ ...how, folder: model });
    return new SingleSequence({ config, device, runner, blockCapacity });
  } catch (error) {
    await device.close();
    throw error;
  }
}

/**
 * How many tokens of one sequence fit into a device beside weights, activations and what `fillRandom` takes; whole blocks, 0 where the
 * weights do not fit.
 */
export function tokensThatFit(
  config: ModelConfig,
  { kvEncoding, summaryKinds }: Pick<BenchModelOptions, "kvEncoding" | "summaryKinds">,
  memoryBytesMax: number,
): number {
  const unit = poolUnitBytes(config, kvEncoding, summaryKinds);
  const fixedBytes =
    weightBytes(config, "int8") +
    activationBytes(config, CHUNK_ROWS, 1) +
    OPEN_SLOTS * unit.openSlotBytes +
    CHUNK_ROWS * (config.headCount + FILL_ROW_SETS * config.kvHeadCount) * config.headDim * 4;
  const tokenBytes = unit.tokenBytes + config.headDim * 4;
  const room = memoryBytesMax * (1 - SPARE_SHARE) - fixedBytes;
  return Math.max(0, Math.floor(room / tokenBytes / BLOCK_TOKENS) - 1) * BLOCK_TOKENS;
}

function assertContextFits(config: ModelConfig, options: BenchModelOptions, memoryBytesMax: number): void {
  const { contextTokens } = options;
  const fits = Math.min(config.contextTokensMax, tokensThatFit(config, options, memoryBytesMax));
  if (contextTokens <= fits) return;
  const unit = poolUnitBytes(config, options.kvEncoding, options.summaryKinds);
  throw new UsageError(
    `a context of ${contextTokens} tokens does not fit: at most ${fits} do (${mebibytes(memoryBytesMax)} of memory, ` +
      `${mebibytes(weightBytes(config, "int8"))} of weights, ${(unit.tokenBytes / 1024).toFixed(1)} KiB of KV and summaries a token, ` +
      `${config.contextTokensMax} positions)`,
  );
}

function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(0)} MiB`;
}

class SingleSequence implements BenchModel {
  readonly config: ModelConfig;
  readonly device: Device;
  readonly runner: ModelRunner;
  readonly capacityTokens: number;
  readonly #blockCapacity: number;
  readonly #blockIds: Int32Array;
  readonly #summarySlots: Int32Array;

  constructor(parts: { config: ModelConfig; device: Device; runner: ModelRunner; blockCapacity: number }) {
    const { config, device, runner, blockCapacity } = parts;
    this.config = config;
    this.device = device;
    this.runner = runner;
    this.capacityTokens = blockCapacity * BLOCK_TOKENS;
    this.#blockCapacity = blockCapacity;
    this.#blockIds = Int32Array.from({ length: config.layerCount * blockCapacity }, (_, i) => i);
    this.#summarySlots = Int32Array.from({ length: blockCapacity }, (_, i) => i);
  }

  get memory() {
    const { spec, blockBytes, openSlotBytes, summaryBytes } = this.runner.pool;
    const slotBytes = spec.summaryKinds.length * summaryBytes;
    const poolBytes =
      spec.blockCount * blockBytes + spec.openSlotCount * openSlotBytes + spec.summarySlotCount * slotBytes;
    return {
      weightBytes: weightBytes(this.config, "int8"),
      activationBytes: activationBytes(this.config, CHUNK_ROWS, 1),
      poolBytes,
    };
  }

  blockTable() {
    return { blockIds: this.#blockIds, blockCapacity: this.#blockCapacity, summarySlots: this.#summarySlots };
  }

  async step({ position, tokens, plan, groupTokens, samples, run = {} }: BenchStep): Promise<SequenceResult> {
    const rowCount = tokens.length;
    const groupCount = plan.kind === "dense" ? 1 : Math.ceil(rowCount / groupTokens);
    const slice = {
      ...this.blockTable(),
      position,
      rowCount,
      openSlots: openSlotsFor(position, rowCount),
      groupStarts: Int32Array.from({ length: groupCount }, (_, group) => group * groupTokens),
      plan,
      ...run,
    };
    const sample = samples ? { sample: greedyAt(position + rowCount) } : {};
    const [result] = await this.runner.step([{ slice, tokens, exact: false, ...sample }]);
    return result!;
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

function greedyAt(position: number) {
  return {
    ...{ temperature: 0, topK: 0, topP: 1, minP: 0 },
    ...{ frequencyPenalty: 0, presencePenalty: 0, repetitionPenalty: 1 },
    ...{ seenIds: new Uint32Array(), seenCounts: new Uint32Array() },
    ...{ biasIds: new Uint32Array(), biasValues: new Float32Array() },
    ...{ seed: 0, position },
  };
}
