/**
 * Writes what turns leave behind. Segments are put as soon as their last block is sealed, while decoding goes on; at the end of a turn only the
 * tail and the manifest remain. The bytes are copied before a sequence gives its memory back, so the store never holds up decoding;
 * what would exceed the write-behind budget is left for the end of the turn, and in the end left out: KV is a cache of the log.
 */
import { BLOCK_TOKENS, type SummaryKind } from "../../kernels/contract.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { type SummaryObjectKind, summaryObjectKinds } from "../../storage/geometry.ts";
import type { Manifest } from "../../storage/manifest.ts";
import { decodeSegmentHeader, encodeSegment, segmentBytes } from "../../storage/segment.ts";
import { layTail, tailBytes } from "../../storage/tail.ts";
import { allLayers } from "../kv/block-fetcher.ts";
import type { LogicalBlock } from "../kv/logical-block.ts";
import { readLayers, rebuildSummary } from "../kv/rebuild-summary.ts";
import type { StoredSegment } from "../kv/stored-segment.ts";
import type { Sequence } from "../sequence/sequence.ts";
import { CommitQueue, type CommitStatus, snapshotBytes, type TurnSnapshot } from "./commit-queue.ts";
import type { PersisterOptions } from "./persister-options.ts";
import { retried } from "./retry.ts";

/** Persistence of one engine. */
export class Persister {
  readonly #options: PersisterOptions;
  readonly #commits: CommitQueue;
  #pendingBytes = 0;

  constructor(options: PersisterOptions) {
    this.#options = options;
    this.#commits = new CommitQueue(options);
  }

  /** Bytes that wait to be written. */
  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  /** The manifest a session was attached by. */
  noteManifest(sequence: Sequence, loaded: { manifest: Manifest; etag: string }): void {
    if (sequence.sessionKey !== undefined) this.#commits.note(sequence.sessionKey, loaded);
  }

  /** What is known of a session's commits. */
  status(sessionKey: string): CommitStatus | undefined {
    return this.#commits.status(sessionKey);
  }

  /** Before a session's objects are deleted that began before `bornMs`: resolves when nothing that turns have left of it so far will be committed any more. */
  async forget(sessionKey: string, bornMs: number): Promise<void> {
    await this.#commits.forget(sessionKey, bornMs);
  }

  /** Blocks were sealed: segments that are whole now go on their way. */
  sealed(sequence: Sequence, blockIndices: readonly number[]): void {
    if (!sequence.request.session) return;
    const perSegment = this.#blocksPerSegment;
    for (const segmentIndex of new Set(blockIndices.map((index) => Math.floor(index / perSegment)))) {
      const blocks = this.#blocksOf(sequence, segmentIndex);
      if (blocks?.every((block) => block.isHere)) this.#put(sequence, segmentIndex, blocks);
    }
  }

  /** Copies what the turn left and queues its commit. Resolves when the sequence's memory may be released. */
  async endTurn(sequence: Sequence): Promise<void> {
    const endedMs = this.#options.clock.wallMs();
    await this.copied(sequence);
    const tokenCount = sequence.computedCount;
    const { requestId, session } = sequence.request;
    if (!session || tokenCount <= sequence.request.turnStart) return;
    const segments = await this.#segments(sequence, tokenCount);
    const segmentEnd = segments.length * this.#options.geometry.segmentTokens;
    const wholeSegments = Math.floor(tokenCount / this.#options.geometry.segmentTokens);
    const tail =
      segments.length === wholeSegments && segmentEnd < tokenCount
        ? await this.#copyTail(sequence, segmentEnd, tokenCount)
        : undefined;
    const end = tail ? tokenCount : segmentEnd;
    await this.copied(sequence);
    if (end === 0) return;
    // What it calls keeps nothing of the sequence: it may wait for long.
    const snapshot: TurnSnapshot = {
      sessionKey: sequence.sessionKey as string,
      sessionId: session.id,
      namespace: sequence.namespace,
      sinceMs: sequence.sinceMs,
      bornMs: session.bornMs,
      tokenCount: end,
      chain: sequence.chainAt(end),
      spans: sequence.spans.until(end),
      endedMs,
      segments,
      isCut: end < tokenCount,
      tail,
      hotBlocks: sequence.heat.hottest(LIMITS.hotBlocksPerLayerMax, Math.floor(end / BLOCK_TOKENS)),
      committed: (generation) => this.#options.onCommitted?.(requestId, { tokens: end, generation }),
      release: () => {
        this.#pendingBytes -= heldBytes;
      },
    };
    const heldBytes = snapshotBytes(snapshot);
    if (this.#pendingBytes + heldBytes > this.#options.writeBehindBytesMax) {
      this.#options.log("persist.dropped", { requestId, commit: true, pendingBytes: this.#pendingBytes });
      return;
    }
    this.#pendingBytes += heldBytes;
    this.#commits.push(snapshot);
  }

  /** Resolves when no read of the sequence's memory is under way. */
  async copied(sequence: Sequence): Promise<void> {
    await Promise.allSettled([...sequence.copying]);
  }

  /** Commits everything that is queued, whatever the pace between commits. */
  async flush(): Promise<void> {
    await this.#commits.flush();
  }

  get #blocksPerSegment(): number {
    return this.#options.geometry.segmentTokens / BLOCK_TOKENS;
  }

