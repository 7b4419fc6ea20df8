/**
 * Finds the KV a new sequence can start from: blocks and tails that are on the device or in host memory, then, for a session, its manifest
 * in the page store (and its parent's after a fork): summaries first, then the tail; blocks stay in the store until a query selects them. Whatever is
 * absent, late, damaged or about other tokens is left as a gap, which is computed from the log. Never an error for the user.
 */
import { BLOCK_TOKENS, type KvPool, NOT_RESIDENT } from "../../kernels/contract.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { ResumeMode, ResumeUsage } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import type { PageStore } from "../../storage/contract.ts";
import { type KvGeometry, type SummaryObjectKind, sameGeometry, summaryObjectKinds } from "../../storage/geometry.ts";
import { loadManifest, type Manifest, type SummaryRef, type WholeRef } from "../../storage/manifest.ts";
import { decodeTail, type Tail } from "../../storage/tail.ts";
import type { SessionKeys } from "../persist/session-keys.ts";
import { WHOLE_WAIT_FACTOR } from "../sequence/patience.ts";
import type { Sequence } from "../sequence/sequence.ts";
import { nextRows } from "../sequence/slice-planner.ts";
import { countedReads, countFetch } from "../sequence/traffic.ts";
import type { Clock, EngineLog } from "../settings.ts";
import type { BlockCache } from "./block-cache.ts";
import { allLayers, type BlockFetcher, type FetchTotals } from "./block-fetcher.ts";
import { type BurstItem, burstOf, burstRanges } from "./first-burst.ts";
import type { Gate } from "./gate.ts";
import { isScoredBy, type LogicalBlock } from "./logical-block.ts";
import { agreement, type OpenBlock, type OpenBlocks } from "./open-blocks.ts";
import { DENSE, SpanList } from "./provenance.ts";
import type { RangeRef, ReadAhead } from "./read-ahead.ts";
import { chooseResume, type ResumeCost, type ResumeSpeeds } from "./resume-choice.ts";
import type { StoredSegment } from "./stored-segment.ts";
import type { SummaryRun, SummarySupply } from "./summary-supply.ts";
import { claimTail } from "./tail-parking.ts";

/** What an attacher works with; all of it stays the engine's. */
export interface AttacherOptions {
  store: PageStore;
  pool: KvPool;
  cache: BlockCache;
  opens: OpenBlocks;
  fetcher: BlockFetcher;
  ahead: ReadAhead;
  supply: SummarySupply;
  gate: Gate;
  geometry: KvGeometry;
  keys: SessionKeys;
  clock: Clock;
  log: EngineLog;
  getMsMax: number;
  missWaitMs: number;
  /** Tokens of a whole run of summaries, which is one object. */
  summaryRunTokens: number;
  /** For requests that do not say how their session comes back. */
  resume: ResumeMode;
  /** What store and prompt rows have been measured to take. */
  speeds(attendedTokens: number): ResumeSpeeds;
  /** Told how a session comes back. */
  onResume(sequence: Sequence, usage: ResumeUsage): void;
  /** Told when a session's summaries and tail have been read. */
  onSummaries(sequence: Sequence): void;
  /** Told of every manifest that was read, so that the next commit can replace it. */
  onManifest(sequence: Sequence, loaded: { manifest: Manifest; etag: string }): void;
}

/** Attaches sequences to KV that exists. */
export class Attacher {
  readonly #options: AttacherOptions;

  constructor(options: AttacherOptions) {
    this.#options = options;
  }

  /** Gives the sequence every block and tail that can be trusted. Ends early when it is aborted. */
  async attach(sequence: Sequence): Promise<void> {
    const { clock, fetcher, missWaitMs } = this.#options;
    const startMs = clock.nowMs();
    this.#fromMemory(sequence);
    const onDevice = new Set<LogicalBlock | OpenBlock>(sequence.opens.values());
    const inHost = new Set<LogicalBlock>();
    for (const block of sequence.blocks) {
      if (block?.resident) onDevice.add(block);
      else if (block?.isHere) inHost.add(block);
    }
    if (!sequence.workingSet) await fetcher.promote(sequence.blocks.filter((block) => block !== undefined));
    const { session, turnStart } = sequence.request;
    if (session && turnStart > 0 && (sequence.nextPosition ?? turnStart) < turnStart) {
      for (const sessionId of [session.id, session.parentId]) {
        if (sessionId !== undefined && (sequence.nextPosition ?? 0) < turnStart && !sequence.abortRequested) {
          await this.#fromStore(sequence, sessionId);
        }
      }
      await this.#firstBurst(sequence);
    }
    for (const [index, block] of sequence.blocks.entries()) {
      if (block) sequence.reused.set(index, onDevice.has(block) ? "device" : inHost.has(block) ? "host" : "store");
    }
    const cachedTokens = reusedTokens(sequence, () => true);
    const device = reusedTokens(sequence, (part) => onDevice.has(part));
    const host = reusedTokens(sequence, (part) => "index" in part && inHost.has(part));
    sequence.usage.cachedTokens = cachedTokens;
    sequence.usage.source = { device, host, store: cachedTokens - device - host };
    // Reading summaries is part of the wait; but of what they choose, some is waited for in any case.
    sequence.wholeWaitUntilMs = startMs + WHOLE_WAIT_FACTOR * missWaitMs;
    sequence.missWaitUntilMs = Math.max(startMs + missWaitMs, clock.nowMs() + missWaitMs / 2);
  }

