import { describe, expect, it } from "vitest";
import {
  decodeKeys,
  decodeValues,
  encodeBlockHead,
  int8Code,
  int8Scale,
  roundHalfEven,
} from "../../kernels/block-codec.ts";
import { assertPoolSpec, blockLayout } from "../../kernels/layout.ts";
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

  it("rounding f16 gives the nearest binary16 values, finite ones at most 65504", () => {
    const shape = { kvHeadCount: 1, headDim: 4, encoding: "f32", rounding: "f16" } as const;
    const random = new Random(SEED);
    const keys = random.normals(256).map((value, at) => value * 10 ** ((at % 13) - 8));
    const values = random.normals(256).map((value) => value * 2 ** -15);
    // Halves between two neighbours go to the even one; then what is beyond the largest, and what is no number at all.
    keys.set([1 + 2 ** -11, 1 + 3 * 2 ** -11, 2 ** -25, 3 * 2 ** -25, -(2 ** -24), 65_519, 65_520, -1e30, 0]);
    keys.set([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY], 9);
    const block = new Uint8Array(blockLayout(shape).bytes);
    encodeBlockHead(shape, block, 0, keys, values);
    const { f16round } = Math as unknown as { f16round(value: number): number };
    const nearest = (value: number) =>
      Number.isFinite(value) ? Math.max(-65_504, Math.min(65_504, f16round(value))) : value;
    expect([...decodeKeys(shape, block, 0)]).toEqual([...keys].map(nearest));
    expect([...decodeValues(shape, block, 0)]).toEqual([...values].map(nearest));
  });

  it(`rounding int4 leaves 16 steps of each vector's own range, and nothing further off than half a step (seed ${SEED})`, () => {
    const shape = { kvHeadCount: 1, headDim: 8, encoding: "int8" } as const;
    const random = new Random(SEED);
    // Channel 3 lies far off zero, in a narrow range: there int4 loses nothing of int8.
    const keys = random.normals(512).map((value, at) => (at % 8 === 3 ? 100 + value : value * 2 ** (at % 8)));
    const values = random.normals(512);
    const [plain, rounded] = [undefined, "int4" as const].map((rounding) => {
      const block = new Uint8Array(blockLayout(shape).bytes);
      encodeBlockHead({ ...shape, ...(rounding ? { rounding } : {}) }, block, 0, keys, values);
      return block;
    }) as [Uint8Array, Uint8Array];
    const { keysAt, keyScalesAt, valuesAt, valueScalesAt } = blockLayout(shape);
    expect(rounded.subarray(keyScalesAt, valuesAt)).toEqual(plain.subarray(keyScalesAt, valuesAt));
    expect(rounded.subarray(valueScalesAt)).toEqual(plain.subarray(valueScalesAt));
    const vector = (block: Uint8Array, at: number, stride: number, count: number) =>
      Array.from({ length: count }, (_, index) => ((block[at + index * stride] as number) << 24) >> 24);
    for (let channel = 0; channel < 8; channel++) check(keysAt + channel, 8, 64);
    for (let token = 0; token < 64; token++) check(valuesAt + token * 8, 1, 8);

    function check(at: number, stride: number, count: number): void {
      const [before, after] = [vector(plain, at, stride, count), vector(rounded, at, stride, count)];
      const [least, largest] = [Math.min(...before), Math.max(...before)];
      const step = Math.max(1, Math.ceil((largest - least) / 15));
      if (at === keysAt + 3) expect(step).toBe(1);
      const grid = Array.from({ length: 16 }, (_, index) => Math.min(127, least + index * step));
      for (const [index, code] of after.entries()) {
        expect(grid).toContain(code);
        expect(Math.abs(code - (before[index] as number)) * 2).toBeLessThanOrEqual(step);
      }
      expect(Math.min(...after)).toBe(least);
    }
  });

  it("a pool is not rounded to what its encoding cannot be", () => {
    const spec = { layerCount: 1, kvHeadCount: 1, headDim: 4, summaryKinds: [], blockCount: 1, openSlotCount: 1 };
    const counts = { ...spec, summarySlotCount: 1 };
    expect(() => assertPoolSpec({ ...counts, encoding: "int8", rounding: "f16" })).toThrow(
      /int8 is not rounded to f16/,
    );
    expect(() => assertPoolSpec({ ...counts, encoding: "f32", rounding: "int4" })).toThrow(
      /f32 is not rounded to int4/,
    );
    expect(() => assertPoolSpec({ ...counts, encoding: "int8", rounding: "int4" })).not.toThrow();
  });
});
