/**
 * Commits of turns: summary objects and the tail, then the manifest with compare-and-swap, segments before all. At most one commit per
 * session at a time and per `manifestCommitMs`; a newer turn of a session replaces one that still waits.
 */
import { randomBytes } from "node:crypto";
import { detached } from "../../protocol/detached.ts";
import type { Span } from "../../protocol/generate.ts";
import { LIMITS } from "../../protocol/limits.ts";
import { StoreError } from "../../storage/contract.ts";
import { envelopeDigest } from "../../storage/envelope.ts";
import { isReplaceable } from "../../storage/format-error.ts";
import { BLOCK_TOKENS } from "../../storage/geometry.ts";
import { LAYOUT_VERSION, type ObjectKeys } from "../../storage/keys.ts";
import { commitManifest, loadCommit, type Manifest, type SummaryRef } from "../../storage/manifest.ts";
import { manifestVersionOf } from "../../storage/manifest-check.ts";
import { sealTail } from "../../storage/tail.ts";
import type { Tombstone } from "../../storage/tombstone.ts";
import { SpanList } from "../kv/provenance.ts";
import type { StoredSegment } from "../kv/stored-segment.ts";
import type { PersisterOptions } from "./persister-options.ts";
import { retried } from "./retry.ts";
import { writeSummaries } from "./summary-writer.ts";
import { markVanished } from "./vanished-objects.ts";

/** Everything a commit needs, copied out of the engine's memory. */
export interface TurnSnapshot {
  sessionKey: string;
  sessionId: string;
  namespace: string;
  tokenCount: number;
  /** Chain at `tokenCount`. */
  chain: string;
  /** Provenance of `[0, tokenCount)`. */
  spans: Span[];
  /** When its session began, as far as is known, milliseconds since 1970 (`sinceMs` of a sequence). */
  sinceMs: number;
  /** As the request says it; undefined where it does not. */
  bornMs: number | undefined;
  /** When the turn was over, milliseconds since 1970. */
  endedMs: number;
  segments: StoredSegment[];
  /** Something of the turn was left out: for want of room, or because it could not be put. */
  isCut: boolean;
  /** As `layTail` gave it: the object that will be written, but for the generation. The queue's from now on. */
  tail: { fromToken: number; tokenCount: number; bytes: Uint8Array<ArrayBuffer> } | undefined;
  /** Per layer, see {@link Manifest.hotBlocks}. */
  hotBlocks: number[][];
  /** Called once, when the snapshot is committed, replaced by a newer one or given up. */
  release(): void;
  /** Its manifest is in the store. */
  committed?(generation: number): void;
}

/** What a snapshot takes beside its bytes: itself and its commit, and of each of its segments what is kept with it. */
const SNAPSHOT_BYTES = 4_096;
const SEGMENT_BYTES = 1_024;

/** Memory that a snapshot keeps while it waits: its tail, summaries of segments that are not written yet, and what names them. */
export function snapshotBytes({ tail, segments, spans, hotBlocks }: TurnSnapshot): number {
  const slots = segments.flatMap((segment) => [...segment.slots.values()]);
  const slotBytes = slots.reduce((sum, { byteLength }) => sum + byteLength, 0);
  const named = 16 * hotBlocks.flat().length + 128 * spans.length + SEGMENT_BYTES * segments.length;
  return SNAPSHOT_BYTES + (tail?.bytes.byteLength ?? 0) + slotBytes + named;
}

/** What the engine knows of a session's durability. */
export interface CommitStatus {
  /** Tokens that the last commit made durable. */
  persistedTokens: number;
  generation: number;
  /** A commit waits or is under way. */
  pending: boolean;
}

interface SessionState {
  etag: string | undefined;
  generation: number;
  tokenCount: number;
  tailKey: string | undefined;
  /** Of the last manifest: used again, so that sessions which share segments do not undo each other's objects. */
  summaries: readonly SummaryRef[];
  /** How many segments the last manifest named, and the last one's chain. */
  named: { segmentCount: number; chain: string | undefined };
  /** Sessions of the id that began earlier were deleted: nothing more is written for them. 0: none, as far as is known. */
  bornMs: number;
  /** The manifest in force is not this engine's: what waits may be older. */
  isOthers: boolean;
  committedAtMs: number;
  waiting: TurnSnapshot | undefined;
  running: Promise<void> | undefined;
  /** What is being written right now. */
  committing: Promise<void> | undefined;
}

const CONFLICT_TRIES_MAX = 4;
const NOTHING: SessionState["named"] = { segmentCount: 0, chain: undefined };

