/**
 * Commits of turns: summary objects and the tail, then the manifest with compare-and-swap, segments before all. At most one commit per
 * session at a time and per `manifestCommitMs`; a newer turn of a session replaces one that still waits.
 */

import type { Span } from "../protocol/generate.ts";
import { StoreError } from "../storage/contract.ts";
import { envelopeDigest } from "../storage/envelope.ts";
import { FormatError } from "../storage/format-error.ts";
import { LAYOUT_VERSION, type ObjectKeys } from "../storage/keys.ts";
import { commitManifest, loadManifest, type Manifest } from "../storage/manifest.ts";
import { MANIFEST_FORMAT_VERSION } from "../storage/manifest-check.ts";
import { encodeTail } from "../storage/tail.ts";
import type { PersisterOptions } from "./persister.ts";
import { SpanList } from "./provenance.ts";
import type { StoredSegment } from "./stored-segment.ts";
import { writeSummaries } from "./summary-writer.ts";

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
  segments: StoredSegment[];
  tail:
    | { fromToken: number; ids: Uint32Array; blocks: Uint8Array[][]; summaries: Uint8Array[]; open: Uint8Array }
    | undefined;
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
  committedAtMs: number;
  waiting: TurnSnapshot | undefined;
  running: Promise<void> | undefined;
}

/** Commit states are kept for this many sessions; a forgotten one is read again from the store. */
const SESSION_STATE_MAX = 10_000;
const CONFLICT_TRIES_MAX = 4;

/** All commits of an engine. Never throws at its callers: what cannot be committed is logged, and stays recomputable. */
export class CommitQueue {
  readonly #options: PersisterOptions;
  readonly #sessions = new Map<string, SessionState>();
  #hurry = false;

  constructor(options: PersisterOptions) {
    this.#options = options;
  }

  note(sessionKey: string, loaded: { manifest: Manifest; etag: string }): void {
    const state = this.#state(sessionKey);
    state.etag = loaded.etag;
    state.generation = loaded.manifest.generation;
    state.tokenCount = loaded.manifest.tokenCount;
    state.tailKey = loaded.manifest.tail?.objectKey;
  }

  status(sessionKey: string): CommitStatus | undefined {
    const state = this.#sessions.get(sessionKey);
    if (!state) return undefined;
    return { persistedTokens: state.tokenCount, generation: state.generation, pending: state.running !== undefined };
  }

  forget(sessionKey: string): void {
    this.#sessions.delete(sessionKey);
  }

  push(snapshot: TurnSnapshot): void {
    const state = this.#state(snapshot.sessionKey);
    state.waiting = snapshot;
    state.running ??= this.#drain(state);
  }

  async flush(): Promise<void> {
    this.#hurry = true;
    await Promise.all([...this.#sessions.values()].map((state) => state.running));
    this.#hurry = false;
  }

  async #drain(state: SessionState): Promise<void> {
    const { clock, log, manifestCommitMs } = this.#options;
    while (state.waiting) {
      while (!this.#hurry && clock.nowMs() < state.committedAtMs + manifestCommitMs) {
        await clock.sleep(Math.min(50, state.committedAtMs + manifestCommitMs - clock.nowMs()));
      }
      const snapshot = state.waiting;
      state.waiting = undefined;
      try {
        await this.#commit(state, snapshot);
      } catch (error) {
        log("persist.commit-failed", { sessionKey: snapshot.sessionKey, error: String(error) });
      }
      state.committedAtMs = clock.nowMs();
    }
    state.running = undefined;
  }

  async #commit(state: SessionState, whole: TurnSnapshot): Promise<void> {
    const { keys, log } = this.#options;
    const objectKeys = keys.of(whole.namespace);
    const snapshot = await storedPart(whole);
    if (snapshot.tokenCount === 0) return;
    const summaries = await writeSummaries(this.#options, objectKeys, snapshot.segments);
    for (let attempt = 0; attempt < CONFLICT_TRIES_MAX; attempt++) {
      const generation = state.generation + 1;
      const tail = await this.#writeTail(objectKeys, snapshot, generation);
      const manifest: Manifest = { ...this.#header(snapshot), generation, summaries, ...(tail ? { tail } : {}) };
      const result = await this.#retried((signal) =>
        commitManifest(this.#options.store, objectKeys.session(snapshot.sessionId), manifest, state.etag, signal),
      );
      if (result.outcome === "stored") {
        const oldTail = state.tailKey;
        Object.assign(state, {
          etag: result.etag,
          generation,
          tokenCount: snapshot.tokenCount,
          tailKey: tail?.objectKey,
        });
        if (oldTail !== undefined && oldTail !== tail?.objectKey) await this.#discard(oldTail);
        return;
      }
      if (tail) await this.#discard(tail.objectKey);
      const ahead = await this.#reload(state, objectKeys, snapshot);
      if (ahead) return;
    }
    log("persist.conflict", { sessionKey: snapshot.sessionKey, tries: CONFLICT_TRIES_MAX });
  }

  #header(snapshot: TurnSnapshot): Omit<Manifest, "generation" | "summaries" | "tail"> {
    const { geometry, modelFingerprint, numericsId } = this.#options;
    return {
      formatVersion: MANIFEST_FORMAT_VERSION,
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
      hotBlocks: [],
      updatedMs: Date.now(),
    };
  }

  async #writeTail(objectKeys: ObjectKeys, snapshot: TurnSnapshot, generation: number): Promise<Manifest["tail"]> {
    const { tail } = snapshot;
    if (!tail) return undefined;
    const bytes = encodeTail({
      geometry: this.#options.geometry,
      fromToken: tail.fromToken,
      generation,
      chain: snapshot.chain,
      ids: tail.ids,
      block: (index, layer) => tail.blocks[index]?.[layer] as Uint8Array,
      summary: (index) => tail.summaries[index] as Uint8Array,
      open: tail.open,
    });
    const objectKey = objectKeys.tail(snapshot.sessionId, snapshot.chain, generation);
    await this.#retried((signal) => this.#options.store.put(objectKey, bytes, { signal }));
    return {
      objectKey,
      objectBytes: bytes.byteLength,
      sha256: envelopeDigest(bytes),
      fromToken: tail.fromToken,
      tokenCount: tail.ids.length,
    };
  }

