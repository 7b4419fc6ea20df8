/**
 * Summaries of stored blocks. Of a session that is resumed, by the object: layer by layer, so that computing begins when those of the first layer are there. And for blocks that lack a kind: a resumed session reads only the kind that its turn scores, and another turn, or the replay of a
 * lost span, may score another. They come from the object of that kind, else from the block's own bytes; a block that gets them from
 * neither must not be scored, and is computed again.
 */
import {
  BLOCK_TOKENS,
  type KvPool,
  NOT_RESIDENT,
  type SelectionPlan,
  type SummaryKind,
} from "../../kernels/contract.ts";
import { scoringLayers } from "../../kernels/page-range.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import { type PageStore, StoreError } from "../../storage/contract.ts";
import { FormatError } from "../../storage/format-error.ts";
import type { KvGeometry, SummaryObjectKind } from "../../storage/geometry.ts";
import { summaryFormOf } from "../../storage/keys.ts";
import type { SummaryRef } from "../../storage/manifest.ts";
import type { StoreSpeed } from "../../storage/read-times.ts";
import {
  decodeSummaryHead,
  decodeSummaryObject,
  type SegmentChecks,
  type SegmentSummary,
  type SummaryObject,
  summaryRange,
  summarySlot,
} from "../../storage/summary-object.ts";
import type { Sequence } from "../sequence/sequence.ts";
import { incomingSummaries } from "../sequence/summary-layers.ts";
import { countedReads, countFetch } from "../sequence/traffic.ts";
import type { Clock, EngineLog } from "../settings.ts";
import { allLayers, type BlockFetcher, indexInSegment } from "./block-fetcher.ts";
import type { Gate, GateClass } from "./gate.ts";
import { LayeredSummaries } from "./layered-summaries.ts";
import type { LogicalBlock } from "./logical-block.ts";
import type { RangeRef, ReadAhead } from "./read-ahead.ts";
import { readLayers, rebuildSummary } from "./rebuild-summary.ts";

/** What a supply works with. */
export interface SummarySupplyOptions {
  store: PageStore;
  /** Where reads of summaries may be under way already. */
  ahead: Pick<ReadAhead, "takeHead">;
  pool: KvPool;
  fetcher: BlockFetcher;
  gate: Gate;
  geometry: KvGeometry;
  clock: Clock;
  log: EngineLog;
  getMsMax: number;
  /** What is read with a head: one layer at least, and as many as fit into so many bytes. */
  firstBytesMax: number;
  /** What the store has been measured to take; undefined: not known yet. */
  storeSpeed(): StoreSpeed | undefined;
}

/** Summaries of a run of segments, as they are found in the store. */
export interface SummaryRun {
  kind: SummaryObjectKind;
  fromToken: number;
  segments: readonly SegmentChecks[];
  /** Gives a block, the `index`-th of the run, its summaries; nothing of kind `none`. At once, for all blocks that are to have any. */
  give(block: LogicalBlock, index: number): void;
}

/** Asked for at once while nothing is known of the store; else what fits into its latency, in which nothing else would come. */
const AHEAD_BYTES_DEFAULT = 4 * 1024 * 1024;
/** So many times that in default mode: when its waiting is over, nothing is to keep it any more. */
const AHEAD_OF_DEFAULT = 3;

/** Reads and rebuilds summaries for all sequences of an engine. */
export class SummarySupply {
  readonly #options: SummarySupplyOptions;

  constructor(options: SummarySupplyOptions) {
    this.#options = options;
  }

  /** Where the beginning of an object lies that is read layer by layer: its head and the first layers, which come while the manifest and the tail are awaited. */
  headOf(
    { selection }: Pick<Sequence, "selection">,
    { objectKey, kind, tokenCount }: Pick<SummaryRef, "objectKey" | "kind" | "tokenCount">,
  ): RangeRef {
    const { geometry, firstBytesMax } = this.#options;
    const shape = { geometry, kind, segmentCount: tokenCount / geometry.segmentTokens };
    const { bytes } = summaryRange(shape, { fromLayer: 0, toLayer: 1 });
    const plan = policyNamed(selection.policy).plan(selection.budgetTokens);
    const countMax = leadingLayers(scoringLayers(plan, geometry.layerCount)) ?? geometry.layerCount;
    const layers = Math.min(countMax, Math.max(1, Math.floor(firstBytesMax / Math.max(1, bytes))));
    return { objectKey, ...summaryRange(shape, { fromLayer: -1, toLayer: layers }) };
  }

  /**
   * Reads and verifies the summaries of an object, or those of the first layer, behind which the others come as they are wanted ({@link readOn}, {@link bringLayer}).
   * @throws {Error} when it is absent, late or damaged.
   */
  async open(sequence: Sequence, ref: SummaryRef): Promise<SummaryRun> {
    if (summaryFormOf(ref.objectKey) === "slots") return this.#wholeRun(await this.#read(sequence, ref));
    try {
      return await this.#openLayers(sequence, ref);
    } catch (error) {
      // Perhaps of another version than its name says: as a whole it is judged surely.
      if (!(error instanceof FormatError)) throw error;
      return this.#wholeRun(await this.#read(sequence, ref));
    }
  }