/** All commits of an engine. Never throws at its callers: what cannot be committed is logged, and stays recomputable. */
export class CommitQueue {
  readonly #options: PersisterOptions;
  readonly #sessions = new Map<string, SessionState>();
  #hurry = false;

  constructor(options: PersisterOptions) {
    this.#options = options;
  }

  /** The manifest that was found for a session. One that is being replaced right now is old news. */
  note(sessionKey: string, loaded: { manifest: Manifest; etag: string }): void {
    const state = this.#state(sessionKey);
    if (state.running !== undefined) return;
    adopt(state, loaded);
    this.#forgetOldest(state);
  }

  /** Undefined for a session that this engine knows nothing of. */
  status(sessionKey: string): CommitStatus | undefined {
    const state = this.#sessions.get(sessionKey);
    if (!state) return undefined;
    return { persistedTokens: state.tokenCount, generation: state.generation, pending: state.running !== undefined };
  }

  /**
   * Drops what waits of a session that began before `bornMs`, and resolves when what is under way has ended: nothing of it that was pushed before is written
   * afterwards.
   */
  async forget(sessionKey: string, bornMs: number): Promise<void> {
    const state = this.#sessions.get(sessionKey);
    if (!state) return;
    state.bornMs = Math.max(state.bornMs, bornMs);
    if (state.waiting && isOver(state.waiting, state)) {
      state.waiting.release();
      state.waiting = undefined;
    }
    await state.committing;
    if (state.waiting === undefined && this.#sessions.get(sessionKey) === state) this.#sessions.delete(sessionKey);
  }

  /** Queues a commit in place of one that still waits, unless its session is over, or it was cut short and that one holds more. */
  push(snapshot: TurnSnapshot): void {
    const state = this.#state(snapshot.sessionKey);
    const { waiting } = state;
    const isHeld = waiting && snapshot.isCut && holds({ ...waiting, updatedMs: waiting.endedMs }, snapshot);
    if (isHeld || isOver(snapshot, state)) {
      snapshot.release();
      return;
    }
    waiting?.release();
    state.waiting = snapshot;
    state.running ??= this.#drain(state);
  }

  /** Resolves when everything that was pushed before is committed or given up, without the pace between commits. */
  async flush(): Promise<void> {
    this.#hurry = true;
    await Promise.all([...this.#sessions.values()].map((state) => state.running));
    this.#hurry = false;
  }

  async #drain(state: SessionState): Promise<void> {
    const { clock, log, manifestCommitMs } = this.#options;
    while (state.waiting) {
      while (!this.#hurry && state.waiting && clock.nowMs() < state.committedAtMs + manifestCommitMs) {
        await clock.sleep(Math.min(50, state.committedAtMs + manifestCommitMs - clock.nowMs()));
      }
      const snapshot: TurnSnapshot | undefined = state.waiting;
      if (!snapshot) break;
      state.waiting = undefined;
      const before = state.generation;
      state.committing = this.#commit(state, snapshot).catch((error: unknown) => {
        log("persist.commit-failed", { sessionKey: snapshot.sessionKey, error: String(error) });
      });
      await state.committing;
      state.committing = undefined;
      if (state.generation > before) snapshot.committed?.(state.generation);
      snapshot.release();
      state.committedAtMs = clock.nowMs();
    }
    state.running = undefined;
  }

