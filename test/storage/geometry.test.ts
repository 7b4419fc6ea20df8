import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { SUMMARY_KINDS } from "../../kernels/contract.ts";
import { AssertionError } from "../../protocol/assert.ts";
import {
  GEOMETRY_BYTES,
  isKvGeometry,
  kvGeometry,
  readGeometry,
  sameGeometry,
  writeGeometry,
} from "../../storage/geometry.ts";
import { SMALL, TINY } from "./samples.ts";

describe("geometry", () => {
  it("computes the sizes of the pool's layouts", () => {
    // 4 layers, 2 KV heads, dimension 32, int8, counted by hand.
    const shape = { layerCount: 4, kvHeadCount: 2, headDim: 32, summaryKinds: ["min-max", "mean-deviation"] as const };
    const int8 = kvGeometry({ ...shape, encoding: "int8" });
    expect(int8.blockBytes).toBe(2 * (2048 + 128 + 2048 + 256));
    expect(int8.openTokenBytes).toBe(2 * 4 * 2 * 32 * 4);
    expect(int8.summaryBytes).toBe(4 * 2 * (4 * 2 * 32 + 4 * 2 * 4));
    expect(int8.segmentTokens).toBe(256);
    expect(kvGeometry({ ...shape, encoding: "f32" }).blockBytes).toBe(2 * 2 * 64 * 32 * 4);
  });

  it("survives its 36 bytes, and differs wherever a field differs", () => {
    const bytes = new Uint8Array(GEOMETRY_BYTES + 2);
    for (const geometry of [SMALL, TINY, { ...SMALL, summaryKinds: [] }]) {
      writeGeometry(bytes, 1, geometry);
      expect(readGeometry(bytes, 1)).toEqual(geometry);
      expect(sameGeometry(readGeometry(bytes, 1), geometry)).toBe(true);
    }
    // A kind's number is in stored bytes: it never changes.
    const numbers = SUMMARY_KINDS.map((kind) => {
      const geometry = { ...SMALL, summaryKinds: [kind] };
      writeGeometry(bytes, 1, geometry);
      expect(readGeometry(bytes, 1)).toEqual(geometry);
      return [kind, bytes[1 + 16]];
    });
    expect(Object.fromEntries(numbers)).toEqual({
      ...{ "min-max": 1, "mean-deviation": 2, "centre-deviation": 3, representatives: 4, "sign-bits": 5 },
      "residual-signs": 6,
    });
    for (const field of Object.keys(SMALL) as (keyof typeof SMALL)[]) {
      const changed = { encoding: "f32", summaryKinds: ["min-max"] }[field as string] ?? Number(SMALL[field]) + 64;
      expect(sameGeometry(SMALL, { ...SMALL, [field]: changed } as typeof SMALL), field).toBe(false);
    }
  });

  it("accepts no impossible shape", () => {
    fc.assert(
      fc.property(fc.anything(), (value) => {
        expect(isKvGeometry(value)).toBe(false);
      }),
      { seed: 13, numRuns: 300 },
    );
    for (const change of [
      { layerCount: 0 },
      { headDim: 4.5 },
      { segmentTokens: 100 },
      { segmentTokens: 0 },
      { blockBytes: 2 ** 31 },
      { summaryBytes: 0 },
      { encoding: "int2" },
      { summaryKinds: ["min-max", "min-max"] },
      { summaryKinds: ["other"] },
    ]) {
      expect(isKvGeometry({ ...SMALL, ...change }), JSON.stringify(change)).toBe(false);
    }
    expect(() => kvGeometry({ ...SMALL, segmentTokens: 65 })).toThrow(AssertionError);
  });
});
