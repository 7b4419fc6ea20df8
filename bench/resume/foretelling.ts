/** How well a pass over a resumed turn's rows foretells what they will choose, before any block of what they may choose has come. */

import { decodeKeys, decodeValues, encodeBlockHead } from "../../kernels/block-codec.ts";
import { BLOCK_TOKENS, NOT_RESIDENT, PAGE_TOKENS, PAGES_PER_BLOCK } from "../../kernels/contract.ts";
import { pageRange } from "../../kernels/page-range.ts";
import type { SequenceResult } from "../../models/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { assert } from "../../protocol/assert.ts";
import { type BenchModel, greedyAt, openSlotsFor } from "../decode/bench-model.ts";
import type { Content } from "./content.ts";
import type { ResumeCase } from "./measure-resume.ts";

/** Blocks by layer, as `StepReadback.chosenBlocks` has them. */
type BlockSet = Uint32Array;

/** What takes the place of a block that is not there: nothing, or a block whose tokens are all their page's mean. */
export type InPlace = "nothing" | "page means";

/** What a pass foretold. */
export interface Foretold {
  /** Of the blocks that the turn chooses, all layers together: those that were named; and beside them, named in vain, over the same number. */
  named: number;
  inVain: number;
  /** The first by layer. */
  namedByLayer: number[];
  /** A turn that finds just these, and attends around the rest: which share of what it chooses itself is there. */
  there: number;
}

/** A pass: so many of the turn's first rows, with so much of the budget; blocks of `known` are there. */
export interface Pass {
  inPlace: InPlace;
  rows: number;
  budgetTokens: number;
  known?: BlockSet;
}

/** What is asked about; the model has two sequences, of which the second is taken for what is in place of blocks. */
export interface ForetellingOptions {
  model: BenchModel;
  content: Content;
  contextTokens: number;
  selection: ResumeCase["selection"];
  /** Of either turn. */
  promptTokens: number;
  /** Of the first turn's reply. */
  replyTokens: number;
}

/** A context in the model's pool, a turn behind it, and the turn after that, of which the choice is known and to be foretold. */
export class Foretelling {
  readonly #options: ForetellingOptions;
  readonly #policy: ReturnType<typeof policyNamed>;
  readonly #position: number;
  readonly #tokens: Uint32Array;
  /** What the earlier turn chose: its prompt, and each token of its reply. */
  readonly #before: BlockSet[] = [];
  #truth: BlockSet = new Uint32Array();

  private constructor(options: ForetellingOptions) {
    const { content, contextTokens, promptTokens, replyTokens, selection } = options;
    this.#options = options;
    this.#policy = policyNamed(selection.policy);
    this.#position = contextTokens + promptTokens + replyTokens;
    this.#tokens = Uint32Array.from(content.prompt(contextTokens, 1, promptTokens));
  }

  /** Of a model whose pool holds the context. Runs the first turn, makes the means, and runs the second turn with everything there. */
  static async open(options: ForetellingOptions): Promise<Foretelling> {
    const made = new Foretelling(options);
    await made.#runFirstTurn();
    await made.#makeMeans();
    const { budgetTokens } = options.selection;
    made.#truth = await made.#choose(options.model.blockTable().blockIds, options.promptTokens, budgetTokens);
    return made;
  }