  /** At least the prompt's last token is always computed: its logits are wanted. */
  #fromMemory(sequence: Sequence): void {
    const { cache, opens } = this.#options;
    const limit = sequence.promptEnd - 1;
    const keys: string[] = [];
    while ((keys.length + 1) * BLOCK_TOKENS <= limit) keys.push(sequence.blockKey(keys.length));
    for (const block of cache.acquireAll(keys)) sequence.hold(cache, block);
    const index = Math.floor((sequence.nextPosition ?? 0) / BLOCK_TOKENS);
    claimTail(sequence, opens, { index, limit: limit - index * BLOCK_TOKENS });
  }

  async #fromStore(sequence: Sequence, sessionId: string): Promise<void> {
    const { log } = this.#options;
    try {
      const reading = this.#manifest(sequence, sessionId);
      this.#beginSummaries(sequence);
      const manifest = await reading;
      if (!manifest) return;
      const matching = matchingSegments(sequence, manifest);
      const mode = this.#chooseResume(sequence, manifest);
      if (mode === "recompute") return;
      sequence.hotBlocks = hotBlocksBelow(manifest, matching);
      sequence.heat.seed(sequence.hotBlocks);
      // Nothing can be computed without summaries and tail: they are asked for first.
      const needed = [this.#summaries(sequence, manifest, matching), this.#tail(sequence, manifest, matching)];
      if (mode === "lazy") this.#beginBurst(sequence, manifest, matching);
      await Promise.all(needed);
      this.#options.onSummaries(sequence);
    } catch (error) {
      log("attach.miss", { requestId: sequence.request.requestId, error: String(error) });
    }
  }

  /**
   * Begins to read the summaries that the log says a manifest will name, behind the manifest and not a round trip later: those of whole runs, but the newest, which may not
   * have been compacted. Where the log was never stored they are absent, and that is all.
   */
  #beginSummaries(sequence: Sequence): void {
    const { ahead, geometry, keys, resume, summaryRunTokens, supply } = this.#options;
    const { namespace, request } = sequence;
    const mode = request.resume ?? resume;
    if (mode !== "lazy" && mode !== "full") return;
    const kind = kindsByUse(sequence, geometry)[0] as SummaryObjectKind;
    const heads: RangeRef[] = [];
    for (let end = summaryRunTokens; end + summaryRunTokens <= request.turnStart; end += summaryRunTokens) {
      if (!hasGap(sequence, end - summaryRunTokens, end)) continue;
      const chain = sequence.chain(end / BLOCK_TOKENS - 1);
      const objectKey = keys.of(namespace).summary(kind, chain, summaryRunTokens);
      heads.push(supply.headOf(sequence, { objectKey, kind, tokenCount: summaryRunTokens }));
    }
    if (heads.length > 0) sequence.readAhead.push(ahead.beginHeads(heads));
  }

  #chooseResume(sequence: Sequence, manifest: Manifest): ResumeUsage["mode"] {
    const { geometry, resume, speeds, onResume } = this.#options;
    const contextTokens = sequence.tokenCount;
    const tokenCount = Math.max(0, manifest.tokenCount - sequence.computedCount);
    const blockCount = Math.ceil(tokenCount / BLOCK_TOKENS);
    const { budgetTokens, policy } = sequence.selection;
    const cost: ResumeCost = {
      ...{ tokenCount, contextTokens, layerCount: geometry.layerCount },
      blockBytes: blockCount * geometry.blockBytes * geometry.layerCount,
      summaryBytes: blockCount * geometry.summaryBytes,
      budgetTokens: policy === DENSE ? undefined : budgetTokens,
    };
    const usage = chooseResume(sequence.request.resume ?? resume, cost, speeds(contextTokens / 2));
    sequence.usage.resume ??= usage;
    onResume(sequence, sequence.usage.resume);
    return sequence.usage.resume.mode;
  }

  async #manifest(sequence: Sequence, sessionId: string): Promise<Manifest | undefined> {
    const { store, gate, keys, geometry, onManifest } = this.#options;
    const loaded = await gate.run("demand", () =>
      loadManifest(
        countedReads(store, sequence),
        keys.of(sequence.namespace).session(sessionId),
        this.#deadline(sequence),
      ),
    );
    if (!loaded) return undefined;
    const { session } = sequence.request;
    if (sessionId === session?.id) {
      onManifest(sequence, loaded);
      // Of one of the same id that was deleted while no engine was there to do it.
      if ((loaded.manifest.bornMs ?? Infinity) < (session.bornMs ?? 0)) return undefined;
    }
    return sameGeometry(loaded.manifest.geometry, geometry) ? loaded.manifest : undefined;
  }

  /**
   * Of the kind that the turn scores; where such an object cannot be had, another kind's has the checksums at least, and the blocks'
   * summaries are rebuilt when they are needed.
   */
  async #summaries(sequence: Sequence, manifest: Manifest, segmentCount: number): Promise<void> {
    const { geometry } = this.#options;
    const trusted = { ...manifest, segments: manifest.segments.slice(0, segmentCount) };
    let missing = [{ fromToken: 0, tokenCount: segmentCount * geometry.segmentTokens }];
    for (const kind of kindsByUse(sequence, geometry)) {
      const refs = manifest.summaries.filter(
        (ref) =>
          ref.kind === kind &&
          missing.some((range) => overlaps(ref, range)) &&
          hasGap(sequence, ref.fromToken, ref.fromToken + ref.tokenCount),
      );
      const results = await Promise.all(refs.map((ref) => this.#summaryObject(sequence, ref, trusted)));
      missing = refs.filter((_ref, index) => results[index] === false);
    }
  }

  /** False when the object could not be had. */
  async #summaryObject(sequence: Sequence, ref: SummaryRef, trusted: Manifest): Promise<boolean> {
    const { log, supply } = this.#options;
    try {
      this.#admitSegments(sequence, await supply.open(sequence, ref), trusted);
      return true;
    } catch (error) {
      const { requestId } = sequence.request;
      log("attach.summary-lost", { requestId, objectKey: ref.objectKey, error: String(error) });
      return false;
    }
  }

  #admitSegments(sequence: Sequence, run: SummaryRun, trusted: Manifest): void {
    const { segmentTokens } = this.#options.geometry;
    const first = run.fromToken / segmentTokens;
    for (const [offset, summary] of run.segments.entries()) {
      const segment = trusted.segments[first + offset];
      if (segment?.chain !== summary.chain) continue;
      const stored: StoredSegment = {
        ...segment,
        checksums: summary.checksums,
        summaries: new Map(trusted.summaries.filter((ref) => overlaps(ref, segment)).map((ref) => [ref.kind, ref])),
        slots: new Map(),
        damaged: false,
        written: Promise.resolve(true),
        isWritten: true,
        seenMs: this.#options.clock.nowMs(),
      };
      const give = (block: LogicalBlock, index: number) =>
        run.give(block, (offset * segmentTokens) / BLOCK_TOKENS + index);
      this.#admitBlocks(sequence, stored, { kind: run.kind, give });
    }
  }

  /** Store-backed blocks: summaries on the device, bytes still in the store. One that is there already gets the kind that it lacks. */
  #admitBlocks(sequence: Sequence, stored: StoredSegment, { kind, give }: Pick<SummaryRun, "kind" | "give">): void {
    const { cache, opens } = this.#options;
    const first = stored.fromToken / BLOCK_TOKENS;
    const limit = sequence.promptEnd - 1;
    for (let offset = 0; offset < stored.tokenCount / BLOCK_TOKENS; offset++) {
      const index = first + offset;
      if (sequence.blocks[index] || (index + 1) * BLOCK_TOKENS > limit || sequence.abortRequested) continue;
      const key = sequence.blockKey(index);
      const known = cache.acquire(key);
      const block = known ?? cache.create(index);
      if (!known) block.stored = stored;
      if (kind !== "none" && !isScoredBy(block, kind)) give(block, offset);
      sequence.hold(cache, known ?? cache.publish(block, key));
      sequence.dropOpen(index, opens);
    }
  }

  async #tail(sequence: Sequence, manifest: Manifest, segmentCount: number): Promise<void> {
    const { log, geometry } = this.#options;
    const ref = manifest.tail;
    if (
      !ref ||
      ref.fromToken !== segmentCount * geometry.segmentTokens ||
      !hasGap(sequence, ref.fromToken, manifest.tokenCount)
    )
      return;
    try {
      const object = await this.#whole(sequence, ref);
      const expected = { sha256: ref.sha256, geometry, fromToken: ref.fromToken, tokenCount: ref.tokenCount };
      await this.#admitTail(sequence, decodeTail(object, expected), new SpanList(manifest.spans));
    } catch (error) {
      log("attach.tail-lost", {
        requestId: sequence.request.requestId,
        objectKey: ref.objectKey,
        error: String(error),
      });
    }
  }

  /** As much of a tail as has the sequence's tokens, attended in the same way. */
  async #admitTail(sequence: Sequence, tail: Tail, spans: SpanList): Promise<void> {
    if (sequence.abortRequested) return;
    const limit = sequence.promptEnd - 1;
    for (let offset = 0; offset * BLOCK_TOKENS < tail.ids.length; offset++) {
      const index = tail.fromToken / BLOCK_TOKENS + offset;
      const from = index * BLOCK_TOKENS;
      const stored = {
        ids: tail.ids.subarray(offset * BLOCK_TOKENS, (offset + 1) * BLOCK_TOKENS),
        describe: (tokenCount: number) => spans.describeWhole(from, tokenCount),
      };
      const ids = sequence.ids.subarray(from, from + BLOCK_TOKENS);
      const own = (tokenCount: number) => sequence.spans.describeWhole(from, tokenCount);
      const tokenCount = agreement(stored, ids, own, limit - from);
      if (offset < tail.blockCount) {
        if (tokenCount < BLOCK_TOKENS) return;
        if (!sequence.blocks[index]) await this.#admitTailBlock(sequence, tail, offset);
      } else if (tokenCount > (sequence.opens.get(index)?.tokenCount ?? 0) && !sequence.blocks[index]) {
        this.#admitOpen(sequence, tail, { index, tokenCount });
      }
    }
  }

  async #admitTailBlock(sequence: Sequence, tail: Tail, offset: number): Promise<void> {
    const { cache, opens, pool, geometry } = this.#options;
    const index = tail.fromToken / BLOCK_TOKENS + offset;
    for (let room = cache.roomFor(geometry.layerCount); room; room = cache.roomFor(geometry.layerCount)) await room;
    if (sequence.abortRequested || sequence.blocks[index]) return;
    const block = cache.create(index);
    cache.allocateAll(block);
    for (const [layer, id] of block.deviceBlocks.entries()) pool.writeBlock(id, tail.block(offset, layer));
    for (const kind of geometry.summaryKinds) {
      pool.writeSummary(block.summarySlot, kind, tail.summary(offset, kind));
      block.summaries.add(kind);
    }
    sequence.hold(cache, cache.publish(block, sequence.blockKey(index)));
    sequence.dropOpen(index, opens);
  }

  #admitOpen(sequence: Sequence, tail: Tail, open: { index: number; tokenCount: number }): void {
    const { opens, pool } = this.#options;
    if (opens.availableCount === 0) return;
    const slot = opens.take();
    pool.writeOpen(slot, tail.ids.length % BLOCK_TOKENS, tail.open);
    sequence.adoptOpen(open.index, { slot, tokenCount: open.tokenCount }, opens);
  }

  /**
   * One parallel burst: what every query of the first step attends to (sinks and recent pages) in all layers, of which the first layer's is waited for (a query
   * that needs another waits for it), and of each layer the blocks that the last turn's queries chose most. A session that comes back as a whole: everything.
   */
  async #firstBurst(sequence: Sequence): Promise<void> {
    const { fetcher, geometry, supply } = this.#options;
    const rows = nextRows(sequence, LIMITS.stepRowsMax);
    const count = (read: FetchTotals) => countFetch(sequence, read);
    if (sequence.usage.resume?.mode === "full" && !sequence.workingSet && !sequence.abortRequested) {
      const blocks = sequence.blocks.filter((block) => block !== undefined);
      const summaries = supply.bringAll(sequence, "demand");
      await fetcher.fetch(allLayers(blocks), "demand", count);
      await summaries;
    } else if (rows && rows.plan.kind !== "dense" && !sequence.abortRequested) {
      const wants = ({ index, layer }: BurstItem) => sequence.blocks[index]?.deviceBlocks[layer] === NOT_RESIDENT;
      const burst = burstOf(sequence, { from: rows.from, blockEnd: sequence.blocks.length, geometry, wants });
      const layersOf = (items: readonly BurstItem[]) =>
        items.map(({ index, layer }) => ({ block: sequence.blocks[index] as LogicalBlock, layer }));
      const first = fetcher.fetch(layersOf(burst.forced.filter(({ layer }) => layer === 0)), "demand", count);
      const forced = fetcher.fetch(layersOf(burst.forced.filter(({ layer }) => layer > 0)), "demand", count);
      void this.#endBurst(sequence, [forced, fetcher.fetch(layersOf(burst.hot), "fill", count)]);
      await first;
      return;
    }
    this.#forgetAhead(sequence);
  }

  /** The rest comes in while the first layers are computed; a query that chooses a block waits for it as for any other. */
  async #endBurst(sequence: Sequence, reads: readonly Promise<void>[]): Promise<void> {
    try {
      await Promise.all(reads);
    } catch (error) {
      this.#options.log("attach.burst-failed", { requestId: sequence.request.requestId, error: String(error) });
    }
    this.#forgetAhead(sequence);
  }

  #forgetAhead(sequence: Sequence): void {
    for (const forget of sequence.readAhead.splice(0)) countFetch(sequence, { bytes: forget(), blocks: 0 });
  }

  /** Begins to read what {@link #firstBurst} will want if everything that the manifest names can be had. */
  #beginBurst(sequence: Sequence, manifest: Manifest, segmentCount: number): void {
    const { ahead, geometry } = this.#options;
    const blockEnd = (segmentCount * geometry.segmentTokens) / BLOCK_TOKENS;
    const from = Math.min(manifest.tokenCount, sequence.promptEnd - 1);
    const wants = ({ index }: BurstItem) => sequence.blocks[index] === undefined;
    const { forced, hot } = burstOf(sequence, { from, blockEnd, geometry, wants });
    // As two lists: the fetcher, too, joins neighbours within each.
    for (const items of [forced, hot])
      sequence.readAhead.push(ahead.begin(burstRanges(items, manifest.segments, geometry)));
  }

  async #whole(sequence: Sequence, ref: WholeRef): Promise<Uint8Array> {
    const { store, gate } = this.#options;
    const counted = countedReads(store, sequence);
    const object = await gate.run("demand", () => counted.get(ref.objectKey, { signal: this.#deadline(sequence) }));
    if (!object) throw new Error("object is not in the store");
    return object.bytes;
  }

  #deadline(sequence: Sequence): AbortSignal {
    const { clock, getMsMax } = this.#options;
    return AbortSignal.any([sequence.abort.signal, clock.deadline(getMsMax)]);
  }
}

