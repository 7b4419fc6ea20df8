/** The objects behind the golden files. */
import { join } from "node:path";
import { type KvGeometry, kvGeometry } from "../../storage/geometry.ts";
import { encodeManifest } from "../../storage/manifest.ts";
import { encodeTombstone, type Tombstone } from "../../storage/tombstone.ts";
import {
  chainOf,
  SMALL,
  SMALL_SHAPE,
  sampleKeys,
  sampleSegment,
  sampleSession,
  sampleSummaryObject,
  sampleTail,
} from "./samples.ts";

/** {@link SMALL} with both kinds of summaries. */
export const BOTH: KvGeometry = kvGeometry({ ...SMALL_SHAPE, summaryKinds: ["min-max", "mean-deviation"] });

/** {@link BOTH} with int4 blocks: objects of the later versions. */
export const INT4: KvGeometry = kvGeometry({ ...SMALL_SHAPE, summaryKinds: BOTH.summaryKinds, encoding: "int4" });

/** {@link SMALL} with f16 blocks. */
export const F16: KvGeometry = kvGeometry({ ...SMALL_SHAPE, encoding: "f16" });

/** What the golden tombstone says. */
export const goldenTombstone: Tombstone = {
  ...{
    formatVersion: 4,
    sessionId: "a session",
    generation: 4,
    bornMs: 1_763_900_000_001,
    updatedMs: 1_763_900_500_000,
  },
  objectKeys: [sampleKeys(SMALL).segment(chainOf(128))],
};

/** Path of a golden file. */
export function goldenPath(name: string): string {
  return join(import.meta.dirname, "fixtures", "golden", `${name}.bin`);
}

/** What today's encoders make of the samples. */
export function goldenObjects(): [name: string, bytes: Uint8Array][] {
  const ofInt4 = sampleSession(INT4, { sessionId: "a session", segmentCount: 2, tailTokens: 70 });
  const { manifest } = sampleSession(BOTH, { sessionId: "a session", segmentCount: 2, tailTokens: 70 });
  return [
    ["segment", sampleSegment(SMALL, 128)],
    ["summaries", sampleSummaryObject(SMALL, 2, 128)],
    ["summaries-none", sampleSummaryObject(kvGeometry({ ...SMALL_SHAPE, summaryKinds: [] }), 2, 128)],
    ["tail", sampleTail(BOTH, 134, 256)],
    ["manifest", encodeManifest(manifest)],
    ["segment-int4", sampleSegment(INT4, 128)],
    ["summaries-int4", sampleSummaryObject(INT4, 2, 128)],
    ["tail-int4", sampleTail(INT4, 134, 256)],
    ["manifest-int4", encodeManifest(ofInt4.manifest)],
    ["segment-f16", sampleSegment(F16, 128)],
    ["tombstone", encodeTombstone(goldenTombstone)],
  ];
}
