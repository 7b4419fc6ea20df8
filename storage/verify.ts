/**
 * Checks everything that a session's manifest says: that each object is there and intact, and that they agree with each
 * other. Repairs by dropping what cannot be trusted: the manifest is cut to the leading segments that are whole, or
 * deleted; what is dropped is computed again from the log by the session's next turn.
 */
import { LIMITS } from "../protocol/limits.ts";
import type { PageStore } from "./contract.ts";
import { FormatError, isDamage } from "./format-error.ts";
import { BLOCK_TOKENS, summaryObjectKinds } from "./geometry.ts";
import { canBeInKey, LAYOUT_VERSION, objectKeys, parseObjectKey } from "./keys.ts";
import { commitManifest, etagAt, loadManifest, type Manifest, type SegmentRef, type SummaryRef } from "./manifest.ts";
import { decodeSegment } from "./segment.ts";
import { decodeSummaryObject } from "./summary-object.ts";
import { decodeTail } from "./tail.ts";

/** How to check. */
export interface VerifyOptions {
  /** Cuts or deletes manifests that name what cannot be trusted. */
  repair?: boolean;
  signal?: AbortSignal | undefined;
}

/** One thing that is not as it should be. */
export interface VerifyProblem {
  objectKey: string;
  /** In words, without bytes of the object. */
  what: string;
}

/** What was found of one session. */
export interface SessionVerdict {
  /** Of its manifest. */
  key: string;
  /** Undefined where the manifest cannot be read. */
  sessionId: string | undefined;
  /** Nothing to verify: the session was deleted, also meanwhile. */
  isDeleted: boolean;
  tokenCount: number;
  /** Tokens of the leading segments, and of the tail, that are whole. */
  trustedTokens: number;
  objectCount: number;
  problems: VerifyProblem[];
  /**
   * `none`: nothing to do, or no repair was asked for. `cut`, `deleted`: the manifest. `left`: of a version that is not read
   * here, or committed anew meanwhile.
   */
  action: "none" | "cut" | "deleted" | "left";
}

/** What an object of a manifest turned out to be. */
type Check = { problem: undefined } | { problem: string };

/** Verifies sessions one after the other; objects that several sessions share are read once. */
export class Verifier {
  readonly #store: PageStore;
  readonly #options: VerifyOptions;
  /** Checksum tables of intact segments, by object key and offset. */
  readonly #segments = new Map<string, Promise<Uint32Array | string>>();

  constructor(store: PageStore, options: VerifyOptions = {}) {
    this.#store = store;
    this.#options = options;
  }

