/** Conformance of plans under which layers or KV heads take unevenly. */
import { describe, expect, it } from "vitest";
import type { SelectionPlan } from "../../../kernels/contract.ts";
import { Twin } from "../support/check.ts";
import { expectSameBits } from "../support/compare.ts";
import type { Lane } from "../support/lane.ts";
import { SEED } from "../support/random.ts";
import { makeSequence, type Part, type StageShape } from "../support/stage.ts";

const QUEST = { summary: "min-max", radiusWeight: 1 } as const;
const DEVIATION = { summary: "mean-deviation", radiusWeight: 0.5 } as const;
const BY_BEST = { scorer: QUEST, scope: "kv-head", combine: "max" } as const;
const BY_VOTE = { scorer: DEVIATION, scope: "kv-head", combine: "softmax-sum" } as const;
const SMALL = { kind: "pages", budgetPages: 12, sinkPages: 1, recentPages: 2 } as const;
/** Both KV heads of a layer, the second only, none. */
const HEADS = [true, true, false, true, false, false];
const ALL = Number.POSITIVE_INFINITY;

const UNEVEN: { name: string; plan: SelectionPlan }[] = [
  { name: "half, double, none", plan: { ...SMALL, ...BY_BEST, layerShares: [0.5, 2, 0] } },
  { name: "little, then everything", plan: { ...SMALL, ...BY_VOTE, layerShares: [0.26, ALL] } },
  { name: "shares of a shared choice", plan: { ...SMALL, ...BY_BEST, layerShares: [1.5, 0.4], layersPerChoice: 2 } },
  { name: "shares of a layer's choice", plan: { ...SMALL, ...BY_VOTE, scope: "layer", layerShares: [1, 0.5, 3] } },
  { name: "some heads choose, the largest", plan: { ...SMALL, ...BY_BEST, retrievalHeads: HEADS } },
  {
    name: "shares where the first layer chooses for itself",
    plan: { ...SMALL, ...BY_BEST, layerShares: [1.5, 0.4], ownLayers: 1, layersPerChoice: 2 },
  },
  { name: "some heads choose, by vote", plan: { ...SMALL, ...BY_VOTE, retrievalHeads: HEADS, denseLayers: 1 } },
  {
    name: "some heads see everything",
    plan: { ...SMALL, scope: "kv-head", combine: "max", retrievalHeads: HEADS, layerShares: [ALL] },
  },
  {
    name: "some heads and shares and a share of the weight",
    plan: { ...SMALL, ...BY_VOTE, massShare: 0.5, retrievalHeads: HEADS, layerShares: [2, 1, 1] },
  },
  { name: "heads with shares of their own", plan: { ...SMALL, ...BY_VOTE, headShares: [0.5, 2, 0, 1.3, 0.2] } },
  {
    name: "one head sees sinks and recent pages, the others everything",
    plan: { ...SMALL, scope: "kv-head", combine: "max", headShares: [ALL, ALL, 0, ALL] },
  },
];

