/** Conformance of selection: which pages and tokens each plan chooses, and attention over them. */
import { describe, expect, it } from "vitest";
import type { KvEncoding, SelectionPlan } from "../../../kernels/contract.ts";
import { Twin } from "../support/check.ts";
import { expectSameBits } from "../support/compare.ts";
import type { Lane } from "../support/lane.ts";
import { SEED } from "../support/random.ts";
import { makeSequence, type Part, Stage, type StageShape } from "../support/stage.ts";

const QUEST = { summary: "min-max", radiusWeight: 1 } as const;
const DEVIATION = { summary: "mean-deviation", radiusWeight: 0.5 } as const;
const SMALL = { budgetPages: 12, sinkPages: 1, recentPages: 2 };

/** Plans of every kind, scope, rule and scorer, with budgets of at most 24 pages. */
export const PLANS: { name: string; plan: SelectionPlan }[] = [
  { name: "streaming", plan: { kind: "pages", ...SMALL, scope: "kv-head", combine: "max" } },
  { name: "quest", plan: { kind: "pages", ...SMALL, scorer: QUEST, scope: "kv-head", combine: "max" } },
  { name: "quest per layer", plan: { kind: "pages", ...SMALL, scorer: QUEST, scope: "layer", combine: "max" } },
  {
    name: "mean-deviation",
    plan: { kind: "pages", ...SMALL, scorer: DEVIATION, scope: "kv-head", combine: "softmax-sum" },
  },
  {
    name: "mean-deviation per layer",
    plan: { kind: "pages", ...SMALL, scorer: DEVIATION, scope: "layer", combine: "softmax-sum" },
  },
  {
    name: "no sinks, no recent pages",
    plan: {
      ...{ kind: "pages", budgetPages: 9, sinkPages: 0, recentPages: 0 },
      ...{ scorer: QUEST, scope: "kv-head", combine: "softmax-sum" },
    },
  },
  {
    name: "many sinks and recent pages",
    plan: {
      ...{ kind: "pages", budgetPages: 24, sinkPages: 5, recentPages: 11 },
      ...{ scorer: DEVIATION, scope: "layer", combine: "max" },
    },
  },
  {
    name: "forced pages over the budget",
    plan: {
      ...{ kind: "pages", budgetPages: 3, sinkPages: 2, recentPages: 4 },
      ...{ scorer: QUEST, scope: "kv-head", combine: "max" },
    },
  },
  { name: "tokens", plan: { kind: "tokens", ...SMALL, candidatePages: 20, scorer: QUEST } },
  { name: "tokens of few pages", plan: { kind: "tokens", ...SMALL, candidatePages: 3, scorer: DEVIATION } },
  { name: "tokens of all pages", plan: { kind: "tokens", ...SMALL, candidatePages: 999, scorer: QUEST } },
];

const ENCODINGS: readonly KvEncoding[] = ["f32", "int8"];
const LENGTH = 700;

