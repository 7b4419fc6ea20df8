/**
 * Summaries for blocks that lack a kind: a resumed session reads only the kind that its turn scores, and another turn, or the replay of a
 * lost span, may score another. They come from the object of that kind, else from the block's own bytes; a block that gets them from
 * neither must not be scored, and is computed again.
 */
import { type KvPool, NOT_RESIDENT, type SummaryKind } from "../../kernels/contract.ts";
import { type PageStore, StoreError } from "../../storage/contract.ts";
import type { KvGeometry } from "../../storage/geometry.ts";
import type { SummaryRef } from "../../storage/manifest.ts";
import { decodeSummaryObject, type SummaryObject, summarySlot } from "../../storage/summary-object.ts";
import type { Sequence } from "../sequence/sequence.ts";
import { countedReads, countFetch } from "../sequence/traffic.ts";
import type { Clock, EngineLog } from "../settings.ts";
import type { LogicalBlock } from "./block-cache.ts";
import { allLayers, type BlockFetcher, indexInSegment } from "./block-fetcher.ts";
import type { Gate } from "./gate.ts";
import type { ReadAhead } from "./read-ahead.ts";
import { readLayers, rebuildSummary } from "./rebuild-summary.ts";

/** What a supply works with. */
export interface SummarySupplyOptions {
  store: PageStore;
  /** Where reads of summaries may be under way already. */
  ahead: Pick<ReadAhead, "takeWhole">;
  pool: KvPool;
  fetcher: BlockFetcher;
  gate: Gate;
  geometry: KvGeometry;
  clock: Clock;
  log: EngineLog;
  getMsMax: number;
}

/** Reads and rebuilds summaries for all sequences of an engine. */
export class SummarySupply {
  readonly #options: SummarySupplyOptions;

  constructor(options: SummarySupplyOptions) {
    this.#options = options;
  }

  /** Reads and verifies one summary object. @throws {Error} when it is absent, late or damaged. */
  async read(sequence: Sequence, ref: SummaryRef): Promise<SummaryObject> {
    const { store, ahead, gate, geometry, clock, getMsMax } = this.#options;
    const counted = countedReads(store, sequence);
    const signal = () => AbortSignal.any([sequence.abort.signal, clock.deadline(getMsMax)]);
    // One that is not under way is asked for at once, before what is wanted less.
    const taken = ahead.takeWhole(ref.objectKey);
    const begun = taken && (await taken);
    if (begun) countFetch(sequence, { bytes: begun.bytes.byteLength, blocks: 0 });
    const object = begun ?? (await gate.run("demand", () => counted.get(ref.objectKey, { signal: signal() })));
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
    const { geometry, log } = this.#options;
    try {
      const { segments } = await this.read(sequence, ref);
      for (const block of blocks) {
        const segment = block.stored && segments.find(({ chain }) => chain === block.stored?.chain);
        if (!segment) continue;
        const offset = indexInSegment(block, block.stored as { fromToken: number });
        this.#write(block, ref.kind as SummaryKind, summarySlot(geometry, segment, offset));
      }
    } catch (error) {
      // The next commit puts the segments again, with summaries of their own.
      if (!(error instanceof StoreError)) for (const { stored } of blocks) if (stored) stored.damaged = true;
      const { requestId } = sequence.request;
      log("attach.summary-lost", { requestId, objectKey: ref.objectKey, error: String(error) });
    }
  }

  async #fromBlocks(sequence: Sequence, kind: SummaryKind, blocks: readonly LogicalBlock[]): Promise<void> {
    const { fetcher, geometry, clock, log, pool } = this.#options;
    const lacking = () => blocks.filter((block) => isAlive(block) && !block.summaries.has(kind));
    if (lacking().length === 0) return;
    countFetch(sequence, await fetcher.fetch(allLayers(lacking()), "demand"));
    for (const block of lacking()) {
      if (!block.resident || sequence.abortRequested) continue;
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

/** Its memory is its own still. */
function isAlive(block: LogicalBlock): boolean {
  return block.summarySlot !== NOT_RESIDENT;
}
