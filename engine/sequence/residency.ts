/** Brings blocks that sequences need from the store to the device, and tells them when they may go on. */
import type { SummaryKind } from "../../kernels/contract.ts";
import { choosingLayer } from "../../kernels/page-range.ts";
import type { Checkpoint } from "../../models/contract.ts";
import type { BlockCache } from "../kv/block-cache.ts";
import { allLayers, type BlockFetcher, type BlockLayer } from "../kv/block-fetcher.ts";
import type { GateClass } from "../kv/gate.ts";
import type { LogicalBlock } from "../kv/logical-block.ts";
import type { SummarySupply } from "../kv/summary-supply.ts";
import type { EngineObserver } from "../observer.ts";
import type { Clock } from "../settings.ts";
import type { PlannedSlice } from "./planned-slice.ts";
import type { Sequence } from "./sequence.ts";
import { missedByFollowers } from "./shared-choice.ts";
import { type RowRange, scoredKind } from "./slice-planner.ts";
import { summaryLayerEnd } from "./summary-layers.ts";
import { countFetch, firstLayer } from "./traffic.ts";

/** Segments of a sequence that are filled at once. */
const FILLS_AT_ONCE = 8;

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

/** When a wait ends whether or not what it waits for has come, and who is told so. */
export interface WaitEnd {
  atMs: number;
  giveUp(): void;
}

/** Why and where a step ended before its last layer. */
export interface Suspension {
  checkpoint: Checkpoint;
  missed: readonly BlockLayer[];
  /** As `SequenceResult.chosenBlocks`. */
  chosenBlocks?: Uint32Array | undefined;
  /** When its wait for blocks ends without them; undefined: it does not. */
  end?: WaitEnd | undefined;
}

/** Residency of one engine's sequences. */
export class Residency {
  readonly #options: ResidencyOptions;
  /** The layer whose choice was asked for last, for those that take it over. */
  readonly #askedChoice = new WeakMap<PlannedSlice, number>();

  constructor(options: ResidencyOptions) {
    this.#options = options;
  }

  /**
   * A step found these missing: the sequence goes on when those of the first layer are there; what layers that take over its choice lack of it is
   * read with it, what later ones may miss behind it. With nothing missing it only paused.
   */
  suspend(sequence: Sequence, planned: PlannedSlice, { checkpoint, missed, chosenBlocks, end }: Suspension): void {
    // The checkpoint may be of an earlier layer, whose choice this one takes over.
    const missedLayer = firstLayer(missed, checkpoint.layer);
    const guessedLayer = missed.reduce((last, { layer }) => Math.max(last, layer), missedLayer);
    sequence.suspended = { planned, checkpoint, guessedLayer };
    if (missed.length === 0) {
      this.#options.supply.readOn(sequence, planned.slice.plan);
      this.#waitForLayer(sequence, planned, checkpoint.layer);
      return;
    }
    const { plan } = planned.slice;
    this.#fetchAndWait(
      sequence,
      missed.filter(({ layer }) => layer === missedLayer),
      end,
    );
    // Where the pool is too small for all, what is read ahead would push out what is needed first.
    const isRoomy = !sequence.workingSet;
    if (isRoomy && chosenBlocks && this.#isNewChoice(planned, missedLayer))
      void this.fetch(sequence, missedByFollowers(sequence, planned, missedLayer, chosenBlocks), "demand");
    this.#options.supply.readOn(sequence, plan);
    if (!isRoomy) return;
    void this.fetch(
      sequence,
      missed.filter(({ layer }) => layer > missedLayer),
      "fill",
    );
  }

  /**
   * Whether what layers take over of the choice that this one attends by is still to be asked for. Once it was, its blocks are on their way and
   * stay the sequence's: a layer that misses one waits for that one.
   */
  #isNewChoice(planned: PlannedSlice, layer: number): boolean {
    const chooser = choosingLayer(planned.slice.plan, layer);
    if (chooser === undefined || this.#askedChoice.get(planned) === chooser) return false;
    this.#askedChoice.set(planned, chooser);
    return true;
  }

