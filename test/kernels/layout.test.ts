import { describe, expect, it } from "vitest";
import type { KvPoolSpec } from "../../kernels/contract.ts";
import {
  assertPoolSpec,
  blockLayout,
  openHeadAt,
  openSlotBytes,
  openSlotValuesAt,
  summaryBytes,
  summaryHeadAt,
  summaryHeadBytes,
  summaryKindIndex,
  summaryScalesAt,
} from "../../kernels/layout.ts";

const SPEC: KvPoolSpec = {
  ...{ layerCount: 4, kvHeadCount: 2, headDim: 32, encoding: "int8", summaryKinds: ["min-max", "mean-deviation"] },
  ...{ blockCount: 1, openSlotCount: 1, summarySlotCount: 1 },
};

describe("layout, worked out by hand for 4 layers, 2 KV heads of 32", () => {
  it("an f32 block is K then V", () => {
    expect(blockLayout({ ...SPEC, encoding: "f32" })).toEqual({
      ...{ keysAt: 0, keyScalesAt: -1, valuesAt: 16_384, valueScalesAt: -1, bytes: 32_768 },
    });
  });

  it("an int8 block is K codes, K scales per channel, V codes, V scales per token", () => {
    expect(blockLayout(SPEC)).toEqual({
      ...{ keysAt: 0, keyScalesAt: 4096, valuesAt: 4352, valueScalesAt: 8448, bytes: 8960 },
    });
  });

  it("an open slot is all layers' K, then V", () => {
    expect(openSlotBytes(SPEC)).toBe(131_072);
    expect(openSlotValuesAt(SPEC)).toBe(16_384);
    expect(openHeadAt(SPEC, 3, 1)).toBe(7 * 2048);
  });

  it("a summary slot is codes, then scales, KV head by KV head", () => {
    expect(summaryScalesAt(32)).toBe(256);
    expect(summaryHeadBytes(32)).toBe(288);
    expect(summaryBytes(SPEC)).toBe(4 * 2 * 288);
    expect(summaryHeadAt(SPEC, 0, 1)).toBe(288);
    expect(summaryHeadAt(SPEC, 2, 1)).toBe(5 * 288);
    expect(summaryKindIndex(SPEC, "mean-deviation")).toBe(1);
    expect(() => summaryKindIndex({ summaryKinds: ["min-max"] }, "mean-deviation")).toThrow("keeps no");
  });

  it("refuses impossible pools", () => {
    expect(() => assertPoolSpec(SPEC)).not.toThrow();
    for (const change of [
      { headDim: 30 },
      { headDim: 516 },
      { headDim: 0 },
      { kvHeadCount: 1.5 },
      { blockCount: -1 },
    ]) {
      expect(() => assertPoolSpec({ ...SPEC, ...change }), JSON.stringify(change)).toThrow();
    }
    expect(() => assertPoolSpec({ ...SPEC, encoding: "f16" as "f32" })).toThrow("encoding");
  });
});
