import { describe, expect, it } from "vitest";
import { AssertionError } from "../../protocol/assert.ts";
import { envelopeDigest } from "../../storage/envelope.ts";
import { kvGeometry } from "../../storage/geometry.ts";
import { decodeSegmentHeader } from "../../storage/segment.ts";
import {
  compactSummaries,
  decodeSummaryObject,
  encodeSummaryObject,
  type SummaryObject,
  summarySlot,
} from "../../storage/summary-object.ts";
import {
  codeOf,
  countRepairedRefused,
  expectEveryCutRefused,
  expectEveryFlipRefused,
  expectNoiseRefused,
  repairEnvelope,
} from "./hostile.ts";
import { chainOf, SMALL, SMALL_SHAPE, sampleSegment, sampleSummaryObject, slotNoise, TINY } from "./samples.ts";

const decode = (bytes: Uint8Array): unknown => decodeSummaryObject(bytes);

describe("summary object", () => {
  it("comes back as it was written, at any alignment", () => {
    const bytes = sampleSummaryObject(SMALL, 3, 256);
    const shifted = new Uint8Array(bytes.byteLength + 3);
    shifted.set(bytes, 3);
    for (const place of [bytes, shifted.subarray(3)]) {
      const object = decodeSummaryObject(place);
      expect(object.geometry).toEqual(SMALL);
      expect(object.fromToken).toBe(256);
      expect(object.segments.map(({ chain }) => chain)).toEqual([384, 512, 640].map(chainOf));
      const slots = slotNoise(256 + 128, "mean-deviation", 2 * SMALL.summaryBytes);
      const second = object.segments[1];
      if (second === undefined) throw new Error("a segment is missing");
      expect(Buffer.from(summarySlot(SMALL, second, 1)).equals(slots.subarray(SMALL.summaryBytes))).toBe(true);
      expect(Buffer.from(encodeSummaryObject(object)).equals(bytes)).toBe(true);
    }
  });

  it("carries the checksums of its segment, so that a block can be verified without the segment's header", () => {
    const { checksums, chain } = decodeSegmentHeader(sampleSegment(SMALL));
    const slots = new Uint8Array(2 * SMALL.summaryBytes);
    const bytes = encodeSummaryObject({
      geometry: SMALL,
      kind: "mean-deviation",
      fromToken: 0,
      segments: [{ chain, checksums, slots }],
    });
    expect([...(decodeSummaryObject(bytes).segments[0]?.checksums ?? [])]).toEqual([...checksums]);
  });

  it("compacts consecutive objects into what one object of all segments would be", () => {
    const parts = [
      sampleSummaryObject(SMALL, 1, 0),
      sampleSummaryObject(SMALL, 2, 128),
      sampleSummaryObject(SMALL, 1, 384),
    ];
    const objects = parts.map((bytes) => decodeSummaryObject(bytes));
    const compacted = encodeSummaryObject(compactSummaries(objects));
    expect(Buffer.from(compacted).equals(sampleSummaryObject(SMALL, 4, 0))).toBe(true);
    expect(Buffer.from(encodeSummaryObject(objects[0] as SummaryObject)).equals(parts[0] as Uint8Array)).toBe(true);
    expect(() => compactSummaries([objects[0], objects[2]] as SummaryObject[])).toThrow(AssertionError);
    expect(() => compactSummaries([])).toThrow(AssertionError);
    const other = decodeSummaryObject(sampleSummaryObject(TINY, 1, 128));
    expect(() => compactSummaries([objects[0] as SummaryObject, other])).toThrow(AssertionError);
    const kinds = [sampleSummaryObject(TINY, 1, 0), sampleSummaryObject(TINY, 1, 128, "mean-deviation")];
    expect(() => compactSummaries(kinds.map((bytes) => decodeSummaryObject(bytes)))).toThrow(AssertionError);
  });

  it("holds one kind that its geometry keeps, or chains and checksums alone where it keeps none", () => {
    const both = ["min-max", "mean-deviation"] as const;
    const [first, second] = both.map((kind) => decodeSummaryObject(sampleSummaryObject(TINY, 2, 0, kind), { kind }));
    expect(second?.segments.map(({ chain }) => chain)).toEqual(first?.segments.map(({ chain }) => chain));
    expect(Buffer.compare(second!.segments[0]!.slots, first!.segments[0]!.slots)).not.toBe(0);
    const bare = kvGeometry({ ...SMALL_SHAPE, summaryKinds: [] });
    const none = decodeSummaryObject(sampleSummaryObject(bare, 2), { kind: "none" });
    expect(none.segments.map(({ slots }) => slots.byteLength)).toEqual([0, 0]);
    expect(none.segments[1]?.checksums).toHaveLength(4);
    expect(() => sampleSummaryObject(SMALL, 1, 0, "min-max")).toThrow(AssertionError);
    expect(() => sampleSummaryObject(SMALL, 1, 0, "none")).toThrow(AssertionError);
  });

  it("notices every flipped bit, every cut and noise", () => {
    const bytes = sampleSummaryObject(TINY, 2);
    expectEveryFlipRefused(bytes, decode);
    expectEveryCutRefused(bytes, decode);
    expectNoiseRefused(bytes, decode, 22);
  });

  it("stands hostile content whose digest is right", () => {
    expect(countRepairedRefused(sampleSummaryObject(TINY, 2), repairEnvelope, decode, 32)).toBeGreaterThan(500);
  });

  it("refuses an intact object of a newer version, and one that was not asked for", () => {
    const bytes = sampleSummaryObject(TINY, 2, 128);
    const expected = {
      sha256: envelopeDigest(bytes),
      geometry: TINY,
      kind: "min-max" as const,
      fromToken: 128,
      tokenCount: 256,
    };
    expect(codeOf(bytes, (it) => decodeSummaryObject(it, expected))).toBeUndefined();
    for (const change of [
      { sha256: chainOf(1) },
      { geometry: SMALL },
      { kind: "mean-deviation" as const },
      { fromToken: 0 },
      { tokenCount: 128 },
    ]) {
      expect(codeOf(bytes, (it) => decodeSummaryObject(it, { ...expected, ...change }))).toBe("mismatch");
    }
    const newer = bytes.slice();
    newer[8] = 4;
    repairEnvelope(newer);
    expect(codeOf(newer, decode)).toBe("unsupported_version");
  });
});
