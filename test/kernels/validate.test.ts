import { describe, expect, it } from "vitest";
import type { KvPoolSpec, StepSlice } from "../../kernels/contract.ts";
import { assertSlices, assertSlicesFit, sealedByStep, touchedBlocks } from "../../kernels/validate.ts";

const SPEC: KvPoolSpec = {
  ...{ layerCount: 2, kvHeadCount: 1, headDim: 4, encoding: "f32", summaryKinds: ["min-max"] },
  ...{ blockCount: 20, openSlotCount: 20, summarySlotCount: 20 },
};

/** A decode at position 600 with a plan that scores pages 1 .. 34. */
function scoring(changes: Partial<StepSlice> = {}): StepSlice {
  return {
    ...{ position: 600, rowCount: 1, blockIds: new Int32Array(20).fill(3), blockCapacity: 10 },
    ...{ summarySlots: Int32Array.from({ length: 10 }, (_, block) => block), openSlots: Int32Array.of(0) },
    groupStarts: Int32Array.of(0),
    plan: {
      ...{ kind: "pages", budgetPages: 8, sinkPages: 1, recentPages: 2, scope: "layer", combine: "max" },
      scorer: { summary: "min-max", radiusWeight: 1 },
    },
    ...changes,
  };
}

describe("blocks of a slice", () => {
  it.each([
    [0, 1, { first: 0, end: 1 }, { first: 0, end: 0 }],
    [63, 1, { first: 0, end: 1 }, { first: 0, end: 1 }],
    [64, 64, { first: 1, end: 2 }, { first: 1, end: 2 }],
    [60, 5, { first: 0, end: 2 }, { first: 0, end: 1 }],
    [10, 200, { first: 0, end: 4 }, { first: 0, end: 3 }],
  ])("position %i, %i rows", (position, rowCount, touched, sealed) => {
    expect(touchedBlocks({ position, rowCount })).toEqual(touched);
    expect(sealedByStep({ position, rowCount })).toEqual(sealed);
  });
});

describe("slices against a pool", () => {
  it("need a summary for every block that will be scored, and for no other", () => {
    const without = (block: number) => scoring({ summarySlots: scoring().summarySlots.with(block, -1) });
    expect(() => assertSlicesFit(SPEC, [scoring()])).not.toThrow();
    expect(() => assertSlicesFit(SPEC, [without(0)])).toThrow("block 0 is to be scored");
    expect(() => assertSlicesFit(SPEC, [without(8)])).toThrow("block 8 is to be scored");
    expect(() => assertSlicesFit(SPEC, [without(9)])).not.toThrow();
    expect(() => assertSlicesFit(SPEC, [{ ...without(8), plan: { kind: "dense" } }])).not.toThrow();
  });

  it("need a summary kind that the pool keeps", () => {
    expect(() => assertSlicesFit({ ...SPEC, summaryKinds: ["mean-deviation"] }, [scoring()])).toThrow(
      "keeps no min-max",
    );
  });

  it("need block tables of the pool's layers", () => {
    expect(() => assertSlicesFit({ ...SPEC, layerCount: 4 }, [scoring()])).toThrow("[layerCount][blockCapacity]");
  });

  it("may leave an unsealed block without capacity", () => {
    const slice = scoring({
      ...{ position: 64, blockCapacity: 1, blockIds: Int32Array.of(1, 2), summarySlots: Int32Array.of(0) },
      plan: { kind: "dense" },
    });
    expect(() => assertSlices([slice])).not.toThrow();
    expect(() => assertSlicesFit(SPEC, [slice])).not.toThrow();
    expect(() => assertSlices([{ ...slice, rowCount: 64 }])).toThrow("blockCapacity");
  });

  it("must not share an open slot", () => {
    expect(() => assertSlices([scoring(), scoring()])).toThrow("slice 1: open slot 0 is used twice");
    expect(() => assertSlices([scoring(), scoring({ openSlots: Int32Array.of(1) })])).not.toThrow();
  });

  it("share choices within a page, by plans of pages, and are given them whole", () => {
    const run = (changes: Partial<StepSlice>) => scoring({ voters: "first", ...changes });
    const choice = new Uint8Array(2 * 9);
    expect(() => assertSlices([run({ choice }), scoring({ openSlots: Int32Array.of(1) })])).not.toThrow();
    expect(() => assertSlicesFit(SPEC, [run({ choice })])).not.toThrow();
    expect(() => assertSlicesFit(SPEC, [run({ choice: new Uint8Array(9) })])).toThrow(
      "a choice here has 18 bytes, not 9",
    );
    expect(() => assertSlices([scoring({ choice })])).toThrow('voters "first" only');
    expect(() => assertSlices([scoring({ reportChoice: true })])).toThrow('voters "first" only');
    expect(() => assertSlices([run({ rowCount: 9 })])).toThrow("a group lies in one page");
    expect(() => assertSlices([run({ rowCount: 9, groupStarts: Int32Array.of(0, 8) })])).not.toThrow();
    expect(() => assertSlices([run({ position: 592, choice })])).toThrow("of a page that was begun");
    expect(() => assertSlices([run({ plan: { kind: "dense" } })])).toThrow("a plan that chooses pages");
    const { plan } = scoring();
    if (plan.kind !== "pages") throw new Error("not a page plan");
    expect(() => assertSlices([scoring({ plan: { ...plan, rowsPerChoice: 6 } })])).toThrow("rowsPerChoice");
  });

  it("who follow a choice need no summaries", () => {
    const summarySlots = new Int32Array(10).fill(-1);
    const choice = new Uint8Array(2 * 9);
    expect(() => assertSlicesFit(SPEC, [scoring({ voters: "first", choice, summarySlots })])).not.toThrow();
    expect(() => assertSlicesFit(SPEC, [scoring({ voters: "first", summarySlots })])).toThrow("is to be scored");
  });

  it("may give heads shares of their own, where each chooses in every layer, and nothing else that is uneven", () => {
    const plan = scoring().plan;
    if (plan.kind !== "pages") throw new Error("not a page plan");
    const check = (change: object) => () =>
      assertSlices([scoring({ plan: { ...plan, scope: "kv-head", headShares: [0, 2], ...change } })]);
    expect(check({})).not.toThrow();
    expect(check({ scope: "layer" })).toThrow("need a choice per KV head in every layer");
    expect(check({ layersPerChoice: 2 })).toThrow("need a choice per KV head in every layer");
    expect(check({ layerShares: [1] })).toThrow("headShares stand alone");
    expect(check({ retrievalHeads: [true, true] })).toThrow("headShares stand alone");
    for (const headShares of [[], [-1], [Number.NaN]]) {
      expect(check({ headShares })).toThrow("headShares must be numbers >= 0");
    }
  });

  it("must have plans of whole pages", () => {
    const plan = scoring().plan;
    if (plan.kind !== "pages") throw new Error("not a page plan");
    for (const change of [{ budgetPages: -1 }, { sinkPages: 0.5 }, { recentPages: Number.NaN }]) {
      expect(() => assertSlices([scoring({ plan: { ...plan, ...change } })])).toThrow("integer >= 0");
    }
  });
});