/** Leading segments of a manifest that hold the sequence's own tokens, attended in the same way. */
function matchingSegments(sequence: Sequence, manifest: Manifest): number {
  let count = 0;
  for (const segment of manifest.segments) {
    const end = segment.fromToken + segment.tokenCount;
    if (end > sequence.promptEnd || sequence.chain(end / BLOCK_TOKENS - 1) !== segment.chain) break;
    count += 1;
  }
  return count;
}

/** The kind that the turn's policy scores, then the others. */
function kindsByUse(sequence: Sequence, geometry: KvGeometry): SummaryObjectKind[] {
  const scored = policyNamed(sequence.selection.policy).summary;
  const kinds = summaryObjectKinds(geometry);
  return [...kinds.filter((kind) => kind === scored), ...kinds.filter((kind) => kind !== scored)];
}

type TokenRange = Pick<WholeRef, "fromToken" | "tokenCount">;

function overlaps(a: TokenRange, b: TokenRange): boolean {
  return a.fromToken < b.fromToken + b.tokenCount && b.fromToken < a.fromToken + a.tokenCount;
}

function hotBlocksBelow(manifest: Manifest, segmentCount: number): number[][] {
  const end = (segmentCount * manifest.geometry.segmentTokens) / BLOCK_TOKENS;
  return manifest.hotBlocks.map((blocks) => blocks.filter((block) => block < end));
}

function hasGap(sequence: Sequence, fromToken: number, toToken: number): boolean {
  for (let index = fromToken / BLOCK_TOKENS; index * BLOCK_TOKENS < toToken; index++) {
    if (!sequence.blocks[index]) return true;
  }
  return false;
}

function reusedTokens(sequence: Sequence, counts: (part: LogicalBlock | OpenBlock) => boolean): number {
  let count = 0;
  for (const block of sequence.blocks) if (block && counts(block)) count += BLOCK_TOKENS;
  for (const open of sequence.opens.values()) if (counts(open)) count += open.tokenCount;
  return count;
}
