import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { AssertionError } from "../../protocol/assert.ts";
import { crc32 } from "../../storage/checksum.ts";
import { type KvGeometry, kvGeometry } from "../../storage/geometry.ts";
import {
  checksumIndex,
  decodeSegment,
  decodeSegmentHeader,
  encodeSegment,
  segmentBytes,
  segmentHeaderBytes,
  segmentRange,
  verifyBlock,
} from "../../storage/segment.ts";
import {
  codeOf,
  countRepairedRefused,
  expectEveryCutRefused,
  expectEveryFlipRefused,
  expectNoiseRefused,
  repairSegment,
} from "./hostile.ts";
import * as independent from "./independent-decoder.mjs";
import { blockOf, chainOf, SMALL, SMALL_SHAPE, sampleSegment, TINY } from "./samples.ts";

const geometries = fc.record({
  layerCount: fc.integer({ min: 1, max: 4 }),
  kvHeadCount: fc.integer({ min: 1, max: 3 }),
  headDim: fc.constantFrom(4, 8, 12),
  encoding: fc.constantFrom("f32" as const, "int8" as const),
  summaryKinds: fc.constantFrom([], ["min-max" as const], ["mean-deviation" as const, "min-max" as const]),
  segmentTokens: fc.constantFrom(64, 128, 256),
});

describe("segment", () => {
  it("comes back as it was written, and as the independent decoder reads it", () => {
    fc.assert(
      fc.property(geometries, fc.nat(1000), (shape, index) => {
        const geometry = kvGeometry(shape);
        const fromToken = index * geometry.segmentTokens;
        const bytes = sampleSegment(geometry, fromToken);
        const segment = decodeSegment(bytes, { geometry, fromToken });
        const theirs = independent.decodeSegment(bytes);
        expect(segment.geometry).toEqual(geometry);
        expect(segment.chain).toBe(chainOf(fromToken + geometry.segmentTokens));
        expect([theirs.fromToken, theirs.tokenCount]).toEqual([fromToken, geometry.segmentTokens]);
        for (let layer = 0; layer < geometry.layerCount; layer++) {
          for (let block = 0; block < geometry.segmentTokens / 64; block++) {
            const written = Buffer.from(blockOf(geometry, fromToken, layer, block));
            expect(written.equals(segment.block(layer, block))).toBe(true);
            expect(written.equals(theirs.blocks[layer]?.[block] ?? new Uint8Array(0))).toBe(true);
          }
        }
      }),
      { seed: 11, numRuns: 40 },
    );
  });

  it("gives each block a range of its own that needs no header, neighbours of a layer in one", () => {
    const geometry = kvGeometry({ ...SMALL_SHAPE, layerCount: 3, segmentTokens: 256 });
    const bytes = sampleSegment(geometry);
    const { checksums } = decodeSegmentHeader(bytes.subarray(0, segmentHeaderBytes(geometry)));
    let nextOffset = segmentHeaderBytes(geometry);
    expect(nextOffset % 64).toBe(0);
    for (let layer = 0; layer < 3; layer++) {
      for (let block = 0; block < 4; block++) {
        const range = segmentRange(geometry, layer, block);
        expect(range).toEqual({ offset: nextOffset, bytes: geometry.blockBytes });
        nextOffset += range.bytes;
        const part = bytes.subarray(range.offset, range.offset + range.bytes);
        expect(verifyBlock(part, checksums[checksumIndex(geometry, layer, block)] as number)).toBe(true);
        expect(verifyBlock(part.subarray(1), checksums[checksumIndex(geometry, layer, block)] as number)).toBe(false);
      }
      expect(segmentRange(geometry, layer, 1, 3)).toEqual({
        offset: segmentRange(geometry, layer, 1).offset,
        bytes: 3 * geometry.blockBytes,
      });
    }
    expect(nextOffset).toBe(segmentBytes(geometry));
    expect(() => segmentRange(geometry, 3, 0)).toThrow(AssertionError);
    expect(() => segmentRange(geometry, 0, 2, 3)).toThrow(AssertionError);
  });

  it("notices every flipped bit, every cut and noise", () => {
    const bytes = sampleSegment(TINY);
    expect(bytes.byteLength).toBeLessThan(300);
    expectEveryFlipRefused(bytes, (damaged) => decodeSegment(damaged));
    expectEveryCutRefused(bytes, (damaged) => decodeSegment(damaged));
    expectNoiseRefused(bytes, (damaged) => decodeSegment(damaged), 21);
    const header = bytes.slice(0, segmentHeaderBytes(TINY));
    expectEveryFlipRefused(header, (damaged) => decodeSegmentHeader(damaged));
    for (let length = 0; length < header.byteLength; length++) {
      expect(codeOf(header.subarray(0, length), (cut) => decodeSegmentHeader(cut))).toBe("corrupt");
    }
  });

  it("stands hostile headers whose checksum is right", () => {
    const refused = countRepairedRefused(sampleSegment(TINY), repairSegment, (bytes) => decodeSegment(bytes), 31);
    expect(refused).toBeGreaterThan(500);
  });

  it("refuses an intact segment of a newer version, and one that was not asked for", () => {
    const newer = sampleSegment(TINY);
    newer[8] = 3;
    repairSegment(newer);
    expect(codeOf(newer, (bytes) => decodeSegment(bytes))).toBe("unsupported_version");
    const bytes = sampleSegment(TINY, 128);
    expect(codeOf(bytes, (it) => decodeSegment(it, { geometry: TINY, fromToken: 128 }))).toBeUndefined();
    const other: KvGeometry = { ...TINY, encoding: "f32" };
    expect(codeOf(bytes, (it) => decodeSegment(it, { geometry: other }))).toBe("mismatch");
    expect(codeOf(bytes, (it) => decodeSegment(it, { fromToken: 0 }))).toBe("mismatch");
    expect(codeOf(bytes, (it) => decodeSegment(it, { chain: chainOf("other") }))).toBe("mismatch");
  });

  it("takes wrong input for a programmer's error", () => {
    const good = { geometry: SMALL, fromToken: 0, chain: chainOf(0), block: () => new Uint8Array(SMALL.blockBytes) };
    expect(encodeSegment(good).byteLength).toBe(segmentBytes(SMALL));
    expect(() => encodeSegment({ ...good, fromToken: 64 })).toThrow(AssertionError);
    expect(() => encodeSegment({ ...good, chain: "x" })).toThrow(AssertionError);
    expect(() => encodeSegment({ ...good, block: () => new Uint8Array(1) })).toThrow(AssertionError);
  });
});

describe("checksum", () => {
  it("is the CRC-32 of gzip", () => {
    // Check value of CRC-32/ISO-HDLC in the CRC catalogue.
    expect(crc32(Buffer.from("123456789"))).toBe(0xcbf43926);
    expect(crc32(new Uint8Array(0))).toBe(0);
  });
});
