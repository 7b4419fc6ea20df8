/** A device on which a rule of the laboratory chooses what is attended to: the reference device with `select` and `attend` replaced. */
import { decodeKeys, decodeValues } from "../../../kernels/block-codec.ts";
import {
  BLOCK_TOKENS,
  type Device,
  PAGE_TOKENS,
  PAGES_PER_BLOCK,
  type StepRecorder,
  type StepSlice,
} from "../../../kernels/contract.ts";
import { floatsOf, ownPool, type ReferencePool } from "../../../kernels/reference/memory.ts";
import { assert } from "../../../protocol/assert.ts";
import { intercept } from "../capture.ts";
import { distance, type HeadBlock, outputOf, scoresOf } from "./row-attention.ts";
import type { PageDigest, RowRule, RowView } from "./rule.ts";

type Args<Op extends keyof StepRecorder> = Parameters<StepRecorder[Op]>[0];

/** How near rows came to attending to everything. */
export interface RowMeasure {
  /** Softmax weight of the attended tokens, mean over heads. */
  mass: number;
  /** Distance of a head's output from that of full attention over the latter's length, mean over heads. */
  outputError: number;
}

/** The laboratory. Steps are of one row of one sequence, all of whose blocks are resident. */
export class Lab {
  readonly #device: Device;
  readonly #blocks = new Map<string, HeadBlock>();
  readonly #digests = new Map<string, PageDigest>();
  #rule: RowRule = () => undefined;
  #measures: RowMeasure[] = [];

  /** `device`: a reference device. */
  constructor(device: Device) {
    this.#device = device;
  }

  /** Forgets what it knows of blocks from `firstBlock` on. */
  forget(firstBlock: number): void {
    const placeOf = (name: string): number => Number(name.slice(name.lastIndexOf("/") + 1));
    for (const name of this.#blocks.keys()) if (placeOf(name) >= firstBlock) this.#blocks.delete(name);
    for (const name of this.#digests.keys()) {
      if (placeOf(name) >= firstBlock * PAGES_PER_BLOCK) this.#digests.delete(name);
    }
  }

  /** From now on `rule` chooses, and rows are measured anew. Undefined: everything is attended to. */
  start(rule: RowRule | undefined): void {
    this.#rule = rule ?? (() => undefined);
    this.#measures = [];
  }

  /** One per row and layer since {@link start} where the rule chose. */
  get measures(): readonly RowMeasure[] {
    return this.#measures;
  }

  /** The device as a model is to see it. */
  wrap(): Device {
    return intercept(this.#device, {
      begin: (slices: Parameters<Device["begin"]>[0]) => this.#wrapRecorder(this.#device.begin(slices), slices),
    });
  }

  #wrapRecorder(recorder: StepRecorder, slices: readonly StepSlice[]): StepRecorder {
    const [slice] = slices;
    assert(slices.length === 1 && slice?.rowCount === 1, "the laboratory takes one row at a time");
    let plainQuery = new Float32Array(0);
    return intercept(recorder, {
      append: (args: Args<"append">) => {
        plainQuery = floatsOf(args.q, args.headCount * args.pool.spec.headDim).slice();
        recorder.append(args);
      },
      select: () => undefined,
      attend: (args: Args<"attend">) => this.#attend(args, slice, plainQuery),
    });
  }

  #attend({ pool, layer, headCount, q, out }: Args<"attend">, slice: StepSlice, plainQuery: Float32Array): void {
    const own = ownPool(pool);
    const { kvHeadCount, headDim } = own.spec;
    const query = floatsOf(q, headCount * headDim).subarray(0, headCount * headDim);
    const group = headCount / kvHeadCount;
    const blocksOf = (kvHead: number) => this.#headBlocks(own, slice, layer, kvHead);
    const headOf = (head: number) => query.subarray(head * headDim, (head + 1) * headDim);
    const perKvHead = Array.from({ length: kvHeadCount }, (_, kvHead) => blocksOf(kvHead));
    const scores = Array.from({ length: headCount }, (_, head) =>
      scoresOf(headOf(head), perKvHead[Math.floor(head / group)] as HeadBlock[], slice.position + 1),
    );
    const row: RowView = {
      ...{ layer, position: slice.position, headCount, kvHeadCount, headDim, plainQuery, query, scores },
      blocks: (kvHead) => perKvHead[kvHead] as HeadBlock[],
      digest: (kvHead, page) => this.#digest(layer, kvHead, page, perKvHead[kvHead] as HeadBlock[]),
    };
    const choice = this.#rule(row);
    const outputs = floatsOf(out, headCount * headDim);
    const measures = scores.map((own, head) => {
      const blocks = perKvHead[Math.floor(head / group)] as HeadBlock[];
      const exact = outputOf(own, blocks, headDim);
      const kvHead = Math.floor(head / group);
      const tokens = choice?.attended[kvHead];
      const only = tokens && { tokens, query: headOf(head), estimates: choice?.estimates?.[kvHead] };
      const chosen = only === undefined ? exact : outputOf(own, blocks, headDim, only);
      outputs.set(chosen.output, head * headDim);
      return { mass: chosen.weight / exact.weight, outputError: distance(chosen.output, exact.output) };
    });
    if (choice === undefined) return;
    const meanOf = (key: keyof RowMeasure) => measures.reduce((sum, each) => sum + each[key], 0) / measures.length;
    this.#measures.push({ mass: meanOf("mass"), outputError: meanOf("outputError") });
  }

  /** Blocks up to the row's own, which is read as open. */
  #headBlocks(pool: ReferencePool, slice: StepSlice, layer: number, kvHead: number): HeadBlock[] {
    const ownBlock = Math.floor(slice.position / BLOCK_TOKENS);
    const sealed = Array.from({ length: ownBlock }, (_, block) => {
      const key = `${layer}/${kvHead}/${block}`;
      const known = this.#blocks.get(key);
      if (known !== undefined) return known;
      const bytes = pool.block(slice.blockIds[layer * slice.blockCapacity + block] as number);
      const read = { keys: decodeKeys(pool.spec, bytes, kvHead), values: decodeValues(pool.spec, bytes, kvHead) };
      this.#blocks.set(key, read);
      return read;
    });
    const slot = slice.openSlots[0] as number;
    return [...sealed, { keys: pool.openKeys(slot, layer, kvHead), values: pool.openValues(slot, layer, kvHead) }];
  }

  #digest(layer: number, kvHead: number, page: number, blocks: readonly HeadBlock[]): PageDigest {
    const name = `${layer}/${kvHead}/${page}`;
    const known = this.#digests.get(name);
    if (known !== undefined) return known;
    const { keys, values } = blocks[Math.floor(page / PAGES_PER_BLOCK)] as HeadBlock;
    const headDim = keys.length / BLOCK_TOKENS;
    const from = (page % PAGES_PER_BLOCK) * PAGE_TOKENS * headDim;
    const column = (of: Float32Array, channel: number): number[] =>
      Array.from({ length: PAGE_TOKENS }, (_, token) => of[from + token * headDim + channel] as number);
    const perChannel = (of: Float32Array, reduce: (column: number[]) => number): Float32Array =>
      Float32Array.from({ length: headDim }, (_, channel) => reduce(column(of, channel)));
    const mean = (all: number[]): number => all.reduce((a, b) => a + b, 0) / all.length;
    const digest = {
      least: perChannel(keys, (all) => Math.min(...all)),
      most: perChannel(keys, (all) => Math.max(...all)),
      meanKey: perChannel(keys, mean),
      meanValue: perChannel(values, mean),
    };
    this.#digests.set(name, digest);
    return digest;
  }
}
