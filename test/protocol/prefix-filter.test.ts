import { describe, expect, it } from "vitest";
import { PrefixFilter, type PrefixKey, packPrefixKeys, prefixKeyOf } from "../../protocol/prefix-filter.ts";

/** Keys as digests are: without a pattern. */
function keysOf(seed: number, count: number): PrefixKey[] {
  let state = seed;
  const next = (): number => {
    state = (state + 0x9e37_79b9) | 0;
    let bits = Math.imul(state ^ (state >>> 16), 0x21f0_aaad);
    bits = Math.imul(bits ^ (bits >>> 15), 0x735a_2d97);
    return (bits ^ (bits >>> 15)) >>> 0;
  };
  return Array.from({ length: count }, () => ({ high: next(), low: next() }));
}

const bytesMax = 8 * 1024;

describe("PrefixFilter", () => {
  it.each([0, 1, 50, 1_000, 6_500])("has all of %i entries and at most two strangers in a hundred", (count) => {
    const keys = keysOf(1, count);
    const filter = PrefixFilter.decode(PrefixFilter.of(keys, bytesMax).encode(), bytesMax);
    expect(filter).toBeDefined();
    expect(keys.every(({ high, low }) => filter?.has(high, low))).toBe(true);
    const strangers = keysOf(1_000_003, 10_000).filter(({ high, low }) => filter?.has(high, low));
    expect(strangers.length).toBeLessThan(200);
  });

  it("is as small as its entries, and bounded however many there are", () => {
    expect(PrefixFilter.of(keysOf(1, 10), bytesMax).encode().length).toBe(24);
    const full = PrefixFilter.of(keysOf(1, 100_000), bytesMax);
    expect(full.encode().length).toBe(Math.ceil(bytesMax / 3) * 4);
  });

  it("counts how far a prompt goes that it holds a beginning of", () => {
    const prompt = keysOf(2, 40);
    const filter = PrefixFilter.of([...keysOf(3, 500), ...prompt.slice(0, 17)], bytesMax);
    expect(filter.prefixCount(packPrefixKeys(prompt))).toBe(17);
    expect(filter.prefixCount(packPrefixKeys(prompt.slice(0, 9)))).toBe(9);
    expect(filter.prefixCount(packPrefixKeys(prompt.slice(17)))).toBe(0);
    expect(filter.prefixCount(new Uint32Array(0))).toBe(0);
  });

  it("reads nothing but what it wrote", () => {
    const whole = PrefixFilter.of(keysOf(1, 5_000), bytesMax).encode();
    expect(PrefixFilter.decode(whole, bytesMax / 2)).toBeUndefined();
    for (const text of ["", "AAAA", "*".repeat(24), `${whole}AAAA`, "A".repeat(23), btoa("\0".repeat(48))]) {
      expect(PrefixFilter.decode(text, bytesMax), text.slice(0, 30)).toBeUndefined();
    }
  });

  it("keeps tenants apart", () => {
    const [key] = keysOf(5, 1) as [PrefixKey];
    const mine = prefixKeyOf("0123456789abcdef", key.high, key.low);
    const theirs = prefixKeyOf("0123456789abcde0", key.high, key.low);
    expect(theirs).not.toEqual(mine);
    expect(prefixKeyOf("0123456789abcdef", key.high, key.low)).toEqual(mine);
  });
});
