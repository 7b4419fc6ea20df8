/** Conformance of selection: which pages and tokens each plan chooses, and attention over them. */
import { describe, expect, it } from "vitest";
import { type KvEncoding, NOT_RESIDENT, type SelectionPlan } from "../../../kernels/contract.ts";
import { Twin } from "../support/check.ts";
import { expectSameBits } from "../support/compare.ts";
import { upload } from "../support/floats.ts";
import type { Lane } from "../support/lane.ts";
import { Random, SEED } from "../support/random.ts";
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
  {
    name: "a share of the weight, by vote",
    plan: {
      ...{ kind: "pages", ...SMALL, massShare: 0.3 },
      ...{ scorer: DEVIATION, scope: "kv-head", combine: "softmax-sum" },
    },
  },
  {
    name: "a share of the weight, by the largest",
    plan: { ...{ kind: "pages", ...SMALL, massShare: 0.4 }, ...{ scorer: QUEST, scope: "layer", combine: "max" } },
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

    it.each([
      { denseLayers: 1, layersPerChoice: 2 },
      { layersPerChoice: 3 },
      { ownLayers: 1, layersPerChoice: 2 },
      { denseLayers: 1, ownLayers: 2, layersPerChoice: 2 },
    ])("layers by the rule %o, plans side by side, with gaps", async (rule) => {
      const deep = { ...shape, layerCount: 4 };
      const twin = new Twin(lane, deep, { blockCapacity: 3 * 5 });
      const parts: Part[] = [];
      for (const [index, name] of ["quest", "mean-deviation per layer", "tokens of few pages"].entries()) {
        const plan = PLANS.find((each) => each.name === name)?.plan as SelectionPlan;
        const sequence = makeSequence(deep, 290 + index, SEED + index);
        await twin.fill(sequence, 284);
        const absent = index === 2 ? [{ block: 0 }, { block: 2 }] : [];
        // One slice goes without the rule.
        const ruled = index === 1 ? plan : { ...plan, ...rule };
        parts.push({ sequence, position: 284, rowCount: 6, groupStarts: [0, 4], plan: ruled, absent });
      }
      await twin.run(parts);
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
      expect(sparse.metadataBytes).toBe(2 * 39 * 2 * (16 + 4));
    });

    it.each(PLANS)("$name reads one kind of summary, whatever the other holds", async ({ plan }) => {
      if (plan.kind === "dense" || plan.scorer === undefined) return;
      const kind = plan.scorer.summary === "min-max" ? "mean-deviation" : "min-max";
      const sequence = makeSequence(shape, LENGTH, SEED);
      const twin = new Twin(lane, shape, { blockCapacity: 11 });
      await twin.fill(sequence, LENGTH - 1);
      const part = { sequence, position: LENGTH - 1, rowCount: 1, plan };
      const before = await twin.run([part]);
      const random = new Random(SEED);
      const garbage = Array.from({ length: 11 }, () => random.bytes(twin.stage.pool.summaryBytes));
      twin.writeSummaries(sequence, kind, (block) => garbage[block]!);
      expectSameBits((await twin.run([part])).out[0]![0]!, before.out[0]![0]!);
    });

    it("reports chosen blocks for the slices that ask", async () => {
      const twin = new Twin(lane, shape, { blockCapacity: 50 });
      // 2,200 positions: 35 blocks, so that a layer's bitmap is two words.
      const long = makeSequence(shape, 2200, SEED);
      const short = makeSequence(shape, 700, SEED + 1);
      await twin.fill(long, 1000);
      await twin.fill(short, 690);
      const absent = [{ block: 3 }, { block: 5 }];
      const asking = { sequence: long, position: 1000, rowCount: 1, plan: PLANS[1]!.plan, absent };
      const silent = { sequence: short, position: 690, rowCount: 3, plan: PLANS[4]!.plan, reportBlocks: false };
      const { readback } = await twin.run([silent, asking]);
      expect(readback.chosenBlocks?.map((bitmap) => bitmap?.length)).toEqual([undefined, 2]);
      expect("chosenBlocks" in (await twin.run([silent])).readback).toBe(false);
    });
  });

  describeSelectionLimits(lane);
}