  /** Blocks that the turn chooses, all layers together. */
  get chosenCount(): number {
    return countOf(this.#truth);
  }

  /** What the earlier turn chose most often, of each layer `share` times as many as the turn will choose. */
  hottest(share: number): BlockSet {
    const hottest = this.#truth.map(() => 0);
    for (const layer of this.#layers()) {
      const counts = new Map<number, number>();
      for (const set of this.#before)
        for (const block of this.#blocksOf(set, layer)) counts.set(block, (counts.get(block) ?? 0) + 1);
      const most = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
      const count = Math.round(share * this.#blocksOf(this.#truth, layer).length);
      for (const [block] of most.slice(0, count)) this.#add(hottest, layer, block);
    }
    return hottest;
  }

  /** What a pass chooses. */
  async pass({ inPlace, rows, budgetTokens, known }: Pass): Promise<BlockSet> {
    return await this.#choose(this.#tableWith(known, inPlace), rows, budgetTokens);
  }

  /** How good a guess is. */
  async judge(guess: BlockSet): Promise<Foretold> {
    const { promptTokens, selection } = this.#options;
    const hits = both(guess, this.#truth);
    const chosen = this.chosenCount;
    const own = await this.#choose(this.#tableWith(guess, "nothing"), promptTokens, selection.budgetTokens);
    const ofLayer = (set: BlockSet, layer: number) => this.#blocksOf(set, layer).length;
    return {
      named: countOf(hits) / chosen,
      inVain: (countOf(guess) - countOf(hits)) / chosen,
      namedByLayer: this.#layers().map((layer) => ofLayer(hits, layer) / ofLayer(this.#truth, layer)),
      there: countOf(both(own, guess)) / countOf(own),
    };
  }

  async #runFirstTurn(): Promise<void> {
    const { model, content, contextTokens, promptTokens, replyTokens, selection } = this.#options;
    const { blockIds } = model.blockTable();
    let tokens = Uint32Array.from(content.prompt(contextTokens, 0, promptTokens));
    for (let position = contextTokens; position < this.#position; ) {
      const { sample, chosenBlocks } = await this.#step(blockIds, position, tokens, selection.budgetTokens);
      this.#before.push(chosenBlocks as BlockSet);
      position += tokens.length;
      tokens = Uint32Array.of(sample?.tokenId as number);
    }
    assert(this.#before.length === replyTokens + 1, "every token of the reply was computed");
  }

  async #makeMeans(): Promise<void> {
    const { model } = this.#options;
    const { pool } = model.runner;
    const [from, to] = [model.blockTable(0), model.blockTable(1)];
    for (const layer of this.#layers()) {
      for (let block = 0; block < this.#blockEnd; block++) {
        const at = layer * from.blockCapacity + block;
        const bytes = await pool.readBlock(from.blockIds[at] as number);
        pool.writeBlock(to.blockIds[at] as number, meansOfPages(pool.spec, bytes));
      }
    }
  }

  /** Sinks and recent pages are always there: they are read without being chosen. */
  #tableWith(known: BlockSet | undefined, inPlace: InPlace): Int32Array {
    const { model, selection } = this.#options;
    const plan = this.#policy.plan(selection.budgetTokens);
    const [own, means] = [model.blockTable(0), model.blockTable(1)];
    const blockIds = own.blockIds.slice();
    const place = { positionFirst: this.#position, positionLast: this.#position };
    const { sinkEnd, recentStart } = pageRange(plan, place);
    for (const layer of this.#layers()) {
      const there = new Set(known && this.#blocksOf(known, layer));
      const first = Math.ceil(sinkEnd / PAGES_PER_BLOCK);
      for (let block = first; block < Math.floor(recentStart / PAGES_PER_BLOCK); block++) {
        const at = layer * own.blockCapacity + block;
        if (!there.has(block)) blockIds[at] = inPlace === "nothing" ? NOT_RESIDENT : (means.blockIds[at] as number);
      }
    }
    return blockIds;
  }

  async #choose(blockIds: Int32Array, rows: number, budgetTokens: number): Promise<BlockSet> {
    const tokens = this.#tokens.subarray(0, rows);
    const { chosenBlocks } = await this.#step(blockIds, this.#position, tokens, budgetTokens);
    return chosenBlocks as BlockSet;
  }

  async #step(
    blockIds: Int32Array,
    position: number,
    tokens: Uint32Array,
    budgetTokens: number,
  ): Promise<SequenceResult> {
    const { plan, groupTokens } = this.#policy;
    const { blockCapacity, summarySlots } = this.#options.model.blockTable();
    const rowCount = tokens.length;
    const slice = {
      ...{ blockIds, blockCapacity, summarySlots, position, rowCount, reportBlocks: true },
      openSlots: openSlotsFor(position, rowCount),
      groupStarts: Int32Array.from({ length: Math.ceil(rowCount / groupTokens) }, (_, group) => group * groupTokens),
      plan: plan(budgetTokens),
    };
    // Sampled, since the last layer chooses only for rows that are.
    const step = { slice, tokens, exact: false, sample: greedyAt(position + rowCount) };
    return (await this.#options.model.runner.step([step]))[0] as SequenceResult;
  }

  get #blockEnd(): number {
    return Math.floor(this.#position / BLOCK_TOKENS);
  }

  #layers(): number[] {
    return Array.from({ length: this.#options.model.config.layerCount }, (_, layer) => layer);
  }

  get #words(): number {
    return Math.ceil(this.#options.model.blockTable().blockCapacity / 32);
  }

  #add(set: BlockSet, layer: number, block: number): void {
    const word = layer * this.#words + (block >>> 5);
    set[word] = (set[word] as number) | (1 << (block & 31));
  }

  #blocksOf(set: BlockSet, layer: number): number[] {
    const words = set.subarray(layer * this.#words, (layer + 1) * this.#words);
    return Array.from({ length: this.#blockEnd }, (_, block) => block).filter(
      (block) => (((words[block >>> 5] as number) >>> (block & 31)) & 1) === 1,
    );
  }
}

/** A block of the same shape in which every token's key and value is the mean of its page's. */
export function meansOfPages(
  shape: Parameters<typeof decodeKeys>[0] & { kvHeadCount: number; headDim: number },
  bytes: Uint8Array,
): Uint8Array {
  const means = new Uint8Array(bytes.byteLength);
  for (let head = 0; head < shape.kvHeadCount; head++) {
    const [keys, values] = [decodeKeys(shape, bytes, head), decodeValues(shape, bytes, head)];
    encodeBlockHead(shape, means, head, overPages(keys, shape.headDim), overPages(values, shape.headDim));
  }
  return means;
}

function overPages(rows: Float32Array, width: number): Float32Array {
  const pageValues = PAGE_TOKENS * width;
  return rows.map((_, index) => {
    const first = Math.floor(index / pageValues) * pageValues + (index % width);
    let sum = 0;
    for (let token = 0; token < PAGE_TOKENS; token++) sum += rows[first + token * width] as number;
    return sum / PAGE_TOKENS;
  });
}

/** Blocks of two sets. */
export function either(a: BlockSet, b: BlockSet): BlockSet {
  return a.map((word, index) => word | (b[index] as number));
}

function both(a: BlockSet, b: BlockSet): BlockSet {
  return a.map((word, index) => word & (b[index] as number));
}

function countOf(set: BlockSet): number {
  let count = 0;
  for (let word of set) for (; word !== 0; word &= word - 1) count += 1;
  return count;
}
