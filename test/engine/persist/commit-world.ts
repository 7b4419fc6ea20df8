/** A commit queue over a store of its own, with turns made of noise in the place of a model's. */
import { createHash } from "node:crypto";
import { Gate } from "../../../engine/kv/gate.ts";
import type { StoredSegment } from "../../../engine/kv/stored-segment.ts";
import { CommitQueue, type TurnSnapshot } from "../../../engine/persist/commit-queue.ts";
import type { PersisterOptions } from "../../../engine/persist/persister-options.ts";
import { SessionKeys } from "../../../engine/persist/session-keys.ts";
import type { PageStore } from "../../../storage/contract.ts";
import { kvGeometry } from "../../../storage/geometry.ts";
import type { ObjectKeys } from "../../../storage/keys.ts";
import { loadManifest, type Manifest } from "../../../storage/manifest.ts";
import { decodeSegmentHeader, encodeSegment, segmentBytes } from "../../../storage/segment.ts";
import { decodeSummaryObject } from "../../../storage/summary-object.ts";
import { decodeTail, layTail } from "../../../storage/tail.ts";
import { noise } from "../../storage/random.ts";

/** Segments of one block, two layers. */
export const GEOMETRY = kvGeometry({
  layerCount: 2,
  kvHeadCount: 1,
  headDim: 4,
  encoding: "int8",
  summaryKinds: ["min-max", "mean-deviation"],
  segmentTokens: 64,
});
const NAMESPACE = "00ff";

/** Time that passes only when somebody sleeps. */
export class FakeClock {
  ms = 0;
  readonly sleeps: number[] = [];
  nowMs(): number {
    return this.ms;
  }
  wallMs(): number {
    return this.ms;
  }
  async sleep(ms: number): Promise<void> {
    this.sleeps.push(ms);
    this.ms += ms;
    await new Promise((resolve) => setImmediate(resolve));
  }
  breathe(ms: number): Promise<void> {
    return this.sleep(ms);
  }
  /** Nothing here is late. */
  deadline(): AbortSignal {
    return new AbortController().signal;
  }
}

/** What one engine's commits work with. */
export class CommitWorld {
  readonly store: PageStore;
  readonly clock = new FakeClock();
  readonly logged: string[] = [];
  readonly options: PersisterOptions;
  readonly keys: ObjectKeys;
  readonly queue: CommitQueue;

  constructor(store: PageStore, manifestCommitMs = 0) {
    this.store = store;
    const keys = new SessionKeys({ modelFingerprint: "ab".repeat(32), numericsId: "test", geometry: GEOMETRY });
    this.keys = keys.of(NAMESPACE);
    this.options = {
      store,
      pool: undefined as never,
      fetcher: undefined as never,
      gate: new Gate(4),
      geometry: GEOMETRY,
      keys,
      clock: this.clock,
      log: (event) => void this.logged.push(event),
      modelFingerprint: "ab".repeat(32),
      numericsId: "test",
      putMsMax: 1000,
      writeBehindBytesMax: 1 << 30,
      manifestCommitMs,
      summaryRunTokens: 4096,
    };
    this.queue = new CommitQueue(this.options);
  }

