import { describe, expect, it } from "vitest";
import { AssertionError } from "../../protocol/assert.ts";
import { sha256 } from "../../storage/checksum.ts";
import { kvGeometry } from "../../storage/geometry.ts";
import { decodeSegmentHeader } from "../../storage/segment.ts";
import {
  compactSummaries,
  decodeSummaryHead,
  decodeSummaryObject,
  encodeSummaryObject,
  isSectionIntact,
  layerSummary,
  type SummaryObject,
  summaryDigest,
  summaryRange,
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

/** Bytes of the head of two segments, which a manifest's digest covers. */
const HEAD_TINY = summaryRange(
  { geometry: TINY, kind: "min-max", segmentCount: 2 },
  { fromLayer: -1, toLayer: 0 },
).bytes;

/** Makes the digest of a head of so many bytes good again. */
function repairHead(bytes: Uint8Array, headBytes: number): void {
  bytes.set(sha256(bytes.subarray(0, headBytes - 32)), headBytes - 32);
}

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
    const repairAll = (bytes: Uint8Array): void => {
      repairHead(bytes, HEAD_TINY);
      repairEnvelope(bytes);
    };
    expect(countRepairedRefused(sampleSummaryObject(TINY, 2), repairAll, decode, 33)).toBeGreaterThan(500);
  });

  it("refuses a layer that is not the head's, under a digest that is right", () => {
    const bytes = sampleSummaryObject(TINY, 2);
    bytes[HEAD_TINY + 3]! ^= 1;
    repairEnvelope(bytes);
    expect(codeOf(bytes, decode)).toBe("corrupt");
  });

  it("refuses an intact object of a newer version, and one that was not asked for", () => {
    const bytes = sampleSummaryObject(TINY, 2, 128);
    const expected = {
      sha256: summaryDigest(bytes),
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
    newer[8] = 5;
    repairEnvelope(newer);
    expect(codeOf(newer, decode)).toBe("unsupported_version");
  });
});

describe("summary object, read layer by layer", () => {
  const kind = "mean-deviation" as const;
  const bytes = sampleSummaryObject(SMALL, 3, 256);
  const shape = { geometry: SMALL, kind, segmentCount: 3 };
  const expected = { sha256: summaryDigest(bytes), geometry: SMALL, kind, fromToken: 256, tokenCount: 384 };
  const read = (fromLayer: number, toLayer: number): Uint8Array => {
    const range = summaryRange(shape, { fromLayer, toLayer });
    return bytes.subarray(range.offset, range.offset + range.bytes);
  };

  it("gives head and layers by range, which are those of the whole", () => {
    const whole = decodeSummaryObject(bytes);
    const first = read(-1, 1);
    const head = decodeSummaryHead(first, expected);
    expect(head.segments.map(({ chain, checksums }) => [chain, ...checksums])).toEqual(
      whole.segments.map(({ chain, checksums }) => [chain, ...checksums]),
    );
    const sections = [first.subarray(first.byteLength - read(0, 1).byteLength), read(1, 2)];
    expect(read(0, 2).byteLength + read(-1, 0).byteLength + 32).toBe(bytes.byteLength);
    for (const [layer, section] of sections.entries()) {
      expect(isSectionIntact(head, layer, section)).toBe(true);
      expect(isSectionIntact(head, 1 - layer, section)).toBe(false);
      const share = SMALL.summaryBytes / 2;
      for (let block = 0; block < 6; block++) {
        const slot = summarySlot(SMALL, whole.segments[block >> 1]!, block & 1);
        const own = slot.subarray(layer * share, (layer + 1) * share);
        expect(Buffer.from(layerSummary(SMALL, section, block)).equals(own), `layer ${layer}, block ${block}`).toBe(
          true,
        );
      }
    }
  });

  it("notices every flipped bit and cut of a head, and of a section", () => {
    const first = read(-1, 1);
    const headBytes = read(-1, 0).byteLength;
    for (let bit = 0; bit < first.byteLength * 8; bit++) {
      // The length of the whole is not a reader's of its beginning to judge, but the digest's.
      const flipped = first.slice();
      flipped[bit >> 3]! ^= 1 << (bit & 7);
      if (bit < headBytes * 8)
        expect(
          codeOf(flipped, (it) => decodeSummaryHead(it, expected)),
          `bit ${bit}`,
        ).toBeDefined();
      else expect(isSectionIntact(decodeSummaryHead(flipped, expected), 0, flipped.subarray(headBytes))).toBe(false);
    }
    for (let length = 0; length < headBytes; length++)
      expect(codeOf(first.subarray(0, length), (it) => decodeSummaryHead(it, expected))).toBe("corrupt");
    expect(isSectionIntact(decodeSummaryHead(first, expected), 0, first.subarray(headBytes, -1))).toBe(false);
  });

  it("refuses the intact head of another object, and of another version", () => {
    const other = sampleSummaryObject(SMALL, 3, 384);
    expect(codeOf(other, (it) => decodeSummaryHead(it, expected))).toBe("mismatch");
    expect(codeOf(other, (it) => decodeSummaryHead(it, { ...expected, sha256: summaryDigest(other) }))).toBe(
      "mismatch",
    );
    const newer = read(-1, 1).slice();
    newer[8] = 5;
    expect(codeOf(newer, (it) => decodeSummaryHead(it, expected))).toBe("unsupported_version");
  });
});
