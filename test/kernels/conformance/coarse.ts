/** Conformance of plans that score blocks first. */
import { describe, expect, it } from "vitest";
import type { PageScorer, SelectionPlan } from "../../../kernels/contract.ts";
import { Twin } from "../support/check.ts";
import { expectSameBits } from "../support/compare.ts";
import type { Lane } from "../support/lane.ts";
import { Random, SEED } from "../support/random.ts";
import { makeSequence, type Part, Stage, type StageShape } from "../support/stage.ts";

type PagePlan = Extract<SelectionPlan, { kind: "pages" }>;

const QUEST: PageScorer = { summary: "min-max", radiusWeight: 1 };
const DEVIATION: PageScorer = { summary: "mean-deviation", radiusWeight: 0.5 };
/** 8 pages, of which 5 are chosen when 2 are recent; with a factor of 2 four blocks stay. */
const SMALL = { kind: "pages", budgetPages: 8, sinkPages: 1, recentPages: 2, scope: "kv-head" } as const;
const BY_BEST: PagePlan = { ...SMALL, scorer: QUEST, combine: "max", coarseFactor: 2 };
const BY_VOTE: PagePlan = { ...SMALL, scorer: DEVIATION, combine: "softmax-sum", coarseFactor: 2 };

const COARSE: { name: string; plan: PagePlan }[] = [
  { name: "the largest", plan: BY_BEST },
  { name: "by vote", plan: BY_VOTE },
  { name: "by vote of the layer", plan: { ...BY_VOTE, scope: "layer", coarseFactor: 3 } },
  { name: "whole blocks of sinks", plan: { ...BY_BEST, budgetPages: 10, sinkPages: 4, recentPages: 5 } },
  { name: "sinks in two blocks", plan: { ...BY_VOTE, budgetPages: 10, sinkPages: 6, recentPages: 2 } },
  { name: "a third kind", plan: { ...BY_BEST, scorer: { summary: "centre-deviation", radiusWeight: 1 } } },
  { name: "a share of the weight", plan: { ...BY_VOTE, massShare: 0.5 } },
  { name: "a share of the weight, the largest", plan: { ...BY_BEST, massShare: 0.7, budgetPages: 10 } },
  { name: "shared by two layers", plan: { ...BY_VOTE, layersPerChoice: 2 } },
  { name: "a dense layer first, then a little", plan: { ...BY_BEST, denseLayers: 1, layerShares: [1, 1, 0.4] } },
  { name: "some heads choose", plan: { ...BY_VOTE, retrievalHeads: [true, false, false, true, true, true] } },
  { name: "more than the budget", plan: { ...BY_BEST, layerShares: [2.2] } },
];