  /** Puts a turn's segments and gives the snapshot that its end would push. `branch` names what its tokens are. */
  async turn(
    branch: string,
    tokenCount: number,
    options: TurnOptions = {},
  ): Promise<TurnSnapshot & { released: number }> {
    const segments: StoredSegment[] = [];
    for (let index = 0; (index + 1) * 64 <= tokenCount; index++)
      segments.push(
        options.known?.[index] ?? (await this.#segment(prefixOf(branch, (index + 1) * 64), index, options)),
      );
    const fromToken = segments.length * 64;
    const openCount = tokenCount - fromToken;
    const chain = chainOf(`${branch}:${tokenCount}`);
    const snapshot = {
      sessionKey: `${NAMESPACE}/${options.sessionId ?? "s"}`,
      sessionId: options.sessionId ?? "s",
      namespace: NAMESPACE,
      tokenCount,
      chain,
      spans: [{ end: tokenCount, how: "dense" }],
      ...{ sinceMs: options.bornMs ?? 0, bornMs: options.bornMs },
      endedMs: this.clock.wallMs(),
      segments,
      isCut: false,
      hotBlocks: [],
      tail:
        openCount === 0
          ? undefined
          : { fromToken, tokenCount: openCount, bytes: openTail({ chain, fromToken, openCount }) },
      released: 0,
      release() {
        snapshot.released += 1;
      },
    };
    return snapshot;
  }

  async #segment(chainName: string, index: number, options: TurnOptions): Promise<StoredSegment> {
    const chain = chainOf(chainName);
    const seed = Number.parseInt(chain.slice(0, 7), 16);
    const bytes = encodeSegment({
      geometry: GEOMETRY,
      fromToken: index * 64,
      chain,
      block: (layer) => noise(seed + layer, GEOMETRY.blockBytes),
    });
    const written =
      index === options.failedSegment
        ? false
        : (await this.store.put(this.keys.segment(chain), bytes)).outcome === "stored";
    return {
      chain,
      fromToken: index * 64,
      tokenCount: 64,
      objectKey: this.keys.segment(chain),
      objectOffset: 0,
      objectBytes: segmentBytes(GEOMETRY),
      checksums: decodeSegmentHeader(bytes).checksums,
      summaries: new Map(),
      slots: new Map(GEOMETRY.summaryKinds.map((kind, at) => [kind, noise(seed + 9 + at, GEOMETRY.summaryBytes)])),
      damaged: false,
      ...{ written: Promise.resolve(written), isWritten: written, seenMs: this.clock.nowMs() },
    };
  }

  async push(snapshot: TurnSnapshot): Promise<void> {
    this.queue.push(snapshot);
    await this.queue.flush();
  }

  manifest(sessionId = "s"): Promise<{ manifest: Manifest; etag: string } | undefined> {
    return loadManifest(this.store, this.keys.session(sessionId));
  }

  /** Reads everything that the manifest names, as an attaching engine does. @throws when anything is missing or of other content. */
  async readAll(sessionId = "s"): Promise<Manifest> {
    const { manifest } = (await this.manifest(sessionId))!;
    for (const ref of manifest.segments) {
      const object = await this.store.get(ref.objectKey);
      decodeSegmentHeader(object!.bytes, { geometry: GEOMETRY, chain: ref.chain, fromToken: ref.fromToken });
    }
    for (const ref of manifest.summaries) {
      const object = await this.store.get(ref.objectKey);
      const { segments } = decodeSummaryObject(object!.bytes, { ...ref, geometry: GEOMETRY });
      for (const [offset, summary] of segments.entries()) {
        const segment = manifest.segments[ref.fromToken / 64 + offset]!;
        if (segment.chain !== summary.chain) throw new Error(`summary of another segment at ${segment.fromToken}`);
      }
    }
    if (manifest.tail)
      decodeTail((await this.store.get(manifest.tail.objectKey))!.bytes, { ...manifest.tail, geometry: GEOMETRY });
    return manifest;
  }

  async countOf(kind: "seg" | "tail"): Promise<number> {
    const { keys } = await this.store.list(`${this.keys.prefix}${kind}/`);
    return keys.length;
  }
}

/** A tail without a sealed block. */
function openTail(of: { chain: string; fromToken: number; openCount: number }): Uint8Array<ArrayBuffer> {
  const nothing = () => new Uint8Array(0);
  return layTail({
    ...{ geometry: GEOMETRY, chain: of.chain, fromToken: of.fromToken, block: nothing, summary: nothing },
    ids: Uint32Array.from({ length: of.openCount }, (_, i) => i),
    open: noise(of.fromToken + of.openCount, of.openCount * GEOMETRY.openTokenBytes),
  });
}

interface TurnOptions {
  sessionId?: string;
  /** Segments of an earlier snapshot that are this one's too. */
  known?: readonly StoredSegment[];
  failedSegment?: number;
  bornMs?: number;
}

/** `ab` diverges from `ac` where its letters do: letter i covers tokens [128 i, 128 i + 128), the last letter all the rest. */
function prefixOf(branch: string, tokenCount: number): string {
  const letters = Array.from({ length: Math.ceil(tokenCount / 128) }, (_, i) => branch[Math.min(i, branch.length - 1)]);
  return `${letters.join("")}:${tokenCount}`;
}

function chainOf(name: string): string {
  return createHash("sha256").update(name).digest("hex");
}
