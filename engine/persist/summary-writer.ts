/**
 * Puts summary objects, each kind by itself. Segments that were sealed since the last commit share one object, which never crosses a border of `summaryRunTokens`; once such a
 * run is whole it is compacted to a single object, so that a long session is scored after few reads. Objects are named by the
 * chain at their end (so whoever has the log knows the names of whole runs), so sessions that share a prefix share them; one that reaches beyond a session's own segments is not used by it.
 */
import { assert } from "../../protocol/assert.ts";
import { StoreError } from "../../storage/contract.ts";
import { BLOCK_TOKENS, type SummaryObjectKind, summaryObjectKinds } from "../../storage/geometry.ts";
import type { ObjectKeys } from "../../storage/keys.ts";
import type { SummaryRef } from "../../storage/manifest.ts";
import { decodeSegment } from "../../storage/segment.ts";
import {
  compactSummaries,
  decodeSummaryObject,
  encodeSummaryObject,
  type SegmentSummary,
  type SummaryObject,
  summaryDigest,
} from "../../storage/summary-object.ts";
import { rebuildSummary } from "../kv/rebuild-summary.ts";
import type { StoredSegment } from "../kv/stored-segment.ts";
import type { PersisterOptions } from "./persister-options.ts";
import { retried } from "./retry.ts";

/**
 * Makes sure that the summaries of all segments are stored; returns objects that cover exactly them, kind by kind, in order.
 * @param own objects of the session's last manifest, preferred to those of sessions that share its segments
 * @throws {Error} when a put fails, or summaries can be had neither from their object nor from the segment, which is then marked to be put anew.
 */
export async function writeSummaries(
  options: PersisterOptions,
  keys: ObjectKeys,
  segments: readonly StoredSegment[],
  own: readonly SummaryRef[] = [],
): Promise<SummaryRef[]> {
  const ofKind = async (kind: SummaryObjectKind): Promise<SummaryRef[]> => {
    const writer = new SummaryWriter(options, keys, { kind, segments, own: own.filter((ref) => ref.kind === kind) });
    return await writer.compacted(await writer.cover());
  };
  // Every kind is tried: one that fails now leaves less to do for the next commit.
  const results = await Promise.allSettled(summaryObjectKinds(options.geometry).map(ofKind));
  return results.flatMap((result) => {
    if (result.status === "rejected") throw result.reason;
    return result.value;
  });
}

class SummaryWriter {
  readonly #options: PersisterOptions;
  readonly #keys: ObjectKeys;
  readonly #kind: SummaryObjectKind;
  readonly #segments: readonly StoredSegment[];
  readonly #own: ReadonlyMap<number, SummaryRef>;
  readonly #read = new Map<string, SummaryObject>();

  constructor(
    options: PersisterOptions,
    keys: ObjectKeys,
    session: { kind: SummaryObjectKind; segments: readonly StoredSegment[]; own: readonly SummaryRef[] },
  ) {
    this.#kind = session.kind;
    this.#options = options;
    this.#keys = keys;
    this.#segments = session.segments;
    this.#own = new Map(session.own.map((ref) => [ref.fromToken, ref]));
  }