/** Every plan on long contexts, in chunks, with gaps, at its limits and on ties. */
export function describeSelection(lane: Lane): void {
  describe.each(ENCODINGS)(`selection, %s KV (seed ${SEED})`, (encoding) => {
    const shape: StageShape = {
      ...{ layerCount: 1, headCount: 6, kvHeadCount: 2, headDim: 16, encoding },
      summaryKinds: ["min-max", "mean-deviation"],
    };

    describe.each(PLANS)("$name", ({ plan }) => {
      it("one query at the end of a long context, two layers", async () => {
        const deep = { ...shape, layerCount: 2 };
        const sequence = makeSequence(deep, LENGTH, SEED);
        const twin = new Twin(lane, deep, { blockCapacity: 11 });
        await twin.fill(sequence, LENGTH - 1);
        const { traffic } = (await twin.run([{ sequence, position: LENGTH - 1, rowCount: 1, plan }])).readback;
        expect(traffic[0]!.pagesInContext).toBe(44 * 2 * 2);
        expect(traffic[0]!.pagesSelected).toBeGreaterThan(0);
        expect(traffic[0]!.pagesSelected).toBeLessThan(traffic[0]!.pagesInContext);
      });

      it("a chunk in uneven groups across a block border", async () => {
        const sequence = makeSequence(shape, LENGTH, SEED + 1);
        const twin = new Twin(lane, shape, { blockCapacity: 11 });
        await twin.fill(sequence, 630);
        await twin.run([{ sequence, position: 630, rowCount: 40, groupStarts: [0, 5, 9, 26], plan }]);
      });

      it("goes on without blocks that are not there, and names them", async () => {
        const sequence = makeSequence(shape, LENGTH, SEED + 2);
        const twin = new Twin(lane, shape, { blockCapacity: 11 });
        await twin.fill(sequence, LENGTH - 2);
        const absent = [0, 2, 3, 4, 6, 8].map((block) => ({ block }));
        const part = { sequence, position: LENGTH - 2, rowCount: 2, plan };
        const whole = (await twin.run([part])).readback;
        expect(whole.misses).toEqual([]);
        const holed = (await twin.run([{ ...part, absent }])).readback;
        if (plan.kind !== "dense" && plan.sinkPages > 0) expect(holed.misses[0]?.block).toBe(0);
        for (const { block } of holed.misses) expect([0, 2, 3, 4, 6, 8]).toContain(block);
        expect(holed.traffic[0]!.kvBytes < whole.traffic[0]!.kvBytes).toBe(holed.misses.length > 0);
      });
    });

    it("every plan at once, each slice with its own, resident or not", async () => {
      const plans: SelectionPlan[] = [{ kind: "dense" }, ...PLANS.map(({ plan }) => plan)];
      const twin = new Twin(lane, shape, { blockCapacity: 8 * plans.length });
      const parts: Part[] = [];
      for (const [index, plan] of plans.entries()) {
        const sequence = makeSequence(shape, 400 + index * 9, SEED + index);
        const position = sequence.length - 1 - (index % 3);
        await twin.fill(sequence, position);
        const absent = index % 2 === 0 ? [] : [{ block: index % 5 }];
        parts.push({ sequence, position, rowCount: sequence.length - position, plan, absent });
      }
      await twin.run(parts);
    });

    it("reads less than dense, and says so", async () => {
      const sequence = makeSequence(shape, LENGTH, SEED);
      const twin = new Twin(lane, shape, { blockCapacity: 11 });
      await twin.fill(sequence, LENGTH - 1);
      const part = { sequence, position: LENGTH - 1, rowCount: 1 };
      const dense = (await twin.run([part])).readback.traffic[0]!;
      const sparse = (await twin.run([{ ...part, plan: PLANS[1]!.plan }])).readback.traffic[0]!;
      expect(dense.pagesInContext).toBe(0);
      expect(sparse.pagesSelected).toBe(12 * 2);
      expect(sparse.kvBytes).toBeLessThan(dense.kvBytes / 2);
      // 44 pages in context, 1 sink, 2 recent: but recent starts with the block of the query, at page 40.
      expect(sparse.metadataBytes).toBe(2 * 39 * 2 * 16 * 4);
    });
  });

  describeSelectionLimits(lane);
}

