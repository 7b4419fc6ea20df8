/** A session in a store all of whose parts agree with each other, as an engine leaves one. */
import type { PageStore } from "../../storage/contract.ts";
import { kvGeometry } from "../../storage/geometry.ts";
import { commitManifest, type Manifest } from "../../storage/manifest.ts";
import { decodeSegmentHeader } from "../../storage/segment.ts";
import { encodeSummaryObject, summaryDigest } from "../../storage/summary-object.ts";
import { chainOf, SMALL_SHAPE, sampleKeys, sampleSegment, sampleSession, slotNoise } from "./samples.ts";

/** Both kinds of summaries. */
export const WHOLE_GEOMETRY = kvGeometry({ ...SMALL_SHAPE, summaryKinds: ["min-max", "mean-deviation"] });

/** Stores four segments, two summary objects of each kind (one segment, three segments), a tail of 70 tokens, and the manifest. */
export async function storeWholeSession(
  store: PageStore,
  options: { sessionId: string; namespace?: string; updatedMs?: number },
): Promise<{ key: string; manifest: Manifest }> {
  const keys = sampleKeys(WHOLE_GEOMETRY, options.namespace);
  const { key, manifest, objects } = sampleSession(WHOLE_GEOMETRY, { ...options, segmentCount: 4, tailTokens: 70 });
  for (const [name, bytes] of objects) if (!name.includes("/sum-")) await store.put(name, bytes);
  manifest.summaries = [];
  for (const kind of WHOLE_GEOMETRY.summaryKinds) {
    for (const [fromToken, count] of [
      [0, 1],
      [128, 3],
    ] as const) {
      const segments = Array.from({ length: count }, (_, i) => {
        const { chain, checksums } = decodeSegmentHeader(sampleSegment(WHOLE_GEOMETRY, fromToken + 128 * i));
        return { chain, checksums, slots: slotNoise(i, kind, 2 * WHOLE_GEOMETRY.summaryBytes) };
      });
      const bytes = encodeSummaryObject({ geometry: WHOLE_GEOMETRY, kind, fromToken, segments });
      const objectKey = keys.summary(kind, chainOf(fromToken + 128 * count), 128 * count);
      await store.put(objectKey, bytes);
      const sha256 = summaryDigest(bytes);
      const tokenCount = 128 * count;
      manifest.summaries.push({ kind, objectKey, objectBytes: bytes.byteLength, sha256, fromToken, tokenCount });
    }
  }
  await commitManifest(store, key, manifest, undefined);
  return { key, manifest };
}