  /** Known objects where they fit, new ones for the runs between. */
  async cover(): Promise<SummaryRef[]> {
    const refs: SummaryRef[] = [];
    let index = 0;
    while (index < this.#segments.length) {
      const known = this.#fitting(index);
      if (known) {
        refs.push(known);
        index += this.#countOf(known);
        continue;
      }
      const run = this.#uncovered(index);
      refs.push(await this.#write(run));
      index += run.length;
    }
    return refs;
  }

  /** Replaces several objects of one whole aligned run by one; what cannot be compacted now stays as it is. */
  async compacted(refs: readonly SummaryRef[]): Promise<SummaryRef[]> {
    const { summaryRunTokens } = this.#options;
    const result: SummaryRef[] = [];
    let group: SummaryRef[] = [];
    for (const ref of refs) {
      group.push(ref);
      const first = group[0] as SummaryRef;
      const end = ref.fromToken + ref.tokenCount;
      if (end % summaryRunTokens !== 0) continue;
      const whole = end - first.fromToken === summaryRunTokens && group.length > 1;
      result.push(...(whole ? await this.#compact(group) : group));
      group = [];
    }
    return [...result, ...group];
  }

  /** The known object that begins at this segment, if all of it is this session's and none was written anew since. */
  #fitting(index: number): SummaryRef | undefined {
    const segment = this.#segments[index];
    if (!segment) return undefined;
    return [this.#own.get(segment.fromToken), segment.summaries.get(this.#kind)].find((ref) => {
      if (ref?.fromToken !== segment.fromToken) return false;
      const covered = this.#segments.slice(index, index + this.#countOf(ref));
      const last = covered.at(-1) as StoredSegment;
      return (
        covered.length === this.#countOf(ref) &&
        covered.every(({ slots }) => !slots.has(this.#kind)) &&
        this.#keys.summary(this.#kind, last.chain, ref.tokenCount) === ref.objectKey
      );
    });
  }

  #uncovered(index: number): StoredSegment[] {
    let end = index + 1;
    while (
      end < this.#segments.length &&
      (this.#segments[end] as StoredSegment).fromToken % this.#options.summaryRunTokens !== 0
    ) {
      if (this.#fitting(end)) break;
      end += 1;
    }
    return this.#segments.slice(index, end);
  }

  async #write(run: readonly StoredSegment[]): Promise<SummaryRef> {
    const segments: SegmentSummary[] = [];
    for (const segment of run) {
      segments.push({ chain: segment.chain, checksums: segment.checksums, slots: await this.#slotsOf(segment) });
    }
    const ref = await this.#put({
      geometry: this.#options.geometry,
      kind: this.#kind,
      fromToken: (run[0] as StoredSegment).fromToken,
      segments,
    });
    for (const segment of run) {
      // One that others share keeps its object, unless that is out of date.
      if (segment.slots.delete(this.#kind) || !segment.summaries.has(this.#kind))
        segment.summaries.set(this.#kind, ref);
    }
    return ref;
  }

  /** Slots that are not written yet, else those of the object that holds them, else made again from the segment. */
  async #slotsOf(segment: StoredSegment): Promise<Uint8Array> {
    const slots = segment.slots.get(this.#kind);
    if (slots) return slots;
    try {
      return await this.#storedSlots(segment);
    } catch (error) {
      if (error instanceof StoreError) throw error;
      this.#options.log("persist.summary-lost", { objectKey: segment.objectKey, error: String(error) });
    }
    try {
      return await this.#rebuiltSlots(segment);
    } catch (error) {
      // The next turn puts the segment again, from its blocks, with summaries of their own.
      if (!(error instanceof StoreError)) segment.damaged = true;
      throw error;
    }
  }

  async #storedSlots(segment: StoredSegment): Promise<Uint8Array> {
    const ref = segment.summaries.get(this.#kind);
    assert(ref, "a stored segment has its summaries in memory or in the store");
    const object = await this.#get(ref);
    const found = object.segments.find((summary) => summary.chain === segment.chain);
    if (!found) throw new Error("a summary object does not hold its segment");
    return found.slots;
  }

  /** From the segment's own bytes, which are read whole and verified: what sealing its blocks has written. */
  async #rebuiltSlots({ objectKey, objectOffset, objectBytes, chain, fromToken }: StoredSegment): Promise<Uint8Array> {
    const kind = this.#kind;
    if (kind === "none") return new Uint8Array(0);
    const { store, gate, geometry, clock, putMsMax } = this.#options;
    const range = { offset: objectOffset, bytes: objectBytes };
    const object = await gate.run("demand", () => store.get(objectKey, { range, signal: clock.deadline(putMsMax) }));
    if (!object) throw new Error("a segment is gone");
    const segment = decodeSegment(object.bytes, { geometry, chain, fromToken });
    const blockCount = geometry.segmentTokens / BLOCK_TOKENS;
    const slots = new Uint8Array(blockCount * geometry.summaryBytes);
    for (let index = 0; index < blockCount; index++) {
      const layers = Array.from({ length: geometry.layerCount }, (_, layer) => segment.block(layer, index).slice());
      slots.set(rebuildSummary(geometry, kind, layers), index * geometry.summaryBytes);
    }
    return slots;
  }

  async #compact(group: readonly SummaryRef[]): Promise<SummaryRef[]> {
    try {
      const objects: SummaryObject[] = [];
      for (const ref of group) objects.push(await this.#get(ref));
      const compacted = await this.#put(compactSummaries(objects));
      const end = compacted.fromToken + compacted.tokenCount;
      for (const segment of this.#segments) {
        if (segment.fromToken >= compacted.fromToken && segment.fromToken < end)
          segment.summaries.set(this.#kind, compacted);
      }
      return [compacted];
    } catch (error) {
      this.#options.log("persist.compaction-failed", { fromToken: group[0]?.fromToken, error: String(error) });
      return [...group];
    }
  }

  async #get(ref: SummaryRef): Promise<SummaryObject> {
    const known = this.#read.get(ref.objectKey);
    if (known) return known;
    const { store, gate, geometry, clock, putMsMax } = this.#options;
    const object = await gate.run("demand", () => store.get(ref.objectKey, { signal: clock.deadline(putMsMax) }));
    if (!object) throw new Error("a summary object is gone");
    const { sha256, kind, fromToken, tokenCount } = ref;
    const decoded = decodeSummaryObject(object.bytes, { sha256, geometry, kind, fromToken, tokenCount });
    this.#read.set(ref.objectKey, decoded);
    return decoded;
  }

  async #put(object: SummaryObject): Promise<SummaryRef> {
    const { store, geometry } = this.#options;
    const bytes = encodeSummaryObject(object);
    const tokenCount = object.segments.length * geometry.segmentTokens;
    const { fromToken, kind } = object;
    const objectKey = this.#keys.summary(kind, object.segments.at(-1)?.chain as string, tokenCount);
    await retried(this.#options, (signal) => store.put(objectKey, bytes, { signal }));
    return { kind, objectKey, objectBytes: bytes.byteLength, sha256: summaryDigest(bytes), fromToken, tokenCount };
  }

  #countOf(ref: SummaryRef): number {
    return ref.tokenCount / this.#options.geometry.segmentTokens;
  }
}