  /** Learns who committed before us. True when that commit already holds our turn and more, so ours is dropped. */
  async #reload(state: SessionState, objectKeys: ObjectKeys, snapshot: TurnSnapshot): Promise<boolean> {
    try {
      const loaded = await this.#retried((signal) =>
        loadManifest(this.#options.store, objectKeys.session(snapshot.sessionId), signal),
      );
      Object.assign(state, {
        etag: loaded?.etag,
        generation: loaded?.manifest.generation ?? state.generation,
        tailKey: loaded?.manifest.tail?.objectKey,
      });
      const theirs = loaded?.manifest;
      const last = snapshot.segments.at(-1);
      return (
        theirs !== undefined &&
        theirs.tokenCount > snapshot.tokenCount &&
        last !== undefined &&
        theirs.segments[snapshot.segments.length - 1]?.chain === last.chain
      );
    } catch (error) {
      if (!(error instanceof FormatError) || error.code !== "corrupt" || error.etag === undefined) throw error;
      state.etag = error.etag;
      return false;
    }
  }

  /** The superseded tail goes best-effort: what stays is garbage that `quire gc` finds. */
  async #discard(objectKey: string): Promise<void> {
    try {
      await this.#options.store.delete([objectKey]);
    } catch (error) {
      this.#options.log("persist.discard-failed", { objectKey, error: String(error) });
    }
  }

  /** Once more after a passing fault, each time with a deadline. */
  async #retried<T>(call: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const { gate, putMsMax, clock } = this.#options;
    try {
      return await gate.run("demand", () => call(AbortSignal.timeout(putMsMax)));
    } catch (error) {
      if (!(error instanceof StoreError) || (error.code !== "unavailable" && error.code !== "timeout")) throw error;
      await clock.sleep(100);
      return await gate.run("demand", () => call(AbortSignal.timeout(putMsMax)));
    }
  }

  #state(sessionKey: string): SessionState {
    const known = this.#sessions.get(sessionKey);
    if (known) this.#sessions.delete(sessionKey);
    const state = known ?? {
      etag: undefined,
      generation: 0,
      tokenCount: 0,
      tailKey: undefined,
      committedAtMs: Number.NEGATIVE_INFINITY,
      waiting: undefined,
      running: undefined,
    };
    this.#sessions.set(sessionKey, state);
    if (this.#sessions.size > SESSION_STATE_MAX) {
      for (const [key, old] of this.#sessions) {
        if (old.running === undefined) {
          this.#sessions.delete(key);
          break;
        }
      }
    }
    return state;
  }
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
  return { ...snapshot, segments, tail: undefined, tokenCount, chain: last?.chain ?? snapshot.chain, spans };
}
