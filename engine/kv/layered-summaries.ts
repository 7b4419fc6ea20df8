/**
 * Summaries of one object that come in layer by layer, for the blocks of its run of segments: a step may begin when the first layer is there, and ends before
 * the first that it scores and that is not (`layerEnd`). A block has the kind once all layers have come; until then it names these (`LogicalBlock.incoming`).
 */
import type { KvPool, SummaryKind } from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import { giveBack } from "../../storage/bytes.ts";
import { isSectionIntact, layerSummary, type SummaryHead, summaryRange } from "../../storage/summary-object.ts";
import type { GateClass } from "./gate.ts";
import type { LogicalBlock } from "./logical-block.ts";

/** What they are made of. */
export interface LayeredSummariesOptions {
  pool: KvPool;
  head: SummaryHead;
  /** The sections of the first layers, one at least. */
  first: Uint8Array;
  /** Reads the sections of layers `[from, to)`; the bytes are these's, who give their memory back. */
  read(range: LayerRange, kind: GateClass): Promise<Uint8Array<ArrayBuffer>>;
  /** Told once why the rest does not come, and which blocks lack it. Not of reads of class `fill`: nobody needs those as yet. */
  onLost(blocks: readonly LogicalBlock[], error: unknown): void;
}

/** Layers `[from, to)`. */
export interface LayerRange {
  from: number;
  to: number;
}

/** A block, the slot that it had when it was given these, and which of the run's blocks it is. */
interface Holder {
  block: LogicalBlock;
  slot: number;
  index: number;
}

/** Pull only: what nobody wants is not read. */
export class LayeredSummaries {
  readonly #options: LayeredSummariesOptions;
  readonly #holders: Holder[] = [];
  readonly #asks: (LayerRange & { over: Promise<void> })[] = [];
  readonly #firstLayers: number;
  /** By layer. */
  readonly #isThere: boolean[];
  #isLost = false;
  /** Bytes of one layer of all blocks. */
  readonly layerBytes: number;

  /** @throws {Error} when the first sections are not those of the head. */
  constructor(options: LayeredSummariesOptions) {
    const { head, first } = options;
    assert(head.kind !== "none", "there are summaries to come");
    this.#options = options;
    const shape = { ...head, segmentCount: head.segments.length };
    this.layerBytes = summaryRange(shape, { fromLayer: 0, toLayer: 1 }).bytes;
    this.#firstLayers = Math.max(1, Math.ceil(first.byteLength / this.layerBytes));
    this.#isThere = Array.from({ length: this.#layerCount }, (_, layer) => layer < this.#firstLayers);
    for (let layer = 0; layer < this.#firstLayers; layer++) this.#verify(layer, this.#section(first, layer));
  }

  get kind(): SummaryKind {
    return this.#options.head.kind as SummaryKind;
  }

  /** The first of these layers that is not there; undefined: they all are. */
  firstLacking(layers: readonly number[]): number | undefined {
    return layers.find((layer) => this.#isThere[layer] !== true);
  }

  /** A layer is there or on its way. */
  isAsked(layer: number): boolean {
    return this.#isThere[layer] === true || this.#asks.some(({ from, to }) => layer >= from && layer < to);
  }

  /** Layers that are on their way. */
  get comingCount(): number {
    return this.#isThere.filter((isThere, layer) => !isThere && this.isAsked(layer)).length;
  }

  get #layerCount(): number {
    return this.#options.head.geometry.layerCount;
  }

  /** Gives a block, the `index`-th of the run, what is there, and what comes. Before anything more was wanted. */
  give(block: LogicalBlock, index: number): void {
    assert(this.#asks.length === 0, "blocks hold summaries before more of these are read");
    const { pool, head, first } = this.#options;
    for (let layer = 0; layer < this.#firstLayers; layer++) {
      const bytes = layerSummary(head.geometry, this.#section(first, layer), index);
      pool.writeSummary(block.summarySlot, this.kind, bytes, layer);
    }
    if (this.#firstLayers === this.#layerCount) block.summaries.add(this.kind);
    else {
      block.incoming = this;
      this.#holders.push({ block, slot: block.summarySlot, index });
    }
  }

  /** Has these layers read, ascending, where that was not begun; resolves when they are there, or will not come. Never rejects. */
  async want(layers: readonly number[], kind: GateClass): Promise<void> {
    const unasked = layers.filter((layer) => !this.isAsked(layer));
    if (!this.#isLost) for (const range of rangesOf(unasked)) this.#ask(range, kind);
    const asks = this.#asks.filter(({ from, to }) => layers.some((layer) => layer >= from && layer < to));
    await Promise.all(asks.map(({ over }) => over));
    // It was on its way for nobody, and did not come.
    const isNeeded = kind === "demand" && !this.#isLost && !layers.every((layer) => this.isAsked(layer));
    if (isNeeded) await this.want(layers, kind);
  }

  #ask(range: LayerRange, kind: GateClass): void {
    const reading = this.#options.read(range, kind);
    const ask = { ...range, over: Promise.resolve() };
    this.#asks.push(ask);
    ask.over = this.#take(range, reading).catch((error: unknown) => {
      // What was read before anybody needed it is asked for again when somebody does.
      if (kind === "fill") this.#asks.splice(this.#asks.indexOf(ask), 1);
      else if (!this.#isLost) this.#lose(error);
    });
  }

  /** All of a read, or nothing. @throws {Error} where it failed, or is not what the head says. */
  async #take({ from, to }: LayerRange, reading: Promise<Uint8Array<ArrayBuffer>>): Promise<void> {
    const bytes = await reading;
    if (this.#isLost) return;
    if (bytes.byteLength !== (to - from) * this.layerBytes)
      throw new Error(`${bytes.byteLength} bytes came of the summaries of layers ${from} to ${to - 1}`);
    for (let layer = from; layer < to; layer++) this.#verify(layer, this.#section(bytes, layer - from));
    for (let layer = from; layer < to; layer++) this.#write(layer, this.#section(bytes, layer - from));
    giveBack(bytes);
  }

  #section(bytes: Uint8Array, index: number): Uint8Array {
    return bytes.subarray(index * this.layerBytes, (index + 1) * this.layerBytes);
  }

  #verify(layer: number, section: Uint8Array): void {
    if (!isSectionIntact(this.#options.head, layer, section))
      throw new Error(`summaries of layer ${layer} do not match their checksum`);
  }

  #write(layer: number, section: Uint8Array): void {
    const { pool, head } = this.#options;
    for (const { slot, index } of this.#waiting())
      pool.writeSummary(slot, this.kind, layerSummary(head.geometry, section, index), layer);
    this.#isThere[layer] = true;
    if (this.#isThere.includes(false)) return;
    for (const { block } of this.#waiting()) {
      block.summaries.add(this.kind);
      block.incoming = undefined;
    }
  }

  /** Whoever held a block may have let go meanwhile, or another has given it summaries: then its slot is not these's to write. */
  #waiting(): Holder[] {
    return this.#holders.filter(({ block, slot }) => block.incoming === this && block.summarySlot === slot);
  }

  #lose(error: unknown): void {
    this.#isLost = true;
    const blocks = this.#waiting().map(({ block }) => block);
    for (const block of blocks) block.incoming = undefined;
    this.#options.onLost(blocks, error);
  }
}

/** Neighbours joined. */
function rangesOf(layers: readonly number[]): LayerRange[] {
  const ranges: LayerRange[] = [];
  for (const layer of layers) {
    const last = ranges.at(-1);
    if (last?.to === layer) last.to += 1;
    else ranges.push({ from: layer, to: layer + 1 });
  }
  return ranges;
}