/** Every uneven plan on long contexts, in chunks, in runs, with gaps and in company. */
export function describeUneven(lane: Lane): void {
  const shape: StageShape = {
    ...{ layerCount: 3, headCount: 4, kvHeadCount: 2, headDim: 8, encoding: "int8" },
    summaryKinds: ["min-max", "mean-deviation"],
  };

  describe(`uneven plans (seed ${SEED})`, () => {
    it.each(UNEVEN)("$name: a chunk, and a step with gaps", async ({ plan }) => {
      const sequence = makeSequence(shape, 420, SEED);
      const twin = new Twin(lane, shape, { blockCapacity: 7 });
      await twin.fill(sequence, 380);
      await twin.run([{ sequence, position: 380, rowCount: 12, groupStarts: [0, 4], plan }]);
      const absent = [{ block: 2 }, { block: 4, layer: 1 }];
      const { readback } = await twin.run([{ sequence, position: 391, rowCount: 1, plan, absent }]);
      expect(readback.traffic[0]!.pagesSelected).toBeLessThan(readback.traffic[0]!.pagesInContext);
    });

    it.each(UNEVEN)("$name: within the budget dense to the bit", async ({ plan }) => {
      const sequence = makeSequence(shape, 200, SEED);
      const twin = new Twin(lane, shape, { blockCapacity: 4 });
      await twin.fill(sequence, 180);
      const part = { sequence, position: 180, rowCount: 5 };
      const dense = await twin.run([part]);
      const roomy = await twin.run([{ ...part, plan }]);
      for (const layer of [0, 1, 2]) expectSameBits(roomy.out[0]![layer]!, dense.out[0]![layer]!);
    });

    it.each(UNEVEN)("$name: rows one by one, by what the first chose, are the group at once", async ({ plan }) => {
      const sequence = makeSequence(shape, 420, SEED + 1);
      const twin = new Twin(lane, shape, { blockCapacity: 7 });
      await twin.fill(sequence, 401);
      const part = { sequence, plan, voters: "first" } as const;
      const whole = await twin.run([{ ...part, position: 401, rowCount: 3, reportChoice: true }]);
      const first = await twin.run([{ ...part, position: 401, rowCount: 1, reportChoice: true }]);
      expect(first.readback.choices).toEqual(whole.readback.choices);
      const rest = await twin.run([{ ...part, position: 402, rowCount: 2, choice: first.readback.choices![0]! }]);
      for (const layer of [0, 1, 2]) {
        const rows = [...first.out[0]![layer]!, ...rest.out[0]![layer]!];
        expectSameBits(Float32Array.from(rows), whole.out[0]![layer]!);
      }
    });

    it("all in one step, each with its own, some with gaps", async () => {
      const twin = new Twin(lane, shape, { blockCapacity: 6 * UNEVEN.length });
      const parts: Part[] = [];
      for (const [index, { plan }] of UNEVEN.entries()) {
        const sequence = makeSequence(shape, 330 + index * 5, SEED + index);
        const position = sequence.length - 1 - (index % 2);
        await twin.fill(sequence, position);
        const absent = index % 3 === 0 ? [{ block: index % 4 }] : [];
        parts.push({ sequence, position, rowCount: sequence.length - position, plan, absent });
      }
      await twin.run(parts);
    });

    it("a head that does not choose reads no summaries and takes no page", async () => {
      const sequence = makeSequence(shape, 420, SEED);
      const twin = new Twin(lane, shape, { blockCapacity: 7 });
      await twin.fill(sequence, 400);
      const part = { sequence, position: 400, rowCount: 1 };
      const all = (await twin.run([{ ...part, plan: { ...SMALL, ...BY_BEST } }])).readback.traffic[0]!;
      const some = (await twin.run([{ ...part, plan: UNEVEN[4]!.plan }])).readback.traffic[0]!;
      // 26 pages in context: 1 sink, 2 recent, 23 candidates, of which 9 are taken; 3 of the 6 heads choose.
      expect(all.pagesSelected).toBe(6 * 12);
      expect(some.pagesSelected).toBe(3 * 12 + 3 * 3);
      expect(some.metadataBytes).toBe(3 * 23 * 2 * (8 + 4));
      expect(all.metadataBytes).toBe(2 * some.metadataBytes);
      expect(some.kvBytes).toBeLessThan(all.kvBytes);
    });

    it("heads take what their shares say, the last share stands for the rest", async () => {
      const sequence = makeSequence(shape, 420, SEED);
      const twin = new Twin(lane, shape, { blockCapacity: 7 });
      await twin.fill(sequence, 400);
      const part = { sequence, position: 400, rowCount: 1 };
      const plan = { ...SMALL, ...BY_BEST, headShares: [0.5, 2, 0] };
      const { traffic } = (await twin.run([{ ...part, plan }])).readback;
      // 3 forced pages a head; 9 are left of the budget: 4, 18 and, four times, none of them.
      expect(traffic[0]!.pagesSelected).toBe(6 * 3 + 4 + 18);
      expect(traffic[0]!.metadataBytes).toBe(2 * 23 * 2 * (8 + 4));
    });
  });
}