function describeSelectionLimits(lane: Lane): void {
  const shape: StageShape = {
    ...{ layerCount: 1, headCount: 4, kvHeadCount: 2, headDim: 8, encoding: "int8" },
    summaryKinds: ["min-max", "mean-deviation"],
  };

  it.each(PLANS)("$name within the budget is dense to the bit, whatever the groups", async ({ plan }) => {
    const sequence = makeSequence(shape, 500, SEED);
    const stage = new Stage(lane.device(), shape, { blockCapacity: 8 });
    await stage.fill(sequence, 450);
    const part = { sequence, position: 450, rowCount: 50 };
    const dense = await stage.run([part]);
    const roomy: SelectionPlan = plan.kind === "dense" ? plan : { ...plan, budgetPages: 32 };
    for (const groupStarts of [[0], [0, 1, 13, 14, 40]]) {
      const result = await stage.run([{ ...part, groupStarts, plan: roomy }]);
      expectSameBits(result.out[0]![0]!, dense.out[0]![0]!);
      expect(result.readback.traffic[0]).toMatchObject({ pagesSelected: 0, pagesInContext: 0, metadataBytes: 0 });
    }
  });

  it.each(PLANS)("$name whose forced pages or candidates cover everything is dense to the bit", async ({ plan }) => {
    if (plan.kind === "dense") throw new Error("not a selection");
    const sequence = makeSequence(shape, 640, SEED);
    const stage = new Stage(lane.device(), shape, { blockCapacity: 10 });
    await stage.fill(sequence, 600);
    const part = { sequence, position: 600, rowCount: 40 };
    const dense = await stage.run([part]);
    const forced = await stage.run([{ ...part, plan: { ...plan, budgetPages: 1, recentPages: 64 } }]);
    expectSameBits(forced.out[0]![0]!, dense.out[0]![0]!, "all forced");
    expect(forced.readback.traffic[0]).toMatchObject({ pagesSelected: 80, pagesInContext: 80, metadataBytes: 0 });
    if (plan.kind === "pages" && plan.scorer === undefined) return;
    // Rows 600..639 end at page 39, so a budget of 39 is short of identity and yet takes every candidate.
    const taken = await stage.run([{ ...part, plan: { ...plan, budgetPages: 39, sinkPages: 1, recentPages: 1 } }]);
    expectSameBits(taken.out[0]![0]!, dense.out[0]![0]!, "all taken");
    expect(taken.readback.traffic[0]).toMatchObject({ pagesSelected: 80, metadataBytes: 0 });
  });

  it("equal scores go to the lower page", async () => {
    const sequence = makeSequence(shape, 400, SEED);
    const stage = new Stage(lane.device(), shape, { blockCapacity: 7 });
    await stage.fill(sequence, 399);
    const { summarySlots } = stage.place(sequence);
    const same = new Uint8Array(new Float32Array(stage.pool.summarySlotBytes / 4).fill(0.25).buffer);
    for (const slot of summarySlots) stage.pool.writeSummary(slot, same);
    for (const { name, plan } of PLANS) {
      if (plan.kind !== "pages" || plan.scorer === undefined) continue;
      const tied: SelectionPlan = { ...plan, budgetPages: 10, sinkPages: 2, recentPages: 2 };
      const { views } = await stage.run([{ sequence, position: 399, rowCount: 1, plan: tied }]);
      for (const view of views[0]!) {
        // 399 is in page 24, the first of its block: forced are 0, 1, 23 and 24, and 6 of the budget of 10 are left.
        expect(view.pages, name).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 23, 24]);
      }
      if (lane.device().debugSelection !== undefined) expect(views[0]!.length).toBe(2);
    }
  });

  it("equal token scores go to the lower position", async () => {
    const plain = makeSequence(shape, 400, SEED);
    const layer = { ...plain.layers[0]!, k: new Float32Array(plain.layers[0]!.k.length) };
    const sequence = { ...plain, layers: [layer] };
    const stage = new Stage(lane.device(), shape, { blockCapacity: 7 });
    await stage.fill(sequence, 399);
    const plan: SelectionPlan = {
      ...{ kind: "tokens", budgetPages: 7, sinkPages: 2, recentPages: 2, candidatePages: 9 },
      scorer: QUEST,
    };
    const { views } = await stage.run([{ sequence, position: 399, rowCount: 1, plan }]);
    for (const view of views[0]!) {
      expect(view.pages).toEqual([0, 1, 2, 3, 4, 23, 24]);
      expect(view.tokenMasks).toEqual(Array.from({ length: 7 }, () => 0xffff));
    }
  });

  it("without summaries, plans that score nothing run", async () => {
    const bare = { ...shape, summaryKinds: [] };
    const sequence = makeSequence(bare, 400, SEED);
    const twin = new Twin(lane, bare, { blockCapacity: 7 });
    await twin.fill(sequence, 399);
    const streaming = PLANS[0]!.plan;
    await twin.run([{ sequence, position: 399, rowCount: 1, plan: streaming }]);
  });
}
