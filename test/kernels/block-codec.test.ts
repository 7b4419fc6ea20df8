import { describe, expect, it } from "vitest";
import {
  decodeKeys,
  decodeValues,
  encodeBlockHead,
  int8Code,
  int8Scale,
  roundHalfEven,
} from "../../kernels/block-codec.ts";
import { blockLayout } from "../../kernels/layout.ts";
import { plainBlock } from "./support/oracle.ts";
import { Random, SEED } from "./support/random.ts";

const SHAPE = { kvHeadCount: 2, headDim: 4, encoding: "int8" } as const;

describe("int8 codes", () => {
  it("round halves to even", () => {
    expect([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 2.4999, -126.6].map(roundHalfEven)).toEqual([0, 2, 2, 0, -2, -2, 2, -127]);
  });

  it("scale by the largest magnitude over 127, and give 0 where all is 0", () => {
    expect(int8Scale(127)).toBe(1);
    expect(int8Code(-127, 1)).toBe(-127);
    expect(int8Code(3, 0)).toBe(0);
    expect(int8Scale(1)).toBe(Math.fround(1 / 127));
    expect(int8Code(1, int8Scale(1))).toBe(127);
  });
});

describe("block codec", () => {
  it("keys by channel and values by token, by hand", () => {
    const keys = new Float32Array(64 * 4);
    const values = new Float32Array(64 * 4);
    keys.set([127, 1, -4, 0], 5 * 4);
    keys.set([2.5, -0.5, 4, 0], 6 * 4);
    values.set([254, -1, 3, 0], 7 * 4);
    const block = new Uint8Array(blockLayout(SHAPE).bytes);
    encodeBlockHead(SHAPE, block, 1, keys, values);
    const layout = blockLayout(SHAPE);
    const codes = new Int8Array(block.buffer);
    const keysAt = layout.keysAt + 64 * 4;
    expect([...codes.subarray(keysAt + 20, keysAt + 28)]).toEqual([127, 127, -127, 0, 2, -64, 127, 0]);
    const scales = new Float32Array(block.buffer, layout.keyScalesAt + 4 * 4, 4);
    expect([...scales]).toEqual([1, Math.fround(1 / 127), Math.fround(4 / 127), 0]);
    const valuesAt = layout.valuesAt + 64 * 4;
    // -1/2 and 3/2 are halves: to even.
    expect([...codes.subarray(valuesAt + 28, valuesAt + 32)]).toEqual([127, 0, 2, 0]);
    expect(new Float32Array(block.buffer, layout.valueScalesAt + 64 * 4, 64)[7]).toBe(2);
    expect([...decodeKeys(SHAPE, block, 1).subarray(20, 24)]).toEqual([127, 1, -4, 0].map(Math.fround));
    expect([...decodeValues(SHAPE, block, 1).subarray(28, 32)]).toEqual([254, 0, 4, 0]);
    expect(block.subarray(0, 64 * 4).every((byte) => byte === 0)).toBe(true);
  });

  it.each(["f32", "int8"] as const)(`decodes as a naive reader does, %s (seed ${SEED})`, (encoding) => {
    const shape = { kvHeadCount: 3, headDim: 8, encoding };
    const random = new Random(SEED);
    const block = new Uint8Array(blockLayout(shape).bytes);
    const heads = [0, 1, 2].map(() => ({ keys: random.normals(64 * 8), values: random.normals(64 * 8) }));
    heads.forEach(({ keys, values }, head) => {
      encodeBlockHead(shape, block, head, keys, values);
    });
    const plain = plainBlock({ layerCount: 1, headCount: 3, summaryKinds: [], ...shape }, block);
    heads.forEach(({ keys, values }, head) => {
      const decoded = { keys: decodeKeys(shape, block, head), values: decodeValues(shape, block, head) };
      expect([...decoded.keys]).toEqual(plain.keys[head]!.flat().map(Math.fround));
      expect([...decoded.values]).toEqual(plain.values[head]!.flat().map(Math.fround));
      const step = encoding === "f32" ? 0 : 4 / 127;
      keys.forEach((key, at) => {
        expect(Math.abs(decoded.keys[at]! - key)).toBeLessThanOrEqual(step);
        expect(Math.abs(decoded.values[at]! - values[at]!)).toBeLessThanOrEqual(step);
      });
    });
  });
});
