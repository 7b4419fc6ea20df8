import { chainToBytes, viewOf, writeU32s } from "../../storage/bytes.ts";
import { beginEnvelope, envelopeDigest, sealEnvelope } from "../../storage/envelope.ts";
import { blocksPerSegment, summaryKindCode, writeGeometry } from "../../storage/geometry.ts";
import type { SummaryObject } from "../../storage/summary-object.ts";

/** A summary object of version 2, which is not written any more: whole slots, block by block; and the digest by which a manifest named it. */
export function encodeSummariesByBlock(object: SummaryObject): { bytes: Uint8Array; sha256: string } {
  const { geometry, kind, fromToken, segments } = object;
  const checksumBytes = 4 * geometry.layerCount * blocksPerSegment(geometry);
  const slotsBytes = segments[0]!.slots.byteLength;
  const count = segments.length;
  const envelope = beginEnvelope({ magic: "QUIRESUM", version: 2 }, 48 + count * (32 + checksumBytes + slotsBytes));
  const { body } = envelope;
  writeGeometry(body, 0, geometry);
  for (const [index, value] of [fromToken, count, summaryKindCode(kind)].entries())
    viewOf(body).setUint32(36 + 4 * index, value, true);
  for (const [index, { chain, checksums, slots }] of segments.entries()) {
    body.set(chainToBytes(chain), 48 + 32 * index);
    writeU32s(body, 48 + 32 * count + checksumBytes * index, checksums);
    body.set(slots, 48 + (32 + checksumBytes) * count + slotsBytes * index);
  }
  const bytes = sealEnvelope(envelope);
  return { bytes, sha256: envelopeDigest(bytes) };
}