  /** A step that paused goes on when the summaries of its next layer are there, or known to be lost. */
  #waitForLayer(sequence: Sequence, planned: PlannedSlice, layer: number): void {
    const { clock, observer, supply } = this.#options;
    const layerEnd = summaryLayerEnd(sequence, planned);
    if (layerEnd === undefined || layer < layerEnd) return;
    observer.missed(sequence, 0, clock.nowMs(), layer);
    this.#waitFor(sequence, supply.bringLayer(sequence, planned.slice.plan, layer));
  }

  /** The sequence goes on when these are on the device or known to be lost, or at the end of its patience. */
  #fetchAndWait(sequence: Sequence, wanted: readonly BlockLayer[], end?: WaitEnd): void {
    const { clock, observer } = this.#options;
    const layers = new Set(wanted.map(({ layer }) => layer));
    observer.missed(sequence, wanted.length, clock.nowMs(), layers.size === 1 ? wanted[0]?.layer : undefined);
    this.#waitFor(sequence, this.fetch(sequence, wanted, "demand"), { end });
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
    if (kind === undefined) this.#fetchAndWait(sequence, allLayers(blocks));
    else this.#waitForSummaries(sequence, kind, blocks);
  }

  /** The sequence goes on when these blocks have the summaries that its rows score, or are gaps that are computed again. */
  #waitForSummaries(sequence: Sequence, kind: SummaryKind, blocks: readonly LogicalBlock[]): void {
    const { cache, clock, observer, supply } = this.#options;
    observer.missed(sequence, blocks.length, clock.nowMs());
    const asked = new Set(blocks);
    const then = () => sequence.drop(cache, (block) => asked.has(block) && !block.summaries.has(kind));
    this.#waitFor(sequence, supply.supply(sequence, kind, blocks), { then });
  }

  /** `then` is called if the sequence still waits: its blocks are nobody else's to use until then. */
  #waitFor(
    sequence: Sequence,
    what: Promise<void>,
    { then, end }: { then?: () => void; end?: WaitEnd | undefined } = {},
  ): void {
    const { clock, fail, observer, wake } = this.#options;
    let isOver = false;
    const goOn = () => {
      // What comes behind the end of a wait is not what a later one waits for.
      if (isOver) return;
      isOver = true;
      if (sequence.phase === "waiting") {
        then?.();
        sequence.phase = "running";
      }
      observer.resumed(sequence, clock.nowMs());
      wake();
    };
    sequence.phase = "waiting";
    void what.catch((error: unknown) => fail(sequence, error)).then(goOn);
    if (end === undefined) return;
    void clock.sleep(Math.max(0, Math.ceil(end.atMs - clock.nowMs()))).then(() => {
      if (!isOver) end.giveUp();
      goOn();
    });
  }

  /** Reads what is not on the device; what that cost is the sequence's. Never rejects. */
  async fetch(sequence: Sequence, wanted: readonly BlockLayer[], kind: GateClass): Promise<void> {
    try {
      if (wanted.length > 0) await this.#options.fetcher.fetch(wanted, kind, (read) => countFetch(sequence, read));
    } catch (error) {
      this.#options.fail(sequence, error);
    }
  }

  async #fill(sequence: Sequence, blocks: readonly LogicalBlock[]): Promise<void> {
    const held = blocks.filter((block) => sequence.blocks[block.index] === block);
    try {
      await this.#options.fetcher.fill(held, (read) => countFetch(sequence, read));
    } catch (error) {
      this.#options.fail(sequence, error);
    }
  }

  /** Streams in what is still in the store, behind everything that a query asks for, while the sequence runs. */
  async fillRest(sequence: Sequence): Promise<void> {
    if (sequence.workingSet) return;
    const absent = sequence.blocks.filter((block): block is LogicalBlock => block !== undefined && !block.resident);
    // A segment at a time: neighbouring blocks of a layer are one read.
    const segments = Array.from(Map.groupBy(absent.reverse(), ({ stored }) => stored?.chain).values());
    // Several at once: one after the other, a round trip for each would be the pace.
    const fillers = Array.from({ length: FILLS_AT_ONCE }, async () => {
      for (let blocks = segments.shift(); blocks !== undefined; blocks = segments.shift()) {
        if (sequence.phase !== "running" && sequence.phase !== "waiting") return;
        await this.#fill(sequence, blocks);
      }
    });
    await Promise.all(fillers);
    // Of layers that this turn does not score: another's policy may.
    if (sequence.phase === "running" || sequence.phase === "waiting")
      await this.#options.supply.bringAll(sequence, "fill");
    if (absent.length > 0) this.#options.observer.filled(sequence, this.#options.clock.nowMs());
  }
}
