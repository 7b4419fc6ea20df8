/** Drives a model runner as an engine would, for one sequence at a time and with the simplest bookkeeping. */
import { BLOCK_TOKENS, NOT_RESIDENT, type Sample, type SampleRow, type SelectionPlan } from "../../kernels/contract.ts";
import type { ModelRunner, SequenceResult, SequenceStep } from "../../models/contract.ts";

/** Attends to everything. */
export const DENSE: SelectionPlan = { kind: "dense" };
/** Rows of a query group in prefill, as the policies say. */
const GROUP_TOKENS = 16;
/** No penalties, no bias, no noise. */
export const GREEDY: Omit<SampleRow, "row" | "position"> = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  frequencyPenalty: 0,
  presencePenalty: 0,
  repetitionPenalty: 1,
  seenIds: new Uint32Array(0),
  seenCounts: new Uint32Array(0),
  biasIds: new Uint32Array(0),
  biasValues: new Float32Array(0),
  seed: 0,
};

/** Pool counts that hold `sequences` conversations of `contextTokens` each, for steps of up to `rowsMax` rows. */
export function poolCounts(options: {
  layerCount: number;
  contextTokens: number;
  rowsMax: number;
  sequences?: number;
}) {
  const sequences = options.sequences ?? 1;
  const blocks = Math.ceil(options.contextTokens / BLOCK_TOKENS);
  return {
    blockCount: sequences * blocks * options.layerCount,
    summarySlotCount: sequences * blocks,
    openSlotCount: sequences * openSlotsEach(options.rowsMax),
  };
}

function openSlotsEach(rowsMax: number): number {
  return Math.ceil(rowsMax / BLOCK_TOKENS) + 2;
}

/** How a conversation runs; what is absent is dense, not exact, and the first of its pool. */
export interface ConversationOptions {
  contextTokens: number;
  plan?: SelectionPlan;
  chunkTokens?: number;
  exact?: boolean;
  /** Which part of the pool is this conversation's. */
  index?: number;
}

/** One sequence: its log, its block table, and the results of its steps. Owns a fixed part of the pool. */
export class Conversation {
  readonly tokens: number[] = [];
  /** `[layerCount][blockCapacity]`; tests punch holes into it. */
  readonly blockIds: Int32Array;
  readonly results: SequenceResult[] = [];
  readonly blockCapacity: number;
  plan: SelectionPlan;
  exact: boolean;
  chunkTokens: number;
  readonly #runner: ModelRunner;
  readonly #summarySlots: Int32Array;
  readonly #index: number;
  #turnStart = 0;

  constructor(runner: ModelRunner, options: ConversationOptions) {
    const { layerCount } = runner.config;
    this.#runner = runner;
    this.#index = options.index ?? 0;
    this.plan = options.plan ?? DENSE;
    this.exact = options.exact ?? false;
    this.chunkTokens = options.chunkTokens ?? Math.min(128, runner.rowsMax);
    this.blockCapacity = Math.ceil(options.contextTokens / BLOCK_TOKENS);
    const firstBlock = this.#index * this.blockCapacity;
    this.#summarySlots = Int32Array.from({ length: this.blockCapacity }, (_, block) => firstBlock + block);
    this.blockIds = Int32Array.from({ length: layerCount * this.blockCapacity }, (_, i) => firstBlock * layerCount + i);
  }