  async #commit(state: SessionState, whole: TurnSnapshot): Promise<void> {
    const { keys, log, store } = this.#options;
    const objectKeys = keys.of(whole.namespace);
    const snapshot = await storedPart(whole);
    if (snapshot.tokenCount === 0) return;
    // What is stored does not get shorter than it was.
    if ((snapshot.isCut || state.isOthers) && (await this.#reload(state, objectKeys, snapshot))) return;
    const summaries = await writeSummaries(this.#options, objectKeys, snapshot.segments, state.summaries);
    for (let attempt = 0; attempt < CONFLICT_TRIES_MAX; attempt++) {
      if (isOver(snapshot, state) || this.#isTooLate(snapshot)) return;
      const oldTail = state.tailKey;
      const generation = state.generation + 1;
      const tail = await this.#writeTail(objectKeys, snapshot, { generation, isFirst: attempt === 0 });
      const manifest: Manifest = { ...this.#header(snapshot, state), generation, summaries, ...(tail ? { tail } : {}) };
      const result = await retried(this.#options, (signal) =>
        commitManifest(store, objectKeys.session(snapshot.sessionId), manifest, state.etag, signal),
      );
      const over = result.outcome === "stored" || (await this.#reload(state, objectKeys, snapshot));
      const begun = begunBy(snapshot, state);
      if (result.outcome === "stored") adopt(state, { manifest, etag: result.etag });
      state.isOthers = result.outcome !== "stored";
      // Whatever the manifest in force names stays.
      for (const key of [oldTail, tail?.objectKey])
        if (key !== undefined && key !== state.tailKey && (over || key !== oldTail)) await this.#discard(key);
      if (result.outcome === "stored") await markVanished(this.#options, begun, summaries);
      if (over) return;
    }
    log("persist.conflict", { sessionKey: snapshot.sessionKey, tries: CONFLICT_TRIES_MAX });
  }

  /** A tombstone that would keep it away may be gone by now. */
  #isTooLate({ sessionKey, endedMs }: TurnSnapshot): boolean {
    const isLate = this.#options.clock.wallMs() - endedMs > LIMITS.commitAgeMsMax;
    if (isLate) this.#options.log("persist.too-late", { sessionKey });
    return isLate;
  }

  #header(snapshot: TurnSnapshot, { bornMs }: SessionState): Omit<Manifest, "generation" | "summaries" | "tail"> {
    const { clock, geometry, modelFingerprint, numericsId } = this.#options;
    return {
      formatVersion: manifestVersionOf(geometry),
      layoutVersion: LAYOUT_VERSION,
      sessionId: snapshot.sessionId,
      modelFingerprint,
      numericsId,
      geometry,
      tokenCount: snapshot.tokenCount,
      chain: snapshot.chain,
      spans: snapshot.spans,
      segments: snapshot.segments.map(({ chain, fromToken, tokenCount, objectKey, objectOffset, objectBytes }) => ({
        chain,
        fromToken,
        tokenCount,
        objectKey,
        objectOffset,
        objectBytes,
      })),
      hotBlocks: snapshot.hotBlocks,
      ...(snapshot.bornMs === undefined && bornMs === 0 ? {} : { bornMs: snapshot.bornMs ?? bornMs }),
      updatedMs: clock.wallMs(),
    };
  }

  async #writeTail(
    objectKeys: ObjectKeys,
    { tail, sessionId, chain }: TurnSnapshot,
    { generation, isFirst }: { generation: number; isFirst: boolean },
  ): Promise<Manifest["tail"]> {
    if (!tail) return undefined;
    // A write of the attempt before that was given up may still read its bytes.
    const bytes = sealTail(isFirst ? tail.bytes : tail.bytes.slice(), generation);
    const writing = randomBytes(8).toString("hex");
    const objectKey = objectKeys.tail(sessionId, chain, generation, writing);
    await retried(this.#options, (signal) => this.#options.store.put(objectKey, bytes, { signal }));
    return {
      objectKey,
      objectBytes: bytes.byteLength,
      sha256: envelopeDigest(bytes),
      fromToken: tail.fromToken,
      tokenCount: tail.tokenCount,
    };
  }

  /** Learns who committed before us. True when that commit already holds what ours would, so that it need not be made. */
  async #reload(state: SessionState, objectKeys: ObjectKeys, ours: TurnSnapshot): Promise<boolean> {
    const key = objectKeys.session(ours.sessionId);
    const read = () => retried(this.#options, (signal) => loadCommit(this.#options.store, key, signal));
    try {
      // It may have been the read: what is damaged is replaced, and a tombstone must not be.
      const loaded = await read().catch((error: unknown) => (isReplaceable(error) ? read() : Promise.reject(error)));
      if (loaded?.manifest) adopt(state, loaded);
      else adoptNothing(state, loaded);
      return loaded?.manifest !== undefined && holds(loaded.manifest, ours);
    } catch (error) {
      if (!isReplaceable(error)) throw error;
      state.etag = error.etag;
      return false;
    }
  }

  /** The superseded tail goes best-effort: what stays is garbage that `collectGarbage` (storage/gc.ts) finds. */
  async #discard(objectKey: string): Promise<void> {
    const { store, clock, putMsMax } = this.#options;
    try {
      const deleting = store.delete([objectKey]);
      const deadline = clock.deadline(putMsMax);
      const late = new Promise<never>((_, reject) => {
        const giveUp = () => reject(new StoreError("timeout", `discarding a tail took longer than ${putMsMax} ms`));
        deadline.addEventListener("abort", giveUp, { once: true });
      });
      await Promise.race([deleting, late]);
    } catch (error) {
      this.#options.log("persist.discard-failed", { objectKey, error: String(error) });
    }
  }

  #state(sessionKey: string): SessionState {
    const known = this.#sessions.get(sessionKey);
    if (known) this.#sessions.delete(sessionKey);
    const state: SessionState = known ?? {
      etag: undefined,
      generation: 0,
      tokenCount: 0,
      tailKey: undefined,
      summaries: [],
      named: NOTHING,
      bornMs: 0,
      isOthers: false,
      committedAtMs: Number.NEGATIVE_INFINITY,
      waiting: undefined,
      running: undefined,
      committing: undefined,
    };
    this.#sessions.set(detached(sessionKey), state);
    this.#forgetOldest(state);
    return state;
  }

  /** Those used longest ago, but for `newest` and those whose commit waits or is under way. */
  #forgetOldest(newest: SessionState): void {
    let summaryCount = 0;
    for (const { summaries } of this.#sessions.values()) summaryCount += summaries.length;
    for (const [key, state] of this.#sessions) {
      if (this.#sessions.size <= LIMITS.commitStatesMax && summaryCount <= LIMITS.commitSummariesMax) return;
      if (state === newest || state.running !== undefined) continue;
      this.#sessions.delete(key);
      summaryCount -= state.summaries.length;
    }
  }
}

function adopt(state: SessionState, { manifest, etag }: { manifest: Manifest; etag: string }): void {
  state.etag = etag;
  state.generation = manifest.generation;
  state.tokenCount = manifest.tokenCount;
  state.tailKey = manifest.tail?.objectKey;
  state.summaries = manifest.summaries;
  state.named = { segmentCount: manifest.segments.length, chain: manifest.segments.at(-1)?.chain };
  state.bornMs = Math.max(state.bornMs, manifest.bornMs ?? 0);
}

/** Nothing is stored of the session, as it was deleted, or never was. */
function adoptNothing(state: SessionState, found: { tombstone?: Tombstone; etag: string } | undefined): void {
  Object.assign(state, { etag: found?.etag, tailKey: undefined, summaries: [], named: NOTHING });
  if (!found?.tombstone) return;
  state.generation = found.tombstone.generation;
  state.bornMs = Math.max(state.bornMs, found.tombstone.bornMs);
}

/** Whether a turn is of a session that was deleted. */
function isOver({ sinceMs }: TurnSnapshot, { bornMs }: SessionState): boolean {
  return sinceMs < bornMs;
}

/** Segments that the manifest in force does not name as far as is known. */
function begunBy({ segments }: TurnSnapshot, { named }: SessionState): readonly StoredSegment[] {
  return segments.slice(segments[named.segmentCount - 1]?.chain === named.chain ? named.segmentCount : 0);
}

/** What tells which turn a manifest is of. */
interface StoredTurn extends Pick<Manifest, "tokenCount" | "chain" | "updatedMs"> {
  segments: readonly { chain: string }[];
}

/**
 * Whether a manifest is ours (its answer was lost, or another engine computed the same turn), or goes on after our last segment. One that is older than
 * the end of our turn does not: it is of tokens that the log has dropped since. Where ours was cut short that makes no difference: it names our segments.
 */
function holds(theirs: StoredTurn, { tokenCount, chain, segments, endedMs, isCut }: TurnSnapshot): boolean {
  if (theirs.tokenCount === tokenCount && theirs.chain === chain) return true;
  const last = segments.at(-1);
  return (
    theirs.tokenCount > tokenCount &&
    (isCut || theirs.updatedMs >= endedMs) &&
    last !== undefined &&
    theirs.segments[segments.length - 1]?.chain === last.chain
  );
}

/** Waits for the segments' own writes; what follows one that failed is left out. */
async function storedPart(snapshot: TurnSnapshot): Promise<TurnSnapshot> {
  const written = await Promise.all(snapshot.segments.map((segment) => segment.written));
  const failed = written.indexOf(false);
  if (failed === -1) return snapshot;
  const segments = snapshot.segments.slice(0, failed);
  const last = segments.at(-1);
  const tokenCount = last ? last.fromToken + last.tokenCount : 0;
  const spans = new SpanList(snapshot.spans).until(tokenCount);
  const hotBlocks = snapshot.hotBlocks.map((blocks) => blocks.filter((block) => block * BLOCK_TOKENS < tokenCount));
  const chain = last?.chain ?? snapshot.chain;
  return { ...snapshot, segments, isCut: true, tail: undefined, tokenCount, chain, spans, hotBlocks };
}
