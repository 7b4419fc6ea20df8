import { describe, expect, it } from "vitest";
import { BlockHeat } from "../../../engine/sequence/block-heat.ts";
import { uniform } from "../tiny-model.ts";

/** Bitmap of `[layer][words]`. */
function bitmap(layers: readonly number[][], words: number): Uint32Array {
  const bits = new Uint32Array(layers.length * words);
  for (const [layer, blocks] of layers.entries()) {
    for (const block of blocks) bits[layer * words + (block >> 5)]! |= 1 << (block & 31);
  }
  return bits;
}

describe("block heat", () => {
  it("agrees with the sum of all choices, each halved per 32 slices since", () => {
    const next = uniform(5);
    const heat = new BlockHeat(2);
    const choices: number[][][] = [];
    for (let slice = 0; slice < 6000; slice++) {
      // More blocks as the context grows; each its own likelihood, which changes half way.
      const blockCount = 20 + Math.floor(slice / 50);
      const likely = (block: number) => ((block * 37 + (slice < 3000 ? 0 : 11)) % 100) / 300;
      const chosen = [0, 1].map(() =>
        Array.from({ length: blockCount }, (_, b) => b).filter((b) => next() < likely(b)),
      );
      choices.push(chosen);
      heat.observe(bitmap(chosen, Math.ceil(blockCount / 32)));
      heat.tick();
      if (slice % 997 !== 0 && slice !== 5999) continue;
      const expected = [0, 1].map((layer) => {
        const sums = new Map<number, number>();
        for (const [at, of] of choices.entries())
          for (const block of of[layer]!) sums.set(block, (sums.get(block) ?? 0) + 2 ** ((at - slice) / 32));
        return [...sums].filter(([block]) => block < 100).sort((a, b) => b[1] - a[1]);
      });
      for (const [layer, hottest] of heat.hottest(16, 100).entries()) {
        expect(hottest.length).toBe(Math.min(16, expected[layer]!.length));
        const sums = new Map(expected[layer]);
        // f32 counts: neighbours whose heat is the same to six digits may change places.
        const ranked = hottest.map((block) => sums.get(block)!);
        for (const [rank, sum] of ranked.entries()) expect(sum / expected[layer]![rank]![1]).toBeCloseTo(1, 4);
      }
    }
  });

  it("starts from an earlier turn's blocks, which a few choices outweigh", () => {
    const heat = new BlockHeat(1);
    expect(heat.hottest(4, 100)).toEqual([]);
    heat.seed([[7, 3, 50]]);
    expect(heat.hottest(4, 100)).toEqual([[7, 3, 50]]);
    expect(heat.hottest(2, 50)).toEqual([[7, 3]]);
    for (let slice = 0; slice < 2; slice++) {
      heat.observe(bitmap([[1, 50]], 2));
      heat.tick();
    }
    expect(heat.hottest(4, 100)).toEqual([[50, 1, 7, 3]]);
  });

  it("counts a void step's layers before its checkpoint once", () => {
    const heat = new BlockHeat(2);
    heat.observe(bitmap([[1], [2]], 1), { layerEnd: 1 });
    expect(heat.hottest(4, 10)).toEqual([[1], []]);
    heat.observe(bitmap([[], [3]], 1));
    expect(heat.hottest(4, 10)).toEqual([[1], [3]]);
  });

  it("writes nothing down where a prompt chose other blocks than its reply", () => {
    const reply = (heat: BlockHeat) => {
      for (let slice = 0; slice < 8; slice++) {
        heat.observe(bitmap([[1, 2, 3], [4]], 1));
        heat.tick();
      }
      return heat.hottest(3, 32);
    };
    const trusted = (...prompt: number[][]) => {
      const heat = new BlockHeat(2);
      heat.observe(bitmap(prompt, 1), { isPrompt: true });
      return reply(heat);
    };
    // Two of four, one of four, two of five, none of five.
    expect(trusted([1, 2], [])).toEqual([[1, 2, 3], [4]]);
    expect(trusted([], [4])).toEqual([]);
    expect(trusted([1], [9])).toEqual([
      [1, 2, 3],
      [4, 9],
    ]);
    expect(trusted([20], [])).toEqual([]);
    expect(reply(new BlockHeat(2)), "a prompt that was read densely chose nothing").toEqual([[1, 2, 3], [4]]);
  });
});
