/** Brings blocks that sequences need from the store to the device, and tells them when they may go on. */
import type { SummaryKind } from "../../kernels/contract.ts";
import type { BlockCache, LogicalBlock } from "../kv/block-cache.ts";
import { allLayers, type BlockFetcher, type BlockLayer } from "../kv/block-fetcher.ts";
import type { GateClass } from "../kv/gate.ts";
import type { SummarySupply } from "../kv/summary-supply.ts";
import type { EngineObserver } from "../observer.ts";
import type { Clock } from "../settings.ts";
import type { Sequence } from "./sequence.ts";
import { type RowRange, scoredKind } from "./slice-planner.ts";
import { countFetch } from "./traffic.ts";

/** What it works with; all of it stays the engine's. */
export interface ResidencyOptions {
  fetcher: BlockFetcher;
  supply: SummarySupply;
  cache: BlockCache;
  clock: Clock;
  observer: EngineObserver;
  /** Lets the loop look again. */
  wake(): void;
  fail(sequence: Sequence, error: unknown): void;
}

/** Residency of one engine's sequences. */
export class Residency {
  readonly #options: ResidencyOptions;

  constructor(options: ResidencyOptions) {
    this.#options = options;
  }

  /** The sequence goes on when these are on the device or known to be lost. */
  wait(sequence: Sequence, wanted: readonly BlockLayer[]): void {
    const { clock, observer } = this.#options;
    const layers = new Set(wanted.map(({ layer }) => layer));
    observer.missed(sequence, wanted.length, clock.nowMs(), layers.size === 1 ? wanted[0]?.layer : undefined);
    this.#waitFor(sequence, this.fetch(sequence, wanted, "demand"));
  }

  /** A suspended sequence goes on when what of it is in host memory is on the device again. */
  promote(sequence: Sequence): void {
    const blocks = sequence.blocks.filter((block) => block !== undefined);
    this.#waitFor(sequence, this.#options.fetcher.promote(blocks));
    if (sequence.started) void this.fillRest(sequence);
  }

  /** What rows need before they can run (`rowNeeds`): summaries where their plan scores pages, else the blocks themselves. */
  bring(sequence: Sequence, rows: RowRange, blocks: readonly LogicalBlock[]): void {
    const kind = scoredKind(rows.plan);
    if (kind === undefined) this.wait(sequence, allLayers(blocks));
    else this.#waitForSummaries(sequence, kind, blocks);
  }

  /** The sequence goes on when these blocks have the summaries that its rows score, or are gaps that are computed again. */
  #waitForSummaries(sequence: Sequence, kind: SummaryKind, blocks: readonly LogicalBlock[]): void {
    const { cache, clock, observer, supply } = this.#options;
    observer.missed(sequence, blocks.length, clock.nowMs());
    const asked = new Set(blocks);
    this.#waitFor(sequence, supply.supply(sequence, kind, blocks), () => {
      sequence.drop(cache, (block) => asked.has(block) && !block.summaries.has(kind));
    });
  }

  /** `then` is called if the sequence still waits: its blocks are nobody else's to use until then. */
  #waitFor(sequence: Sequence, what: Promise<void>, then?: () => void): void {
    const { clock, observer, wake } = this.#options;
    sequence.phase = "waiting";
    void what.then(() => {
      if (sequence.phase === "waiting") {
        then?.();
        sequence.phase = "running";
      }
      observer.resumed(sequence, clock.nowMs());
      wake();
    });
  }

  /** Reads what is not on the device; what that cost is the sequence's. Never rejects. */
  async fetch(sequence: Sequence, wanted: readonly BlockLayer[], kind: GateClass): Promise<void> {
    try {
      if (wanted.length > 0) countFetch(sequence, await this.#options.fetcher.fetch(wanted, kind));
    } catch (error) {
      this.#options.fail(sequence, error);
    }
  }

  /** Streams in what is still in the store, behind everything that a query asks for, while the sequence runs. */
  async fillRest(sequence: Sequence): Promise<void> {
    const absent = sequence.blocks.filter((block): block is LogicalBlock => block !== undefined && !block.resident);
    // A segment at a time: neighbouring blocks of a layer are one read.
    const segments = Map.groupBy(absent.reverse(), ({ stored }) => stored?.chain);
    for (const blocks of segments.values()) {
      if (sequence.phase !== "running" && sequence.phase !== "waiting") return;
      const held = blocks.filter((block) => sequence.blocks[block.index] === block);
      try {
        countFetch(sequence, await this.#options.fetcher.fill(held));
      } catch (error) {
        this.#options.fail(sequence, error);
      }
    }
    if (absent.length > 0) this.#options.observer.filled(sequence, this.#options.clock.nowMs());
  }
}
