import { describe, expect, it } from "vitest";
import { decodeKeys, decodeValues, encodeBlockHead } from "../../kernels/block-codec.ts";
import { blockLayout, openSlotBytes, summaryBytes } from "../../kernels/layout.ts";
import { decodeSummary, summarizeKeys } from "../../kernels/summary-codec.ts";
import { packBlock, poolFormOf, unpackBlock } from "../../storage/block-encoding.ts";
import { type KvShape, kvGeometry } from "../../storage/geometry.ts";
import { encodeSegment } from "../../storage/segment.ts";
import * as independent from "./independent-decoder.mjs";
import { seededRandom } from "./random.ts";
import { chainOf } from "./samples.ts";

const SHAPES: KvShape[] = [
  { layerCount: 4, kvHeadCount: 2, headDim: 32, encoding: "int8", summaryKinds: ["min-max", "mean-deviation"] },
  { layerCount: 5, kvHeadCount: 4, headDim: 8, encoding: "f32", summaryKinds: ["mean-deviation"] },
  { layerCount: 1, kvHeadCount: 1, headDim: 4, encoding: "int8", summaryKinds: [] },
];

describe("stored bytes are pool bytes", () => {
  it("counts the same sizes as the devices' layout", () => {
    for (const shape of SHAPES) {
      const geometry = kvGeometry(shape);
      expect(geometry.blockBytes).toBe(blockLayout({ ...shape, ...poolFormOf(shape.encoding) }).bytes);
      expect(geometry.openTokenBytes * 64).toBe(openSlotBytes(shape));
      expect(geometry.summaryBytes).toBe(summaryBytes(shape));
    }
  });

  it("the document's reading of a summary slot gives the centres and radii that the devices decode", () => {
    const shape = { layerCount: 2, kvHeadCount: 2, headDim: 8, encoding: "int8" as const, summaryKinds: [] };
    const random = seededRandom(42);
    for (const kind of ["min-max", "mean-deviation"] as const) {
      const heads = Array.from({ length: 4 }, () =>
        summarizeKeys(
          kind,
          Float32Array.from({ length: 64 * 8 }, () => random() * 4 - 2),
          8,
        ),
      );
      const { centre, radius } = independent.decodeSummarySlot(shape, Buffer.concat(heads));
      for (const [head, bytes] of heads.entries()) {
        // [4 pages][centre, radius][8]
        const values = decodeSummary(bytes, 8);
        for (let page = 0; page < 4; page++) {
          const at = (head * 4 + page) * 8;
          expect([...centre.subarray(at, at + 8)]).toEqual([...values.subarray(page * 16, page * 16 + 8)]);
          expect([...radius.subarray(at, at + 8)]).toEqual([...values.subarray(page * 16 + 8, page * 16 + 16)]);
        }
      }
      expect(radius.every((value) => value > 0)).toBe(true);
    }
  });

  it("the document's reading of an int8 block gives the keys and values that the devices decode", () => {
    const shape = { layerCount: 1, kvHeadCount: 2, headDim: 8, encoding: "int8" as const, summaryKinds: [] };
    const geometry = kvGeometry({ ...shape, segmentTokens: 64 });
    const random = seededRandom(41);
    const block = new Uint8Array(geometry.blockBytes);
    for (let head = 0; head < 2; head++) {
      const values = () => Float32Array.from({ length: 64 * 8 }, () => random() * 4 - 2);
      encodeBlockHead(shape, block, head, values(), values());
    }
    const bytes = encodeSegment({ geometry, fromToken: 0, chain: chainOf(1), block: () => block });
    const stored = independent.decodeSegment(bytes).blocks[0]?.[0] ?? new Uint8Array(0);
    const { keys, values } = independent.decodeInt8Block(geometry, stored);
    for (let head = 0; head < 2; head++) {
      const part = (all: Float32Array) => [...all.subarray(head * 512, (head + 1) * 512)];
      expect(part(keys)).toEqual([...decodeKeys(shape, block, head)]);
      expect(part(values)).toEqual([...decodeValues(shape, block, head)]);
    }
    expect(keys.some((key) => key !== 0)).toBe(true);
  });

  it.each(["int4", "f16"] as const)(
    "a stored %s block holds the keys and values that the devices decode, and comes back as it was",
    (encoding) => {
      const shape = { layerCount: 1, kvHeadCount: 2, headDim: 12, encoding, summaryKinds: [] };
      const geometry = kvGeometry({ ...shape, segmentTokens: 64 });
      const devices = { kvHeadCount: 2, headDim: 12, ...poolFormOf(encoding) };
      const random = seededRandom(43);
      // Of many magnitudes; whole vectors of zeros and of one value; channels far off zero, and ones that reach 127 in one step more.
      const values = (offset: number) =>
        Float32Array.from({ length: 64 * 12 }, (_, at) => {
          const channel = at % 12;
          if (channel === 0) return 0;
          if (channel === 1) return 3;
          return offset * channel + (random() - 0.5) * 10 ** ((channel % 5) - 2 - (at % 24 === 7 ? 5 : 0));
        });
      for (let round = 0; round < 20; round++) {
        const block = new Uint8Array(blockLayout(devices).bytes);
        for (let head = 0; head < 2; head++) encodeBlockHead(devices, block, head, values(head), values(round % 3));
        const packed = packBlock(geometry, block);
        expect(packed.byteLength).toBe(encoding === "f16" ? 2 * 2 * 2 * 64 * 12 : 2 * (64 * 12 + 6 * (12 + 64)));
        expect(Buffer.compare(unpackBlock(geometry, packed), block)).toBe(0);
        const bytes = encodeSegment({ geometry, fromToken: 0, chain: chainOf(1), block: () => packed });
        const stored = independent.decodeSegment(bytes).blocks[0]?.[0] ?? new Uint8Array(0);
        const decode = encoding === "f16" ? independent.decodeF16Block : independent.decodeInt4Block;
        const decoded = decode(geometry, stored);
        for (let head = 0; head < 2; head++) {
          const part = (all: Float32Array) => [...all.subarray(head * 768, (head + 1) * 768)];
          expect(part(decoded.keys)).toEqual([...decodeKeys(devices, block, head)]);
          expect(part(decoded.values)).toEqual([...decodeValues(devices, block, head)]);
        }
      }
    },
  );

  it("a block that was not rounded is not packed: that would lose what it holds", () => {
    const random = seededRandom(44);
    const values = () => Float32Array.from({ length: 64 * 8 }, () => random() - 0.5);
    for (const encoding of ["int4", "f16"] as const) {
      const shape = { kvHeadCount: 1, headDim: 8, encoding: poolFormOf(encoding).encoding };
      const block = new Uint8Array(blockLayout(shape).bytes);
      encodeBlockHead(shape, block, 0, values(), values());
      expect(() => packBlock({ ...shape, encoding }, block)).toThrow(`not sealed for ${encoding}`);
    }
  });
});