/** Every coarse plan on long contexts, in chunks, in runs, with gaps and in company. */
export function describeCoarse(lane: Lane): void {
  const shape: StageShape = {
    ...{ layerCount: 3, headCount: 4, kvHeadCount: 2, headDim: 8, encoding: "int8" },
    summaryKinds: ["min-max", "mean-deviation", "centre-deviation"],
  };

  describe(`coarse plans (seed ${SEED})`, () => {
    it.each(COARSE)("$name: a chunk, and a step with gaps", async ({ plan }) => {
      const sequence = makeSequence(shape, 560, SEED);
      const twin = new Twin(lane, shape, { blockCapacity: 9 });
      await twin.fill(sequence, 530);
      await twin.run([{ sequence, position: 530, rowCount: 12, groupStarts: [0, 4], plan }]);
      const absent = [{ block: 2 }, { block: 4, layer: 1 }, { block: 6 }];
      const { readback } = await twin.run([{ sequence, position: 541, rowCount: 1, plan, absent }]);
      expect(readback.traffic[0]!.pagesPassedOver).toBeGreaterThan(0);
    });

    it.each(COARSE)("$name: up to so many blocks as stay it is the single pass to the bit", async ({ plan }) => {
      const { coarseFactor: factor = 0, ...single } = plan;
      const most = Math.max(plan.budgetPages, ...(plan.layerShares ?? []).map((share) => share * plan.budgetPages));
      const length = factor * plan.budgetPages * 16;
      const sequence = makeSequence(shape, length, SEED);
      const stage = new Stage(lane.device(), shape, { blockCapacity: Math.ceil(length / 64) });
      await stage.fill(sequence, length - 20);
      expect(most * factor).toBeGreaterThanOrEqual(length / 16);
      const part = { sequence, position: length - 20, rowCount: 20, groupStarts: [0, 3, 9] };
      const [coarse, fine] = [await stage.run([{ ...part, plan }]), await stage.run([{ ...part, plan: single }])];
      expect(coarse.readback.traffic).toEqual(fine.readback.traffic);
      for (const layer of [0, 1, 2]) expectSameBits(coarse.out[0]![layer]!, fine.out[0]![layer]!);
    });

    it.each(COARSE)("$name: rows one by one, by what the first chose, are the group at once", async ({ plan }) => {
      const sequence = makeSequence(shape, 560, SEED + 1);
      const twin = new Twin(lane, shape, { blockCapacity: 9 });
      await twin.fill(sequence, 545);
      const part = { sequence, plan, voters: "first" } as const;
      const whole = await twin.run([{ ...part, position: 545, rowCount: 3, reportChoice: true }]);
      const first = await twin.run([{ ...part, position: 545, rowCount: 1, reportChoice: true }]);
      expect(first.readback.choices).toEqual(whole.readback.choices);
      const rest = await twin.run([{ ...part, position: 546, rowCount: 2, choice: first.readback.choices![0]! }]);
      for (const layer of [0, 1, 2]) {
        const rows = [...first.out[0]![layer]!, ...rest.out[0]![layer]!];
        expectSameBits(Float32Array.from(rows), whole.out[0]![layer]!);
      }
    });

    it("all in one step with those that score at once, each with its own, some with gaps", async () => {
      const plans = COARSE.flatMap(({ plan: { coarseFactor = 2, ...plan } }, index) =>
        index % 3 === 1 ? [plan] : [{ ...plan, coarseFactor }],
      );
      const twin = new Twin(lane, shape, { blockCapacity: 9 * plans.length });
      const parts: Part[] = [];
      for (const [index, plan] of plans.entries()) {
        const sequence = makeSequence(shape, 400 + index * 9, SEED + index);
        const position = sequence.length - 1 - (index % 2);
        await twin.fill(sequence, position);
        const absent = index % 3 === 0 ? [{ block: index % 4 }] : [];
        parts.push({ sequence, position, rowCount: sequence.length - position, plan, absent });
      }
      await twin.run(parts);
    });

    it.each([4, 12, 36, 64])("headDim %i, with three query heads to a KV head", async (headDim) => {
      const wide: StageShape = { ...shape, layerCount: 1, headCount: 6, headDim };
      const sequence = makeSequence(wide, 560, SEED);
      const twin = new Twin(lane, wide, { blockCapacity: 9 });
      await twin.fill(sequence, 550);
      await twin.run([{ sequence, position: 550, rowCount: 1, plan: BY_BEST }]);
      await twin.run([{ sequence, position: 550, rowCount: 1, plan: { ...BY_VOTE, scope: "layer" } }]);
    });

    it("centres follow summaries that are written, those of broken pages are never among the best", async () => {
      const own: StageShape = { ...shape, layerCount: 2, summaryKinds: ["mean-deviation", "min-max"] };
      const sequence = makeSequence(own, 560, SEED + 2);
      const twin = new Twin(lane, own, { blockCapacity: 9 });
      await twin.fill(sequence, 550);
      const step = { sequence, position: 550, rowCount: 1, plan: BY_BEST };
      const before = await twin.run([step]);
      const random = new Random(SEED);
      const slots = Array.from({ length: 9 }, (_, block) => {
        const heads = Array.from({ length: 4 }, (_, head) => {
          const codes = random.bytes(8 * 8);
          const scales = Float32Array.from({ length: 8 }, () => random.next());
          if ((block + head) % 3 === 0) scales[2 * ((block >> 1) % 4)] = Number.NaN;
          return [...codes, ...new Uint8Array(scales.buffer)];
        });
        return Uint8Array.from(heads.flat());
      });
      twin.writeSummaries(sequence, "min-max", (block) => slots[block]!);
      const after = await twin.run([step]);
      expect(after.readback.chosenBlocks).not.toEqual(before.readback.chosenBlocks);
    });

    it("reads an eighth of the summaries, and those of the blocks that stay", async () => {
      const sequence = makeSequence(shape, 1010, SEED);
      const twin = new Twin(lane, shape, { blockCapacity: 16 });
      await twin.fill(sequence, 1000);
      const part = { sequence, position: 1000, rowCount: 1 };
      const { coarseFactor: _, ...single } = BY_BEST;
      const traffic = async (plan: SelectionPlan) => (await twin.run([{ ...part, plan }])).readback.traffic[0]!;
      const [all, some] = [await traffic(single), await traffic(BY_BEST)];
      // Page 62 is that of the row: recent from 60 on, candidates 1 to 59, whole blocks 1 to 14; pages 1 to 3 and those of four blocks are scored.
      expect(all.metadataBytes).toBe(6 * 59 * 24);
      expect(some.metadataBytes).toBe(6 * (14 * 12 + 19 * 24));
      expect(some.pagesPassedOver).toBe(6 * 40);
      expect(some.pagesSelected).toBe(all.pagesSelected);
    });
  });
}
