/** One sequence on a model runner, without an engine: text is read, questions run under a plan, and the text is kept for the next plan. */
import { setImmediate } from "node:timers/promises";
import { groupStarts } from "../../engine/kv/provenance.ts";
import {
  BLOCK_TOKENS,
  type SampleRow,
  type SelectionPlan,
  type SliceTraffic,
  type StepSlice,
} from "../../kernels/contract.ts";
import { emptyTraffic } from "../../kernels/traffic.ts";
import type { ModelRunner } from "../../models/contract.ts";
import { GROUP_TOKENS } from "../../models/selection/policy.ts";
import { assert } from "../../protocol/assert.ts";
import { RunChoices } from "../run-choices.ts";

/** No penalties, no bias, no noise. */
const GREEDY: Omit<SampleRow, "row" | "position"> = {
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

/** How a turn is read and answered. */
export interface TurnPlan {
  plan: SelectionPlan;
  /** Rows of its prompt that share a choice, as in an engine; absent: a page. */
  groupTokens?: number;
}

interface StepPlan extends Required<TurnPlan> {
  isSampled: boolean;
  run: ReturnType<RunChoices["fieldsAt"]>;
}

/** Pool counts for one {@link Sequence} of `contextTokens`, in steps of up to `rowsMax` rows. */
export function poolCounts(options: { layerCount: number; contextTokens: number; rowsMax: number }) {
  const blocks = Math.ceil(options.contextTokens / BLOCK_TOKENS);
  return {
    blockCount: blocks * options.layerCount,
    summarySlotCount: blocks,
    openSlotCount: openSlotCount(options.rowsMax),
  };
}

function openSlotCount(rowsMax: number): number {
  return Math.ceil(rowsMax / BLOCK_TOKENS) + 1;
}

/** What a {@link Sequence} needs of a runner. */
export type SteppedRunner = Pick<ModelRunner, "rowsMax" | "step"> & {
  config: Pick<ModelRunner["config"], "layerCount">;
};

/** Owns the whole pool of its runner; everything stays resident. */
export class Sequence {
  readonly #runner: SteppedRunner;
  readonly #blockCapacity: number;
  readonly #blockIds: Int32Array;
  readonly #summarySlots: Int32Array;
  #length = 0;
  readonly #runs = new RunChoices();
  #traffic: SliceTraffic = emptyTraffic();

  constructor(runner: SteppedRunner, contextTokens: number) {
    const { layerCount } = runner.config;
    this.#runner = runner;
    this.#blockCapacity = Math.ceil(contextTokens / BLOCK_TOKENS);
    this.#blockIds = Int32Array.from({ length: layerCount * this.#blockCapacity }, (_, id) => id);
    this.#summarySlots = Int32Array.from({ length: this.#blockCapacity }, (_, slot) => slot);
  }

  /** Tokens with KV. */
  get length(): number {
    return this.#length;
  }

  /** What steps have read since {@link rewind}. */
  get traffic(): SliceTraffic {
    return this.#traffic;
  }

  /** Tokens that it can hold. */
  get capacityTokens(): number {
    return this.#blockCapacity * BLOCK_TOKENS;
  }

  /** Takes over whole blocks that were written into the pool from elsewhere, as if it had read them, and forgets what it had. */
  adopt(tokenCount: number): void {
    assert(tokenCount % BLOCK_TOKENS === 0 && tokenCount <= this.capacityTokens, "whole blocks are taken over");
    this.#length = tokenCount;
    this.#runs.clear();
    this.#traffic = emptyTraffic();
  }

  /** Forgets everything from `tokenCount` on, which is at a block's border. */
  rewind(tokenCount: number): void {
    assert(tokenCount % BLOCK_TOKENS === 0 && tokenCount <= this.#length, "a sequence goes back to a block's border");
    this.#runs.clear();
    this.#length = tokenCount;
    this.#traffic = emptyTraffic();
  }

  /** Reads a text densely; nothing is sampled. */
  async read(ids: readonly number[], signal: AbortSignal): Promise<void> {
    await this.#append(ids, { plan: { kind: "dense" }, groupTokens: GROUP_TOKENS, isSampled: false }, signal);
  }

  /** Reads the rest of a turn's prompt and answers it, all under one plan; the reply's ids, its end token included if it came. */
  async answer(
    ids: readonly number[],
    options: TurnPlan & { tokensMax: number; endIds: readonly number[]; signal: AbortSignal },
  ): Promise<number[]> {
    const { plan, groupTokens = GROUP_TOKENS, tokensMax, endIds, signal } = options;
    const reply = [await this.#append(ids, { plan, groupTokens, isSampled: true }, signal)];
    while (reply.length < tokensMax && !endIds.includes(reply.at(-1) as number)) {
      // Steps of a CPU device never leave the microtask queue: without this a Ctrl-C would not be heard before the end.
      await setImmediate();
      signal.throwIfAborted();
      reply.push(await this.advance(reply.at(-1) as number, plan));
    }
    return reply;
  }

  /**
   * One step over one token under `plan`; its logits are sampled greedily and given to the runner's observer. `choice`: what it attends to, as
   * `StepSlice.choice`, in the place of what a page plan would choose.
   */
  async advance(id: number, plan: SelectionPlan, choice?: Uint8Array): Promise<number> {
    const position = this.#length;
    const run = choice === undefined ? this.#runs.fieldsAt(position, plan) : { voters: "first" as const, choice };
    return this.#step([id], { plan, groupTokens: GROUP_TOKENS, isSampled: true, run });
  }

  /** Describes rows of this sequence for the device: those that come next, or ones whose KV is there already. */
  slice(position: number, rowCount: number, plan: SelectionPlan, groupTokens = GROUP_TOKENS): StepSlice {
    const firstBlock = Math.floor(position / BLOCK_TOKENS);
    const lastBlock = Math.floor((position + rowCount - 1) / BLOCK_TOKENS);
    const slotCount = openSlotCount(this.#runner.rowsMax);
    return {
      position,
      rowCount,
      blockIds: this.#blockIds,
      blockCapacity: this.#blockCapacity,
      summarySlots: this.#summarySlots,
      openSlots: Int32Array.from({ length: lastBlock - firstBlock + 1 }, (_, i) => (firstBlock + i) % slotCount),
      groupStarts: groupStarts(position, position + rowCount, groupTokens),
      plan,
    };
  }

  /** Steps over `ids`; the greedy token behind the last, or -1 if it is not sampled. */
  async #append(ids: readonly number[], how: Omit<StepPlan, "run">, signal: AbortSignal): Promise<number> {
    const { rowsMax } = this.#runner;
    this.#runs.clear();
    let token = -1;
    for (let start = 0; start < ids.length; start += rowsMax) {
      await setImmediate();
      signal.throwIfAborted();
      const chunk = ids.slice(start, start + rowsMax);
      const isLast = start + rowsMax >= ids.length;
      token = await this.#step(chunk, { ...how, isSampled: how.isSampled && isLast, run: {} });
    }
    return token;
  }

  async #step(ids: readonly number[], { plan, groupTokens, isSampled, run }: StepPlan): Promise<number> {
    const position = this.#length;
    const rowCount = ids.length;
    const [result] = await this.#runner.step([
      {
        slice: { ...this.slice(position, rowCount, plan, groupTokens), ...run },
        tokens: Uint32Array.from(ids),
        exact: true,
        ...(isSampled ? { sample: { ...GREEDY, position: position + rowCount } } : {}),
      },
    ]);
    assert(result !== undefined && result.misses.length === 0, "every block of the sequence is resident");
    this.#length += rowCount;
    this.#runs.keep(position, result.choice);
    addTraffic(this.#traffic, result.traffic);
    return result.sample?.tokenId ?? -1;
  }
}

function addTraffic(sum: SliceTraffic, traffic: SliceTraffic): void {
  sum.pagesSelected += traffic.pagesSelected;
  sum.pagesInContext += traffic.pagesInContext;
  sum.kvBytes += traffic.kvBytes;
  sum.metadataBytes += traffic.metadataBytes;
  sum.pagesPassedOver += traffic.pagesPassedOver;
}