  /**
   * Verifies one session by the key of its manifest.
   * @throws {StoreError} when the store fails: that is no verdict on what it holds.
   */
  async session(key: string): Promise<SessionVerdict> {
    const verdict: SessionVerdict = {
      ...{ key, sessionId: undefined, isDeleted: false, tokenCount: 0, trustedTokens: 0, objectCount: 0 },
      ...{ problems: [], action: "none" },
    };
    let loaded: Awaited<ReturnType<typeof loadManifest>>;
    try {
      loaded = await twice(() => loadManifest(this.#store, key, this.#options.signal));
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
      verdict.problems.push({ objectKey: key, what: error.message });
      if (error.code === "unsupported_version") verdict.action = "left";
      else await this.#replace(verdict, undefined, error.etag);
      return verdict;
    }
    if (loaded === undefined) return { ...verdict, isDeleted: true };
    const { manifest, etag } = loaded;
    verdict.sessionId = manifest.sessionId;
    verdict.tokenCount = manifest.tokenCount;
    if (manifest.layoutVersion !== LAYOUT_VERSION) {
      verdict.problems.push({ objectKey: key, what: `the manifest is of layout version ${manifest.layoutVersion}` });
      verdict.action = "left";
      return verdict;
    }
    const trusted = isOwn(key, manifest) ? await this.#trusted(manifest, verdict) : undefined;
    if (trusted === undefined && verdict.problems.length === 0)
      verdict.problems.push({ objectKey: key, what: "the manifest is not of this key" });
    verdict.trustedTokens = trusted?.tokenCount ?? 0;
    if (verdict.problems.length > 0) await this.#replace(verdict, trusted, etag);
    return verdict;
  }

  /** The manifest without what cannot be trusted; undefined where nothing is left. Fills in the problems. */
  async #trusted(manifest: Manifest, verdict: SessionVerdict): Promise<Manifest | undefined> {
    const { segments, summaries, tail } = manifest;
    verdict.objectCount = segments.length + summaries.length + (tail === undefined ? 0 : 1);
    const run = <T>(items: readonly T[], check: (item: T) => Promise<Check>) => inBatches(items, check);
    const segmentChecks = await run(segments, (ref) => this.#segment(manifest, ref));
    const summaryChecks = await run(summaries, (ref) => this.#summary(manifest, ref));
    const [tailCheck] = await run(tail === undefined ? [] : [tail], (ref) => this.#tail(manifest, ref));
    const checked = [
      ...segments.map((ref, index) => [ref, segmentChecks[index]] as const),
      ...summaries.map((ref, index) => [ref, summaryChecks[index]] as const),
      ...(tail === undefined ? [] : [[tail, tailCheck] as const]),
    ];
    for (const [{ objectKey }, check] of checked)
      if (check?.problem !== undefined) verdict.problems.push({ objectKey, what: check.problem });
    if (verdict.problems.length === 0) return manifest;
    const goodSegments = segmentChecks.findIndex(({ problem }) => problem !== undefined);
    const goodRuns = summaries.filter((_ref, index) => summaryChecks[index]?.problem === undefined);
    return cut(manifest, {
      segmentCount: goodSegments === -1 ? segments.length : goodSegments,
      summaries: goodRuns,
      keepTail: tail !== undefined && tailCheck?.problem === undefined,
    });
  }

  async #segment(manifest: Manifest, ref: SegmentRef): Promise<Check> {
    const found = await this.#checksumsOf(manifest, ref);
    return { problem: typeof found === "string" ? found : undefined };
  }

  /** The checksums of an intact segment, or what is wrong with it. */
  #checksumsOf({ geometry }: Manifest, ref: SegmentRef): Promise<Uint32Array | string> {
    const { objectKey, objectOffset, objectBytes, chain, fromToken } = ref;
    const place = `${objectKey}@${objectOffset}@${chain}`;
    const known = this.#segments.get(place);
    if (known) return known;
    const found = this.#judged(async () => {
      const range = { offset: objectOffset, bytes: objectBytes };
      const object = await this.#store.get(objectKey, { range, signal: this.#options.signal });
      if (object === undefined) return "is not in the store";
      return decodeSegment(object.bytes, { geometry, chain, fromToken }).checksums;
    });
    this.#segments.set(place, found);
    return found;
  }