  async #openLayers(sequence: Sequence, ref: SummaryRef): Promise<SummaryRun> {
    const { ahead, pool, geometry, clock, getMsMax } = this.#options;
    const { sha256, kind, fromToken, tokenCount } = ref;
    const range = this.headOf(sequence, ref);
    // One that is not under way is asked for at once, before what is wanted less.
    const taken = ahead.takeHead(range);
    const begun = taken && (await taken);
    if (begun) countFetch(sequence, { bytes: begun.bytes.byteLength, blocks: 0 });
    const signal = () => AbortSignal.any([sequence.abort.signal, clock.deadline(getMsMax)]);
    const bytes = begun?.bytes ?? (await this.#get(sequence, { range, kind: "demand", signal }));
    const head = decodeSummaryHead(bytes, { sha256, geometry, kind, fromToken, tokenCount });
    if (kind === "none") return { ...head, give() {} };
    const shape = { geometry, kind, segmentCount: head.segments.length };
    const layers = new LayeredSummaries({
      ...{ pool, head, first: bytes.subarray(summaryRange(shape, { fromLayer: -1, toLayer: 0 }).bytes) },
      read: ({ from: fromLayer, to: toLayer }, gateClass) => {
        const place = { objectKey: ref.objectKey, ...summaryRange(shape, { fromLayer, toLayer }) };
        // For whoever holds the blocks: they are read also when the sequence that began is gone.
        return this.#get(sequence, { range: place, kind: gateClass, signal: () => clock.deadline(getMsMax) });
      },
      onLost: (blocks, error) => this.#lost(sequence, ref, blocks, error),
    });
    return { ...head, give: (block, index) => layers.give(block, index) };
  }

