import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { AssertionError } from "../../protocol/assert.ts";
import { envelopeDigest } from "../../storage/envelope.ts";
import { decodeTail, encodeTail, tailBytes } from "../../storage/tail.ts";
import {
  codeOf,
  countRepairedRefused,
  expectEveryCutRefused,
  expectEveryFlipRefused,
  expectNoiseRefused,
  repairEnvelope,
} from "./hostile.ts";
import * as independent from "./independent-decoder.mjs";
import { noise } from "./random.ts";
import { blockOf, chainOf, SMALL, sampleTail, slotNoise, TINY } from "./samples.ts";

const decode = (bytes: Uint8Array): unknown => decodeTail(bytes);

describe("tail", () => {
  it("comes back as it was written, at every length around a block", () => {
    fc.assert(
      fc.property(fc.constantFrom(1, 63, 64, 65, 100, 127, 128, 129, 200), fc.nat(100), (tokenCount, index) => {
        const fromToken = index * SMALL.segmentTokens;
        const bytes = sampleTail(SMALL, tokenCount, fromToken);
        expect(bytes.byteLength).toBe(tailBytes(SMALL, tokenCount));
        const tail = decodeTail(bytes);
        const theirs = independent.decodeTail(bytes);
        expect([tail.fromToken, tail.generation, tail.chain]).toEqual([fromToken, 3, chainOf(fromToken + tokenCount)]);
        expect(theirs.ids).toEqual([...tail.ids]);
        expect(tail.ids).toHaveLength(tokenCount);
        expect(tail.ids.at(-1)).toBe(((tokenCount - 1) * 2_654_435_761) >>> 0);
        expect(tail.blockCount).toBe(Math.floor(tokenCount / 64));
        for (let block = 0; block < tail.blockCount; block++) {
          for (let layer = 0; layer < SMALL.layerCount; layer++) {
            const written = Buffer.from(blockOf(SMALL, fromToken, layer, block));
            expect(written.equals(tail.block(block, layer))).toBe(true);
            expect(written.equals(theirs.blocks[block]?.[layer] ?? new Uint8Array(0))).toBe(true);
          }
          for (const kind of SMALL.summaryKinds)
            expect(Buffer.from(tail.summary(block, kind)).equals(slotNoise(block + 50, kind, SMALL.summaryBytes))).toBe(
              true,
            );
        }
        const open = noise(99, (tokenCount % 64) * SMALL.openTokenBytes);
        expect(Buffer.from(tail.open).equals(open)).toBe(true);
        expect(Buffer.from(encodeTail(tail)).equals(bytes)).toBe(true);
      }),
      { seed: 12, numRuns: 60 },
    );
  });

  it("notices every flipped bit, every cut and noise", () => {
    const bytes = sampleTail(TINY, 66);
    expectEveryFlipRefused(bytes, decode);
    expectEveryCutRefused(bytes, decode);
    expectNoiseRefused(bytes, decode, 23);
  });

  it("stands hostile content whose digest is right", () => {
    expect(countRepairedRefused(sampleTail(TINY, 66), repairEnvelope, decode, 33)).toBeGreaterThan(500);
  });

  it("refuses an intact tail of a newer version, and one that was not asked for", () => {
    const bytes = sampleTail(TINY, 66, 128);
    const expected = {
      sha256: envelopeDigest(bytes),
      geometry: TINY,
      fromToken: 128,
      tokenCount: 66,
      chain: chainOf(194),
    };
    expect(codeOf(bytes, (it) => decodeTail(it, expected))).toBeUndefined();
    for (const change of [
      { sha256: chainOf(1) },
      { geometry: SMALL },
      { fromToken: 0 },
      { tokenCount: 65 },
      { chain: chainOf(1) },
    ]) {
      expect(codeOf(bytes, (it) => decodeTail(it, { ...expected, ...change }))).toBe("mismatch");
    }
    const newer = bytes.slice();
    newer[8] = 4;
    repairEnvelope(newer);
    expect(codeOf(newer, decode)).toBe("unsupported_version");
  });

  it("takes wrong input for a programmer's error", () => {
    const tail = decodeTail(sampleTail(SMALL, 70));
    expect(() => encodeTail({ ...tail, ids: new Uint32Array(0) })).toThrow(AssertionError);
    expect(() => encodeTail({ ...tail, fromToken: 64 })).toThrow(AssertionError);
    expect(() => encodeTail({ ...tail, generation: 0 })).toThrow(AssertionError);
    expect(() => encodeTail({ ...tail, open: tail.open.subarray(1) })).toThrow(AssertionError);
    expect(() => encodeTail({ ...tail, ids: tail.ids.subarray(1) })).toThrow(AssertionError);
    expect(() => tail.summary(0, "min-max")).toThrow(AssertionError);
    expect(() => tail.block(1, 0)).toThrow(AssertionError);
    expect(() => tail.block(0, 2)).toThrow(AssertionError);
  });
});
