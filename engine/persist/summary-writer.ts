/**
 * Puts summary objects. Segments that were sealed since the last commit share one object, which never crosses a border of 4,096 tokens; once such a
 * run is whole it is compacted to a single object, so that a long session is scored after few reads. Objects are named by the
 * chain at their end, so sessions that share a prefix share them; one that reaches beyond a session's own segments is not used by it.
 */
import { assert } from "../../protocol/assert.ts";
import { StoreError } from "../../storage/contract.ts";
import { envelopeDigest } from "../../storage/envelope.ts";
import type { ObjectKeys } from "../../storage/keys.ts";
import type { WholeRef } from "../../storage/manifest.ts";
import {
  compactSummaries,
  decodeSummaryObject,
  encodeSummaryObject,
  type SegmentSummary,
  type SummaryObject,
} from "../../storage/summary-object.ts";
import type { StoredSegment } from "../kv/stored-segment.ts";
import type { PersisterOptions } from "./persister-options.ts";
import { retried } from "./retry.ts";

const COMPACT_TOKENS = 4096;

/**
 * Makes sure that the summaries of all segments are stored; returns objects that cover exactly them, in order.
 * @param own objects of the session's last manifest, preferred to those of sessions that share its segments
 * @throws {Error} when a put fails, or an object that holds summaries is gone; its segments are marked to be written anew.
 */
export async function writeSummaries(
  options: PersisterOptions,
  keys: ObjectKeys,
  segments: readonly StoredSegment[],
  own: readonly WholeRef[] = [],
): Promise<WholeRef[]> {
  const writer = new SummaryWriter(options, keys, { segments, own });
  return await writer.compacted(await writer.cover());
}

class SummaryWriter {
  readonly #options: PersisterOptions;
  readonly #keys: ObjectKeys;
  readonly #segments: readonly StoredSegment[];
  readonly #own: ReadonlyMap<number, WholeRef>;
  readonly #read = new Map<string, SummaryObject>();

  constructor(
    options: PersisterOptions,
    keys: ObjectKeys,
    session: { segments: readonly StoredSegment[]; own: readonly WholeRef[] },
  ) {
    this.#options = options;
    this.#keys = keys;
    this.#segments = session.segments;
    this.#own = new Map(session.own.map((ref) => [ref.fromToken, ref]));
  }

  /** Known objects where they fit, new ones for the runs between. */
  async cover(): Promise<WholeRef[]> {
    const refs: WholeRef[] = [];
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
  async compacted(refs: readonly WholeRef[]): Promise<WholeRef[]> {
    const result: WholeRef[] = [];
    let group: WholeRef[] = [];
    for (const ref of refs) {
      group.push(ref);
      const first = group[0] as WholeRef;
      const end = ref.fromToken + ref.tokenCount;
      if (end % COMPACT_TOKENS !== 0) continue;
      const whole = end - first.fromToken === COMPACT_TOKENS && group.length > 1;
      result.push(...(whole ? await this.#compact(group) : group));
      group = [];
    }
    return [...result, ...group];
  }

  /** The known object that begins at this segment, if all of it is this session's and none was written anew since. */
  #fitting(index: number): WholeRef | undefined {
    const segment = this.#segments[index];
    if (!segment) return undefined;
    return [this.#own.get(segment.fromToken), segment.summary].find((ref) => {
      if (ref?.fromToken !== segment.fromToken) return false;
      const covered = this.#segments.slice(index, index + this.#countOf(ref));
      const last = covered.at(-1) as StoredSegment;
      return (
        covered.length === this.#countOf(ref) &&
        covered.every(({ slots }) => slots === undefined) &&
        this.#keys.summary(last.chain, ref.tokenCount) === ref.objectKey
      );
    });
  }

  #uncovered(index: number): StoredSegment[] {
    let end = index + 1;
    while (end < this.#segments.length && (this.#segments[end] as StoredSegment).fromToken % COMPACT_TOKENS !== 0) {
      if (this.#fitting(end)) break;
      end += 1;
    }
    return this.#segments.slice(index, end);
  }

  async #write(run: readonly StoredSegment[]): Promise<WholeRef> {
    const segments: SegmentSummary[] = [];
    for (const segment of run) {
      segments.push({ chain: segment.chain, checksums: segment.checksums, slots: await this.#slotsOf(segment) });
    }
    const ref = await this.#put({
      geometry: this.#options.geometry,
      fromToken: (run[0] as StoredSegment).fromToken,
      segments,
    });
    for (const segment of run) {
      // One that others share keeps its object, unless that is out of date.
      if (segment.slots || !segment.summary) segment.summary = ref;
      segment.slots = undefined;
    }
    return ref;
  }

  async #slotsOf(segment: StoredSegment): Promise<Uint8Array> {
    if (segment.slots) return segment.slots;
    assert(segment.summary, "a stored segment has its summaries in memory or in the store");
    try {
      const object = await this.#get(segment.summary);
      const found = object.segments.find((summary) => summary.chain === segment.chain);
      if (!found) throw new Error("a summary object does not hold its segment");
      return found.slots;
    } catch (error) {
      // The next turn puts the segment again, from its blocks, with summaries of their own.
      if (!(error instanceof StoreError)) segment.damaged = true;
      throw error;
    }
  }

  async #compact(group: readonly WholeRef[]): Promise<WholeRef[]> {
    try {
      const objects: SummaryObject[] = [];
      for (const ref of group) objects.push(await this.#get(ref));
      const compacted = await this.#put(compactSummaries(objects));
      const end = compacted.fromToken + compacted.tokenCount;
      for (const segment of this.#segments) {
        if (segment.fromToken >= compacted.fromToken && segment.fromToken < end) segment.summary = compacted;
      }
      return [compacted];
    } catch (error) {
      this.#options.log("persist.compaction-failed", { fromToken: group[0]?.fromToken, error: String(error) });
      return [...group];
    }
  }

  async #get(ref: WholeRef): Promise<SummaryObject> {
    const known = this.#read.get(ref.objectKey);
    if (known) return known;
    const { store, gate, geometry, putMsMax } = this.#options;
    const object = await gate.run("demand", () => store.get(ref.objectKey, { signal: AbortSignal.timeout(putMsMax) }));
    if (!object) throw new Error("a summary object is gone");
    const { sha256, fromToken, tokenCount } = ref;
    const decoded = decodeSummaryObject(object.bytes, { sha256, geometry, fromToken, tokenCount });
    this.#read.set(ref.objectKey, decoded);
    return decoded;
  }

  async #put(object: SummaryObject): Promise<WholeRef> {
    const { store, geometry } = this.#options;
    const bytes = encodeSummaryObject(object);
    const tokenCount = object.segments.length * geometry.segmentTokens;
    const objectKey = this.#keys.summary(object.segments.at(-1)?.chain as string, tokenCount);
    await retried(this.#options, (signal) => store.put(objectKey, bytes, { signal }));
    const { fromToken } = object;
    return { objectKey, objectBytes: bytes.byteLength, sha256: envelopeDigest(bytes), fromToken, tokenCount };
  }

  #countOf(ref: WholeRef): number {
    return ref.tokenCount / this.#options.geometry.segmentTokens;
  }
}