  async #summary(manifest: Manifest, ref: SummaryRef): Promise<Check> {
    const { geometry } = manifest;
    const { kind, sha256, fromToken, tokenCount } = ref;
    const problem = await this.#judged(async () => {
      const object = await this.#store.get(ref.objectKey, { signal: this.#options.signal });
      if (object === undefined) return "is not in the store";
      const decoded = decodeSummaryObject(object.bytes, { geometry, kind, sha256, fromToken, tokenCount });
      const first = fromToken / geometry.segmentTokens;
      for (const [offset, summary] of decoded.segments.entries()) {
        const segment = manifest.segments[first + offset];
        if (segment?.chain !== summary.chain) return "holds the summaries of another segment";
        const checksums = await this.#checksumsOf(manifest, segment);
        if (typeof checksums === "string") continue;
        if (!checksums.every((value, index) => value === summary.checksums[index]))
          return "has other checksums than its segment";
      }
      return undefined;
    });
    return { problem };
  }

  async #tail(manifest: Manifest, ref: NonNullable<Manifest["tail"]>): Promise<Check> {
    const { geometry, chain } = manifest;
    const { sha256, fromToken, tokenCount } = ref;
    const problem = await this.#judged(async () => {
      const object = await this.#store.get(ref.objectKey, { signal: this.#options.signal });
      if (object === undefined) return "is not in the store";
      decodeTail(object.bytes, { geometry, sha256, fromToken, tokenCount, chain });
      return undefined;
    });
    return { problem };
  }

  /** Damage is a verdict, once it has been seen twice; a store that fails is not. */
  async #judged<T>(check: () => Promise<T | string>): Promise<T | string> {
    try {
      return await twice(check);
    } catch (error) {
      if (isDamage(error)) return error.message;
      throw error;
    }
  }

  async #replace(verdict: SessionVerdict, trusted: Manifest | undefined, etag: string | undefined): Promise<void> {
    if (this.#options.repair !== true) return;
    const { key } = verdict;
    if (trusted !== undefined) {
      const { outcome } = await commitManifest(this.#store, key, trusted, etag, this.#options.signal);
      verdict.action = outcome === "stored" ? "cut" : "left";
      return;
    }
    const now = await etagAt(this.#store, key, this.#options.signal);
    verdict.action = now !== undefined && now === etag ? "deleted" : "left";
    if (verdict.action === "deleted") await this.#store.delete([key]);
  }
}

/** Whether a manifest lies under the key that its own fields make. */
function isOwn(key: string, manifest: Manifest): boolean {
  const namespace = parseObjectKey(key)?.namespace ?? "";
  const { modelFingerprint, numericsId, geometry, sessionId } = manifest;
  if (!canBeInKey(manifest)) return false;
  return objectKeys({ namespace, modelFingerprint, numericsId, geometry }).session(sessionId) === key;
}

/** The leading part of a manifest that good segments and good runs of every kind cover. */
function cut(
  manifest: Manifest,
  good: { segmentCount: number; summaries: readonly SummaryRef[]; keepTail: boolean },
): Manifest | undefined {
  const { geometry, segments } = manifest;
  const ends = summaryObjectKinds(geometry).map((kind) => runEnds(good.summaries.filter((ref) => ref.kind === kind)));
  let count = good.segmentCount;
  while (count > 0 && !ends.every((set) => set.has(count * geometry.segmentTokens))) count -= 1;
  const whole = count === segments.length;
  if (whole && good.keepTail) return manifest;
  const end = count * geometry.segmentTokens;
  if (count === 0) return undefined;
  const { tail: _tail, ...rest } = manifest;
  return {
    ...rest,
    generation: manifest.generation + 1,
    tokenCount: end,
    chain: segments[count - 1]?.chain ?? manifest.chain,
    spans: spansUntil(manifest.spans, end),
    segments: segments.slice(0, count),
    summaries: good.summaries.filter((ref) => ref.fromToken + ref.tokenCount <= end),
    hotBlocks: manifest.hotBlocks.map((blocks) => blocks.filter((block) => (block + 1) * BLOCK_TOKENS <= end)),
  };
}

/** Where runs that follow each other from token 0 end. */
function runEnds(refs: readonly SummaryRef[]): Set<number> {
  const ends = new Set<number>();
  let next = 0;
  for (const { fromToken, tokenCount } of refs) {
    if (fromToken !== next) break;
    next += tokenCount;
    ends.add(next);
  }
  return ends;
}

function spansUntil(spans: Manifest["spans"], end: number): Manifest["spans"] {
  const kept = spans.filter((_span, index) => index === 0 || (spans[index - 1]?.end ?? 0) < end);
  return kept.map((span) => ({ ...span, end: Math.min(span.end, end) }));
}

/** What looks damaged is read once more: it may have been the read. */
async function twice<T>(run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    if (!isDamage(error)) throw error;
    return await run();
  }
}

async function inBatches<T, R>(items: readonly T[], run: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (let from = 0; from < items.length; from += LIMITS.storeConcurrency)
    results.push(...(await Promise.all(items.slice(from, from + LIMITS.storeConcurrency).map(run))));
  return results;
}