/** One slot of one kind: small codes, many of them equal, under scales that may be anything. */
function odd(random: Random, { layerCount, kvHeadCount, headDim }: StageShape): Uint8Array {
  const heads = Array.from({ length: layerCount * kvHeadCount }, () => {
    const codes = Int8Array.from({ length: 8 * headDim }, () => 64 + random.integer(2));
    const scales = Float32Array.from({ length: 8 }, () => [0, 1, 1, 1, 1, 1e-39, 1e38, Number.NaN][random.integer(8)]!);
    return [new Uint8Array(codes.buffer), new Uint8Array(scales.buffer)];
  });
  return Uint8Array.from(heads.flat().flatMap((bytes) => [...bytes]));
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
    const same = new Uint8Array(stage.pool.summaryBytes).fill(0x3c);
    for (const slot of summarySlots) for (const kind of shape.summaryKinds) stage.pool.writeSummary(slot, kind, same);
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

  it.each([1, 2, 3, 4, 5, 6])(
    "scores that differ by one unit, or are no numbers, rank as defined (case %i)",
    async (round) => {
      const random = new Random(SEED * 100 + round);
      const wide: StageShape = {
        ...shape,
        headDim: 4 * (1 + random.integer(9)),
        headCount: 2 * (1 + random.integer(5)),
      };
      const sequence = makeSequence(wide, 800, SEED);
      const twin = new Twin(lane, wide, { blockCapacity: 13 });
      await twin.fill(sequence, 795);
      for (const kind of wide.summaryKinds) {
        const slots = Array.from({ length: 13 }, () => odd(random, wide));
        twin.writeSummaries(sequence, kind, (block) => slots[block]!);
      }
      for (const { plan } of PLANS) {
        // Shares of a weight that is infinite, or is no number, mean nothing.
        if (plan.kind !== "pages" || plan.combine !== "max" || plan.massShare !== undefined) continue;
        await twin.run([{ sequence, position: 795, rowCount: 4, plan: { ...plan, budgetPages: 8 + round * 3 } }]);
      }
    },
  );

  it("the largest codes of 512 channels do not overflow", async () => {
    const device = lane.device();
    const pool = device.kvPool({
      ...{ layerCount: 1, kvHeadCount: 1, headDim: 512, encoding: "int8", summaryKinds: ["min-max"] },
      ...{ blockCount: 0, openSlotCount: 1, summarySlotCount: 7 },
    });
    for (let slot = 0; slot < 7; slot++) {
      const bytes = new Uint8Array(pool.summaryBytes);
      const codes = new Int8Array(bytes.buffer);
      const scales = new Float32Array(bytes.buffer, 8 * 512, 8);
      // Page 9 is as good as can be, page 14 as bad, the others in between.
      for (let page = 0; page < 4; page++) {
        const best = slot * 4 + page === 9 ? 127 : slot * 4 + page === 14 ? -128 : 3;
        codes.fill(best, page * 1024, page * 1024 + 512);
        codes.fill(Math.max(0, best), page * 1024 + 512, page * 1024 + 1024);
        scales.fill(1, page * 2, page * 2 + 2);
      }
      pool.writeSummary(slot, "min-max", bytes);
    }
    const ids = Int32Array.from({ length: 7 }, (_, block) => block);
    const absent = new Int32Array(7).fill(NOT_RESIDENT);
    const plan = {
      budgetPages: 4,
      sinkPages: 1,
      recentPages: 2,
      scorer: QUEST,
      scope: "kv-head",
      combine: "max",
    } as const;
    const recorder = device.begin([
      {
        ...{ position: 399, rowCount: 1, blockIds: absent, blockCapacity: 7, summarySlots: ids, reportBlocks: true },
        ...{ openSlots: Int32Array.of(0), groupStarts: Int32Array.of(0), plan: { kind: "pages", ...plan } },
      },
    ]);
    recorder.select({ pool, layer: 0, headCount: 1, q: upload(device, "q", new Float32Array(512).fill(1)) });
    const { chosenBlocks } = await recorder.submit();
    expect(chosenBlocks).toEqual([Uint32Array.of(1 << 2)]);
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