  #blocksOf(sequence: Sequence, segmentIndex: number): LogicalBlock[] | undefined {
    const perSegment = this.#blocksPerSegment;
    const blocks: LogicalBlock[] = [];
    for (let index = segmentIndex * perSegment; index < (segmentIndex + 1) * perSegment; index++) {
      const block = sequence.blocks[index];
      if (!block) return undefined;
      blocks.push(block);
    }
    return blocks;
  }

  /**
   * Every whole segment from 0 on, stored or on its way; ends before the first that cannot be written. One that is stored in part, or
   * whose repair failed, is named all the same: what is missing of it is recomputed, what follows it is not lost.
   */
  async #segments(sequence: Sequence, tokenCount: number): Promise<StoredSegment[]> {
    const { geometry } = this.#options;
    const segments: StoredSegment[] = [];
    for (let index = 0; (index + 1) * geometry.segmentTokens <= tokenCount; index++) {
      const blocks = this.#blocksOf(sequence, index);
      if (!blocks) break;
      const segment =
        commonSegment(blocks) ?? (await this.#putAgain(sequence, index, blocks)) ?? anySegment(blocks, sequence);
      if (!segment) break;
      segments.push(segment);
    }
    return segments;
  }

  async #putAgain(
    sequence: Sequence,
    segmentIndex: number,
    blocks: readonly LogicalBlock[],
  ): Promise<StoredSegment | undefined> {
    await this.#fetch(blocks);
    return blocks.every((block) => block.isHere) ? this.#put(sequence, segmentIndex, blocks) : undefined;
  }

  async #fetch(blocks: readonly LogicalBlock[]): Promise<void> {
    if (blocks.every((block) => block.isHere)) return;
    await this.#options.fetcher.fetch(allLayers(blocks), "demand");
  }

  /** Puts a segment of blocks that are on the device or in host memory; undefined where the write-behind budget has no room. */
  #put(sequence: Sequence, segmentIndex: number, blocks: readonly LogicalBlock[]): StoredSegment | undefined {
    const known = commonSegment(blocks);
    if (known) return known;
    const { clock, geometry, keys, log, writeBehindBytesMax } = this.#options;
    const objectBytes = segmentBytes(geometry);
    const heldBytes = objectBytes + geometry.summaryKinds.length * geometry.summaryBytes * this.#blocksPerSegment;
    if (this.#pendingBytes + heldBytes > writeBehindBytesMax) {
      log("persist.dropped", { requestId: sequence.request.requestId, segmentIndex, pendingBytes: this.#pendingBytes });
      return undefined;
    }
    const chain = sequence.chain((segmentIndex + 1) * this.#blocksPerSegment - 1);
    const checksums = new Uint32Array(geometry.layerCount * this.#blocksPerSegment);
    const slots = new Map<SummaryObjectKind, Uint8Array>(
      summaryObjectKinds(geometry).map((kind) => [
        kind,
        new Uint8Array(kind === "none" ? 0 : geometry.summaryBytes * this.#blocksPerSegment),
      ]),
    );
    const objectKey = keys.of(sequence.namespace).segment(chain);
    const fromToken = segmentIndex * geometry.segmentTokens;
    this.#pendingBytes += heldBytes;
    const copied = this.#copySegment(blocks, { chain, fromToken, checksums, slots });
    track(sequence.copying, copied);
    const written = copied
      .then((bytes) => this.#write(objectKey, bytes))
      .catch((error: unknown) => {
        log("persist.segment-failed", { objectKey, error: String(error) });
        return false;
      });
    const segment: StoredSegment = {
      chain,
      fromToken,
      tokenCount: geometry.segmentTokens,
      objectKey,
      objectOffset: 0,
      objectBytes,
      checksums,
      summaries: new Map(),
      slots,
      damaged: false,
      written,
      isWritten: false,
      seenMs: clock.nowMs(),
    };
    for (const block of blocks) block.stored = segment;
    void written.then((stored) => {
      this.#pendingBytes -= heldBytes;
      segment.isWritten = stored;
      segment.seenMs = clock.nowMs();
      if (!stored) for (const block of blocks) if (block.stored === segment) block.stored = undefined;
    });
    return segment;
  }

  async #copySegment(
    blocks: readonly LogicalBlock[],
    into: { chain: string; fromToken: number; checksums: Uint32Array; slots: Map<SummaryObjectKind, Uint8Array> },
  ): Promise<Uint8Array> {
    const { geometry } = this.#options;
    const { bytes, summaries } = await this.#copy(blocks);
    for (const [kind, slots] of summaries)
      for (const [index, slot] of slots.entries()) into.slots.get(kind)?.set(slot, index * geometry.summaryBytes);
    const encoded = encodeSegment({
      geometry,
      fromToken: into.fromToken,
      chain: into.chain,
      block: (layer, index) => bytes[index]?.[layer] as Uint8Array,
    });
    into.checksums.set(decodeSegmentHeader(encoded).checksums);
    return encoded;
  }

  /** Bytes of blocks that are on the device or in host memory, layer by layer, and of each kind one summary slot per block. */
  async #copy(
    blocks: readonly LogicalBlock[],
  ): Promise<{ bytes: Uint8Array[][]; summaries: Map<SummaryKind, Uint8Array[]> }> {
    const { pool, geometry } = this.#options;
    const bytes = await Promise.all(blocks.map((block) => readLayers(pool, block)));
    const summaries = new Map<SummaryKind, Uint8Array[]>();
    for (const kind of geometry.summaryKinds) {
      const slots = blocks.map((block, index) => this.#summaryOf(block, kind, bytes[index] as Uint8Array[]));
      summaries.set(kind, await Promise.all(slots));
    }
    return { bytes, summaries };
  }

  /** A kind that the block lacks is made from its bytes, per layer. */
  async #summaryOf(block: LogicalBlock, kind: SummaryKind, layers: readonly Uint8Array[]): Promise<Uint8Array> {
    const { pool, geometry } = this.#options;
    if (block.summaries.has(kind)) return await pool.readSummary(block.summarySlot, kind);
    return rebuildSummary(geometry, kind, layers);
  }

  async #write(objectKey: string, bytes: Uint8Array): Promise<boolean> {
    await retried(this.#options, (signal) => this.#options.store.put(objectKey, bytes, { signal }));
    return true;
  }

  async #copyTail(sequence: Sequence, fromToken: number, tokenCount: number): Promise<TurnSnapshot["tail"]> {
    const { pool, geometry, log, writeBehindBytesMax } = this.#options;
    if (this.#pendingBytes + tailBytes(geometry, tokenCount - fromToken) > writeBehindBytesMax) {
      log("persist.dropped", { requestId: sequence.request.requestId, tail: true, pendingBytes: this.#pendingBytes });
      return undefined;
    }
    const firstIndex = fromToken / BLOCK_TOKENS;
    const endIndex = Math.floor(tokenCount / BLOCK_TOKENS);
    const sealed = sequence.blocks.slice(firstIndex, endIndex);
    if (!sealed.every((block) => block !== undefined)) return undefined;
    await this.#fetch(sealed);
    if (!sealed.every((block) => block.isHere)) return undefined;
    const open = sequence.opens.get(endIndex);
    const openCount = tokenCount % BLOCK_TOKENS;
    if (openCount > 0 && !open) return undefined;
    const { bytes: blocks, summaries } = await this.#copy(sealed);
    const bytes = layTail({
      geometry,
      fromToken,
      chain: sequence.chainAt(tokenCount),
      ids: sequence.ids.subarray(fromToken, tokenCount),
      block: (index, layer) => blocks[index]?.[layer] as Uint8Array,
      summary: (index, kind) => summaries.get(kind)?.[index] as Uint8Array,
      open: open && openCount > 0 ? await pool.readOpen(open.slot, openCount) : new Uint8Array(0),
    });
    return { fromToken, tokenCount: tokenCount - fromToken, bytes };
  }
}

/** The segment that all blocks are stored in, if they share one. */
function commonSegment(blocks: readonly LogicalBlock[]): StoredSegment | undefined {
  const segment = blocks[0]?.stored;
  return segment &&
    !segment.damaged &&
    blocks.every((block) => block.stored === segment || block.stored?.chain === segment.chain)
    ? segment
    : undefined;
}

/** A segment that some of the blocks are stored in. */
function anySegment(blocks: readonly LogicalBlock[], sequence: Sequence): StoredSegment | undefined {
  const chain = sequence.chain((blocks.at(-1) as LogicalBlock).index);
  return blocks.find((block) => block.stored?.chain === chain && !block.stored.damaged)?.stored;
}

function track(set: Set<Promise<unknown>>, promise: Promise<unknown>): void {
  set.add(promise);
  promise.then(
    () => set.delete(promise),
    () => set.delete(promise),
  );
}
