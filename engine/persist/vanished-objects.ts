/**
 * What a manifest begins to name may be gone: segments that an engine holds in memory were named by nobody for a while (their sessions were deleted, or
 * their commit failed), and garbage collection has taken them from the store. So they are looked for once a manifest names them, from when on they stay;
 * what is not there is put again, from memory, with the next turn that holds it.
 */
import { LIMITS } from "../../protocol/limits.ts";
import { StoreError } from "../../storage/contract.ts";
import { isDamage } from "../../storage/format-error.ts";
import type { SummaryRef } from "../../storage/manifest.ts";
import type { StoredSegment } from "../kv/stored-segment.ts";
import type { PersisterOptions } from "./persister-options.ts";

/** Garbage collection leaves what is younger than the longest turn. */
const SEEN_MS_MAX = LIMITS.turnMsMax;
/** Of an object, to see whether it is there. */
const LOOK_BYTES = 16;

/**
 * Looks for segments that were not seen for long, and for the summaries of theirs that the manifest names; marks segments that are to be put again. A store
 * that does not answer says nothing of them. Never rejects.
 */
export async function markVanished(
  options: PersisterOptions,
  begun: readonly StoredSegment[],
  summaries: readonly SummaryRef[],
): Promise<void> {
  const nowMs = options.clock.nowMs();
  const unsure = begun.filter(({ seenMs }) => nowMs - seenMs > SEEN_MS_MAX);
  const covers = (ref: SummaryRef) => unsure.filter(({ fromToken }) => isWithin(fromToken, ref));
  const looks = [
    ...unsure.map(async (segment) => {
      const isThere = await isInStore(options, segment.objectKey, segment.objectOffset);
      if (isThere === true) segment.seenMs = nowMs;
      if (isThere !== false) return;
      segment.isWritten = false;
      vanish(options, segment.objectKey, [segment]);
    }),
    ...summaries.map(async (ref) => {
      const segments = covers(ref);
      if (segments.length === 0 || (await isInStore(options, ref.objectKey, 0)) !== false) return;
      vanish(options, ref.objectKey, segments);
    }),
  ];
  await Promise.all(looks);
}

function isWithin(fromToken: number, ref: SummaryRef): boolean {
  return fromToken >= ref.fromToken && fromToken < ref.fromToken + ref.tokenCount;
}

function vanish({ log }: PersisterOptions, objectKey: string, segments: readonly StoredSegment[]): void {
  for (const segment of segments) segment.damaged = true;
  log("persist.vanished", { objectKey });
}

/** Undefined where the store does not say. */
async function isInStore(
  { clock, gate, putMsMax, store }: PersisterOptions,
  objectKey: string,
  offset: number,
): Promise<boolean | undefined> {
  const range = { offset, bytes: LOOK_BYTES };
  const look = () => store.get(objectKey, { range, fresh: true, signal: clock.deadline(putMsMax) });
  try {
    return (await gate.run("demand", look)) !== undefined;
  } catch (error) {
    if (isDamage(error)) return false;
    if (error instanceof StoreError) return undefined;
    throw error;
  }
}
