/**
 * Summaries of one object that come in layer by layer, for the blocks of its run of segments: a step may begin when the first layer is there, and ends before
 * the first that is not (`layerEnd`). A block has the kind once its last layer has come; until then it names these (`LogicalBlock.incoming`).
 */
import type { KvPool, SummaryKind } from "../../kernels/contract.ts";
import { assert } from "../../protocol/assert.ts";
import { isSectionIntact, layerSummary, type SummaryHead, summaryRange } from "../../storage/summary-object.ts";
import type { LogicalBlock } from "./logical-block.ts";

/** What they are made of. */
export interface LayeredSummariesOptions {
  pool: KvPool;
  head: SummaryHead;
  /** The sections of the first layers, one at least. */
  first: Uint8Array;
  /** Reads the sections of layers `[from, to)`. */
  read(from: number, to: number): Promise<Uint8Array>;
  /** Told once why the rest does not come, and which blocks lack it. */
  onLost(blocks: readonly LogicalBlock[], error: unknown): void;
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
  readonly #asks: { to: number; over: Promise<void> }[] = [];
  readonly #firstLayers: number;
  #there: number;
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
    this.#there = this.#firstLayers;
    for (let layer = 0; layer < this.#firstLayers; layer++) this.#verify(layer, this.#section(first, layer));
  }

  get kind(): SummaryKind {
    return this.#options.head.kind as SummaryKind;
  }

  /** Layers `[0, n)` are there. */
  get layersThere(): number {
    return this.#there;
  }

  /** Layers `[0, n)` are there or on their way. */
  get layersAsked(): number {
    return this.#asks.at(-1)?.to ?? this.#firstLayers;
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

  /** Has layers up to and with this one read, where that was not begun; resolves when they are there, or will not come. */
  async want(layer: number): Promise<void> {
    const to = Math.min(layer + 1, this.#layerCount);
    const from = this.layersAsked;
    if (to > from && !this.#isLost) {
      const before = this.#asks.at(-1)?.over;
      this.#asks.push({ to, over: this.#take({ from, to }, this.#options.read(from, to), before) });
    }
    await this.#asks.find((ask) => ask.to >= to)?.over;
  }

  /** In order, whatever comes first: a block has a layer only with those before it. All that was asked for, or nothing. Never rejects. */
  async #take(
    { from, to }: { from: number; to: number },
    reading: Promise<Uint8Array>,
    before: Promise<void> | undefined,
  ): Promise<void> {
    try {
      const [bytes] = await Promise.all([reading, before]);
      if (this.#isLost) return;
      if (bytes.byteLength !== (to - from) * this.layerBytes)
        throw new Error(`${bytes.byteLength} bytes came of the summaries of layers ${from} to ${to - 1}`);
      for (let layer = from; layer < to; layer++) this.#verify(layer, this.#section(bytes, layer - from));
      for (let layer = from; layer < to; layer++) this.#write(layer, this.#section(bytes, layer - from));
    } catch (error) {
      if (!this.#isLost) this.#lose(error);
    }
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
    this.#there = layer + 1;
    if (this.#there < this.#layerCount) return;
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
