/** Conformance of append and dense attention. */
import { describe, expect, it } from "vitest";
import type { KvEncoding } from "../../../kernels/contract.ts";
import { Twin } from "../support/check.ts";
import type { Lane } from "../support/lane.ts";
import { SEED } from "../support/random.ts";
import { makeSequence, type Part, type StageShape } from "../support/stage.ts";

const KINDS = ["min-max", "mean-deviation"] as const;
const ENCODINGS: readonly KvEncoding[] = ["f32", "int8"];

/** Every head size and every group size occurs. */
const HEADS = [
  { headDim: 8, kvHeadCount: 2, headCount: 4 },
  { headDim: 8, kvHeadCount: 1, headCount: 8 },
  { headDim: 20, kvHeadCount: 1, headCount: 3 },
  { headDim: 32, kvHeadCount: 2, headCount: 2 },
  { headDim: 64, kvHeadCount: 1, headCount: 4 },
  { headDim: 80, kvHeadCount: 1, headCount: 2 },
  { headDim: 96, kvHeadCount: 1, headCount: 3 },
  { headDim: 128, kvHeadCount: 2, headCount: 6 },
];

/** Dense attention over every shape, border and gap. */
export function describeAttention(lane: Lane): void {
  describe.each(ENCODINGS)(`attention, %s KV (seed ${SEED})`, (encoding) => {
    it.each(HEADS)(
      "$headCount heads on $kvHeadCount of $headDim: a prefill and a decode, two layers",
      async (heads) => {
        const shape: StageShape = { layerCount: 2, ...heads, encoding, summaryKinds: KINDS };
        const twin = new Twin(lane, shape, { blockCapacity: 6 });
        const [young, old] = [makeSequence(shape, 70, SEED), makeSequence(shape, 140, SEED + 1)];
        await twin.fill(old, 139);
        await twin.run([
          { sequence: young, position: 0, rowCount: 70 },
          { sequence: old, position: 139, rowCount: 1 },
        ]);
      },
    );

    const small: StageShape = {
      layerCount: 1,
      headCount: 2,
      kvHeadCount: 1,
      headDim: 8,
      encoding,
      summaryKinds: KINDS,
    };

    it("one query beside every border of page, block and split, in one batch", async () => {
      const positions = [0, 1, 15, 16, 63, 64, 65, 127, 128, 511, 512, 513, 575, 576, 1023, 1024];
      const twin = new Twin(lane, small, { blockCapacity: 110 });
      const parts: Part[] = [];
      for (const position of positions) {
        const sequence = makeSequence(small, position + 1, SEED + position);
        await twin.fill(sequence, position);
        parts.push({ sequence, position, rowCount: 1 });
      }
      await twin.run(parts);
    });

    it("a chunk that crosses two blocks and a split, in several query groups", async () => {
      const sequence = makeSequence(small, 660, SEED);
      const twin = new Twin(lane, small, { blockCapacity: 11 });
      await twin.fill(sequence, 490);
      await twin.run([{ sequence, position: 490, rowCount: 160, groupStarts: [0, 1, 22, 100, 159] }]);
    });

    it("blocks that are not there are left out and named, per layer", async () => {
      const shape = { ...small, layerCount: 2 };
      const twin = new Twin(lane, shape, { blockCapacity: 20 });
      const holed = makeSequence(shape, 600, SEED);
      const [short, whole] = [makeSequence(shape, 200, SEED + 1), makeSequence(shape, 200, SEED + 2)];
      await twin.fill(holed, 560);
      await twin.fill(short, 199);
      await twin.fill(whole, 198);
      const absent = [{ block: 7 }, { block: 3, layer: 1 }, { block: 0, layer: 0 }];
      const result = await twin.run([
        { sequence: short, position: 199, rowCount: 1, absent: [{ block: 2, layer: 1 }] },
        { sequence: whole, position: 198, rowCount: 2 },
        { sequence: holed, position: 560, rowCount: 40, absent, groupStarts: [0, 20] },
      ]);
      expect(result.readback.misses).toEqual([
        { sliceIndex: 0, layer: 1, block: 2 },
        { sliceIndex: 2, layer: 0, block: 0 },
        { sliceIndex: 2, layer: 0, block: 7 },
        { sliceIndex: 2, layer: 1, block: 3 },
        { sliceIndex: 2, layer: 1, block: 7 },
      ]);
      for (const [index, missed] of result.missedAtOnce.entries()) expect([undefined, index !== 1]).toContain(missed);
    });

    it("a block that is not there is no miss for rows that cannot see it", async () => {
      const sequence = makeSequence(small, 128, SEED);
      const twin = new Twin(lane, small, { blockCapacity: 2 });
      await twin.fill(sequence, 64);
      const result = await twin.run([{ sequence, position: 10, rowCount: 20, absent: [{ block: 0 }, { block: 1 }] }]);
      expect(result.readback.misses).toEqual([]);
    });

    it("scores of a hundred and more neither overflow nor vanish", async () => {
      const sequence = makeSequence(small, 150, SEED);
      const layer = sequence.layers[0]!;
      sequence.layers[0] = { ...layer, q: layer.q.map((value) => value * 40) };
      const { attention, attentionInt8 } = lane.tolerances;
      const tolerances = { ...lane.tolerances, attention: attention * 100, attentionInt8: attentionInt8 * 100 };
      const strict = { ...lane, tolerances };
      const twin = new Twin(strict, small, { blockCapacity: 3 });
      await twin.fill(sequence, 100);
      await twin.run([{ sequence, position: 100, rowCount: 50 }]);
    });
  });
}
