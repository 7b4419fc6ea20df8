import { describe, expect, it } from "vitest";
import { groupKvBytes, keyReadBytes, MissSet, summaryReadBytes } from "../../kernels/traffic.ts";
import { kvBytesPlainly } from "./support/oracle.ts";
import { Random, SEED } from "./support/random.ts";

describe("traffic", () => {
  it("by hand: a decode at position 130 over two sealed blocks", () => {
    const group = { positionFirst: 130, positionLast: 130 };
    const all = () => true;
    expect(groupKvBytes({ headDim: 8, encoding: "f32" }, group, {}, all)).toBe(131 * 64);
    expect(groupKvBytes({ headDim: 8, encoding: "int8" }, group, {}, all)).toBe(128 * 20 + 2 * 32 + 3 * 64);
    expect(groupKvBytes({ headDim: 8, encoding: "f32" }, group, {}, (block) => block === 1)).toBe(67 * 64);
    const chosen = { pages: [0, 3, 8], tokenMasks: [0xffff, 0b1010, 0xffff] };
    expect(groupKvBytes({ headDim: 8, encoding: "int8" }, group, chosen, all)).toBe(18 * 20 + 32 + 3 * 64);
  });

  it(`equals a naive count on random groups (seed ${SEED})`, () => {
    const random = new Random(SEED);
    for (let round = 0; round < 150; round++) {
      const p0 = random.integer(300);
      const p1 = p0 + random.integer(80);
      const shape = { headDim: 4, encoding: random.next() < 0.5 ? ("f32" as const) : ("int8" as const) };
      const ownPage = Math.floor((Math.floor(p0 / 64) * 64) / 16);
      const pages = Array.from({ length: Math.floor(p1 / 16) + 1 }, (_, page) => page).filter(
        (page) => page >= ownPage || random.next() < 0.4,
      );
      const masks = pages.map((page) => (page >= ownPage ? 0xffff : 1 + random.integer(0xffff)));
      const away = random.integer(5);
      const isResident = (block: number): boolean => block !== away || block >= Math.floor(p0 / 64);
      const sees = (token: number): boolean => {
        const index = pages.indexOf(Math.floor(token / 16));
        return index >= 0 && ((masks[index]! >> (token % 16)) & 1) === 1;
      };
      const group = { positionFirst: p0, positionLast: p1 };
      const actual = groupKvBytes(shape, group, { pages, tokenMasks: masks }, isResident);
      expect(actual, JSON.stringify({ p0, p1, pages, masks, away })).toBe(
        kvBytesPlainly(shape, { p0, p1 }, sees, isResident),
      );
    }
  });

  it("prices summaries and scored keys", () => {
    expect(summaryReadBytes(32, 10)).toBe(10 * 72);
    expect(keyReadBytes({ headDim: 32, encoding: "f32" }, [0, 1, 9])).toBe(3 * 16 * 128);
    expect(keyReadBytes({ headDim: 32, encoding: "int8" }, [0, 1, 9])).toBe(3 * 16 * 32 + 2 * 128);
  });

  it("lists each miss once, in order", () => {
    const misses = new MissSet();
    const wanted = [
      { sliceIndex: 1, layer: 0, block: 11 },
      { sliceIndex: 0, layer: 2, block: 3 },
      { sliceIndex: 1, layer: 0, block: 2 },
      { sliceIndex: 0, layer: 1, block: 9 },
      { sliceIndex: 1, layer: 0, block: 11 },
    ];
    for (const miss of wanted) misses.add(miss);
    expect(misses.list()).toEqual([wanted[3], wanted[1], wanted[2], wanted[0]]);
    expect([0, 1, 2].map((slice) => misses.hasSlice(slice))).toEqual([true, true, false]);
  });
});