  /** The step that appends `ids`. */
  step(ids: ArrayLike<number>, options: { sample: boolean; topLogprobs?: number }): SequenceStep {
    const position = this.tokens.length;
    const rowCount = ids.length;
    const firstBlock = Math.floor(position / BLOCK_TOKENS);
    const lastBlock = Math.floor((position + rowCount - 1) / BLOCK_TOKENS);
    const openEach = openSlotsEach(this.#runner.rowsMax);
    const slots = Array.from({ length: lastBlock - firstBlock + 1 }, (_, i) => (firstBlock + i) % openEach);
    const groupStarts = Array.from({ length: rowCount }, (_, row) => row).filter(
      (row) => row === 0 || (position + row - this.#turnStart) % GROUP_TOKENS === 0,
    );
    const { topLogprobs } = options;
    const sample = { ...GREEDY, position: position + rowCount, ...(topLogprobs === undefined ? {} : { topLogprobs }) };
    return {
      slice: {
        position,
        rowCount,
        blockIds: this.blockIds,
        blockCapacity: this.blockCapacity,
        summarySlots: this.#summarySlots,
        openSlots: Int32Array.from(slots, (slot) => this.#index * openEach + slot),
        groupStarts: Int32Array.from(groupStarts),
        plan: this.plan,
      },
      tokens: Uint32Array.from(ids),
      exact: this.exact,
      ...(options.sample ? { sample } : {}),
    };
  }

  /** Notes that a step's rows are in the cache. */
  accept(ids: ArrayLike<number>, result: SequenceResult): void {
    this.tokens.push(...Array.from(ids));
    this.results.push(result);
  }

  /** A new turn's prompt, chunk by chunk; samples after the last. `cuts`: rows of the first chunks, then whole chunks. */
  async prefill(ids: readonly number[], cuts: readonly number[] = []): Promise<Sample> {
    this.#turnStart = this.tokens.length;
    let sample: Sample | undefined;
    for (let start = 0, chunk = 0; start < ids.length; chunk++) {
      const end = Math.min(ids.length, start + (cuts[chunk] ?? this.chunkTokens));
      sample = await this.#advance(ids.slice(start, end), true);
      start = end;
    }
    return sample!;
  }

  /** Greedy ids from a first sample on, the end token included; every id but the last is in the cache afterwards. */
  async generate(first: Sample, options: { tokensMax: number; endId?: number }): Promise<number[]> {
    const out = [first.tokenId];
    while (out.length < options.tokensMax && out.at(-1) !== options.endId) {
      out.push((await this.#advance([out.at(-1)!], true)).tokenId);
    }
    return out;
  }

  /** Forgets tokens from `tokenCount` on; their open block must still be in its slot, so not far back. */
  rewind(tokenCount: number): void {
    const blocksBack = Math.floor(this.tokens.length / BLOCK_TOKENS) - Math.floor(tokenCount / BLOCK_TOKENS);
    if (blocksBack >= openSlotsEach(this.#runner.rowsMax)) throw new Error(`cannot go back ${blocksBack} blocks`);
    this.tokens.length = tokenCount;
    this.results.length = 0;
  }

  /** Sample with logprobs of one more step, whose rows are not kept. */
  async probe(ids: readonly number[]): Promise<Sample | undefined> {
    const [result] = await this.#runner.step([this.step(ids, { sample: true, topLogprobs: 20 })]);
    return result?.sample;
  }

  /** Makes blocks of one layer non-resident and returns their bytes and ids, for {@link restore}. */
  async evict(layer: number, blocks: readonly number[]): Promise<EvictedBlock[]> {
    const evicted: EvictedBlock[] = [];
    for (const block of blocks) {
      const at = layer * this.blockCapacity + block;
      const id = this.blockIds[at]!;
      evicted.push({ at, id, bytes: await this.#runner.pool.readBlock(id) });
      // What was there is gone: nothing may read it by accident.
      this.#runner.pool.writeBlock(id, new Uint8Array(this.#runner.pool.blockBytes).fill(0x7f));
      this.blockIds[at] = NOT_RESIDENT;
    }
    return evicted;
  }

  restore(blocks: readonly EvictedBlock[]): void {
    for (const { at, id, bytes } of blocks) {
      this.#runner.pool.writeBlock(id, bytes);
      this.blockIds[at] = id;
    }
  }

  async #advance(ids: readonly number[], sample: boolean): Promise<Sample> {
    const [result] = await this.#runner.step([this.step(ids, { sample })]);
    if (result?.sample === undefined) throw new Error(`no sample at ${this.tokens.length}: ${JSON.stringify(result)}`);
    this.accept(ids, result);
    return result.sample;
  }
}

/** A block that was taken from the device, and where it belongs. */
export interface EvictedBlock {
  /** Entry of the block table. */
  at: number;
  id: number;
  bytes: Uint8Array;
}