  #wholeRun({ kind, fromToken, segments }: SummaryObject): SummaryRun {
    const { geometry } = this.#options;
    const perSegment = geometry.segmentTokens / BLOCK_TOKENS;
    const slot = (index: number) =>
      summarySlot(geometry, segments[Math.floor(index / perSegment)] as SegmentSummary, index % perSegment);
    const give = (block: LogicalBlock, index: number) => {
      if (kind !== "none") this.#write(block, kind, slot(index));
    };
    return { kind, fromToken, segments, give };
  }

  /**
   * Has the summaries of the next layers read that a plan scores, as many as come while the store answers a question for blocks: to be called behind such a question, so
   * that they come while the layer is computed that asked it. Nothing while more are on their way: those of the last time may have come and not been taken in yet.
   */
  readOn(sequence: Sequence, plan: SelectionPlan): void {
    const runs = incomingSummaries(sequence);
    if (runs.length === 0) return;
    const countMax = this.#layersAhead(sequence, runs);
    if (runs.some(({ comingCount }) => comingCount > countMax)) return;
    const scored = scoringLayers(plan, this.#options.geometry.layerCount);
    const next = scored.filter((layer) => runs.some((run) => !run.isAsked(layer))).slice(0, countMax);
    for (const run of runs) void run.want(next, "demand");
  }

  /** Resolves when a sequence's blocks have the summaries of this layer, or lack them for good. Those of the next that the plan scores are asked for as well. Never rejects. */
  async bringLayer(sequence: Sequence, plan: SelectionPlan, layer: number): Promise<void> {
    const runs = incomingSummaries(sequence);
    const there = runs.map((run) => run.want([layer], "demand"));
    const behind = scoringLayers(plan, this.#options.geometry.layerCount).filter((scored) => scored > layer);
    const next = behind.slice(0, this.#layersAhead(sequence, runs));
    for (const run of runs) void run.want(next, "demand");
    await Promise.all(there);
  }

  /** Resolves when a sequence's blocks have the summaries of all layers, also of those that its plan does not score, or lack them for good. Never rejects. */
  async bringAll(sequence: Sequence, kind: GateClass): Promise<void> {
    const layers = Array.from({ length: this.#options.geometry.layerCount }, (_, layer) => layer);
    await Promise.all(incomingSummaries(sequence).map((run) => run.want(layers, kind)));
  }

  #layersAhead({ selection }: Sequence, runs: readonly LayeredSummaries[]): number {
    const speed = this.#options.storeSpeed();
    const bytes = speed === undefined ? AHEAD_BYTES_DEFAULT : speed.latencyMs * speed.bytesPerMs;
    const layers = Math.max(1, Math.floor(bytes / runs.reduce((sum, { layerBytes }) => sum + layerBytes, 0)));
    return selection.exact ? layers : AHEAD_OF_DEFAULT * layers;
  }

  async #get(
    sequence: Sequence,
    { range: { objectKey, ...range }, kind, signal }: { range: RangeRef; kind: GateClass; signal: () => AbortSignal },
  ): Promise<Uint8Array<ArrayBuffer>> {
    const { store, gate } = this.#options;
    const counted = countedReads(store, sequence);
    const object = await gate.run(kind, () => counted.get(objectKey, { range, signal: signal() }));
    if (!object) throw new Error("a summary object is not in the store");
    return object.bytes;
  }

  /** A whole object. */
  async #read(sequence: Sequence, ref: SummaryRef): Promise<SummaryObject> {
    const { store, gate, geometry, clock, getMsMax } = this.#options;
    const counted = countedReads(store, sequence);
    const signal = () => AbortSignal.any([sequence.abort.signal, clock.deadline(getMsMax)]);
    const object = await gate.run("demand", () => counted.get(ref.objectKey, { signal: signal() }));
    if (!object) throw new Error("a summary object is not in the store");
    const { sha256, kind, fromToken, tokenCount } = ref;
    return decodeSummaryObject(object.bytes, { sha256, geometry, kind, fromToken, tokenCount });
  }

  /** Gives every one of a sequence's blocks that can have it a summary of the kind. Never rejects. */
  async supply(sequence: Sequence, kind: SummaryKind, blocks: readonly LogicalBlock[]): Promise<void> {
    const refs = new Map<string, SummaryRef>();
    for (const { stored } of blocks) {
      const ref = stored?.summaries.get(kind);
      if (ref) refs.set(ref.objectKey, ref);
    }
    await Promise.all(
      Array.from(refs.values(), async (ref) => {
        const holders = blocks.filter(({ stored }) => stored?.summaries.get(kind)?.objectKey === ref.objectKey);
        await this.#fromStore(sequence, ref, holders);
      }),
    );
    await this.#fromBlocks(sequence, kind, blocks);
  }

  async #fromStore(sequence: Sequence, ref: SummaryRef, blocks: readonly LogicalBlock[]): Promise<void> {
    const { geometry } = this.#options;
    try {
      const { segments } = await this.#read(sequence, ref);
      for (const block of blocks) {
        const segment = block.stored && segments.find(({ chain }) => chain === block.stored?.chain);
        if (!segment) continue;
        const offset = indexInSegment(block, block.stored as { fromToken: number });
        this.#write(block, ref.kind as SummaryKind, summarySlot(geometry, segment, offset));
      }
    } catch (error) {
      this.#lost(sequence, ref, blocks, error);
    }
  }

  /** The next commit puts the segments again, with summaries of their own. */
  #lost(sequence: Sequence, { objectKey }: SummaryRef, blocks: readonly LogicalBlock[], error: unknown): void {
    if (!(error instanceof StoreError)) for (const { stored } of blocks) if (stored) stored.damaged = true;
    const { requestId } = sequence.request;
    this.#options.log("attach.summary-lost", { requestId, objectKey, error: String(error) });
  }

  async #fromBlocks(sequence: Sequence, kind: SummaryKind, blocks: readonly LogicalBlock[]): Promise<void> {
    const { fetcher, geometry } = this.#options;
    const lacking = () => blocks.filter((block) => isAlive(block) && !block.summaries.has(kind));
    if (lacking().length === 0) return;
    for (const batch of batchesOf(lacking(), sequence.workingSet?.deviceBlocks, geometry.layerCount)) {
      await fetcher.fetch(allLayers(batch), "demand", (read) => countFetch(sequence, read));
      await this.#rebuild(sequence, kind, batch);
    }
  }

  async #rebuild(sequence: Sequence, kind: SummaryKind, blocks: readonly LogicalBlock[]): Promise<void> {
    const { geometry, clock, log, pool } = this.#options;
    for (const block of blocks) {
      if (!block.isHere || block.summaries.has(kind) || !isAlive(block) || sequence.abortRequested) continue;
      try {
        const layers = await readLayers(pool, block);
        // Whoever held it may have let go meanwhile: then the bytes are anybody's.
        if (isAlive(block)) this.#write(block, kind, rebuildSummary(geometry, kind, layers));
      } catch (error) {
        log("summary.rebuild-failed", { requestId: sequence.request.requestId, error: String(error) });
      }
      await clock.breathe(0);
    }
  }

  #write(block: LogicalBlock, kind: SummaryKind, slot: Uint8Array): void {
    if (!isAlive(block) || block.summaries.has(kind)) return;
    this.#options.pool.writeSummary(block.summarySlot, kind, slot);
    block.summaries.add(kind);
  }
}

/** Layers that are read at once where only some are scored: up to the first of these. Undefined where neighbours are. */
function leadingLayers([first = 0, second = first + 1]: readonly number[]): number | undefined {
  return second > first + 1 ? first + 1 : undefined;
}

/** All at once; where the pool cannot hold all, as many as half of what is set aside. */
function batchesOf(
  blocks: readonly LogicalBlock[],
  deviceBlocks: number = Number.POSITIVE_INFINITY,
  layerCount: number,
): LogicalBlock[][] {
  const countMax = Math.max(1, Math.floor(deviceBlocks / (2 * layerCount)));
  const batches: LogicalBlock[][] = [];
  for (let from = 0; from < blocks.length; from += countMax) batches.push(blocks.slice(from, from + countMax));
  return batches;
}

/** Its memory is its own still. */
function isAlive(block: LogicalBlock): boolean {
  return block.summarySlot !== NOT_RESIDENT;
}
