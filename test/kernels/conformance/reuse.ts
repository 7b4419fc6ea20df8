/** Conformance of choices that go from step to step: a group computed row by row has the bits of one computed at once. */
import { describe, expect, it } from "vitest";
import type { SelectionPlan } from "../../../kernels/contract.ts";
import { Twin } from "../support/check.ts";
import { expectSameBits } from "../support/compare.ts";
import type { Lane } from "../support/lane.ts";
import { Random, SEED } from "../support/random.ts";
import { makeSequence, type Part, type Sequence, type StageShape } from "../support/stage.ts";
import { PLANS } from "./selection.ts";

type PagesPlan = Extract<SelectionPlan, { kind: "pages" }>;

const PAGE_PLANS = PLANS.flatMap(({ name, plan }) => (plan.kind === "pages" ? [{ name, plan }] : []));
const LENGTH = 460;

/** Every page plan, in runs that are cut anywhere, with gaps, shared layers and company. */
export function describeReuse(lane: Lane): void {
  const shape: StageShape = {
    ...{ layerCount: 2, headCount: 4, kvHeadCount: 2, headDim: 8, encoding: "f32" },
    summaryKinds: ["min-max", "mean-deviation"],
  };
  describe(`choices from step to step (seed ${SEED})`, () => {
    it.each(PAGE_PLANS)("$name: rows one by one, by what the first chose, are the group at once", async ({ plan }) => {
      const sequence = makeSequence(shape, LENGTH, SEED);
      const twin = new Twin(lane, shape, { blockCapacity: 8 });
      await twin.fill(sequence, 449);
      const part = { sequence, plan, voters: "first" } as const;
      const whole = await twin.run([{ ...part, position: 449, rowCount: 5, reportChoice: true }]);
      const first = await twin.run([{ ...part, position: 449, rowCount: 1, reportChoice: true }]);
      expect(first.readback.choices).toEqual(whole.readback.choices);
      const choice = first.readback.choices![0];
      const second = await twin.run([{ ...part, position: 450, rowCount: 1, choice }]);
      const rest = await twin.run([{ ...part, position: 451, rowCount: 3, choice }]);
      expect(rest.readback.choices).toBeUndefined();
      for (const layer of [0, 1]) {
        const rows = [first, second, rest].flatMap(({ out }) => [...out[0]![layer]!]);
        expectSameBits(Float32Array.from(rows), whole.out[0]![layer]!);
      }
      expect(second.readback.traffic[0]!.metadataBytes, "nothing is scored").toBe(0);
      expect(second.readback.traffic[0]!.pagesSelected).toBe(first.readback.traffic[0]!.pagesSelected);
    });
  });
  // What a choice is does not depend on the encoding; how rows attend to it does.
  describeCuts(lane, { ...shape, encoding: "int8" });
}

function describeCuts(lane: Lane, shape: StageShape): void {
  describe(`runs that are cut (seed ${SEED})`, () => {
    it("runs of several groups, cut in the middle of one, give what their next row needs", async () => {
      const random = new Random(SEED);
      const { plan } = PAGE_PLANS.find(({ name }) => name === "quest")!;
      const sequence = makeSequence(shape, LENGTH, SEED + 1);
      const twin = new Twin(lane, shape, { blockCapacity: 8 });
      await twin.fill(sequence, 400);
      const end = 423;
      const whole = await twin.run([runs({ sequence, plan, run: 4, from: 400, to: end })]);
      const pieces: number[][] = [[], []];
      let choice: Uint8Array | undefined;
      for (let from = 400; from < end; ) {
        const to = Math.min(end, from + 1 + random.integer(9));
        const part = runs({ sequence, plan, run: 4, from, to, choice: from % 4 === 0 ? undefined : choice });
        const result = await twin.run([part]);
        pieces.forEach((rows, layer) => void rows.push(...result.out[0]![layer]!));
        choice = result.readback.choices![0];
        from = to;
      }
      for (const layer of [0, 1]) expectSameBits(Float32Array.from(pieces[layer]!), whole.out[0]![layer]!);
    });

    it.each([{ denseLayers: 1 }, { denseLayers: 1, layersPerChoice: 2 }, { layersPerChoice: 3 }])(
      "layers by the rule %o, beside other slices, with gaps",
      async (rule) => {
        const deep = { ...shape, layerCount: 4 };
        const twin = new Twin(lane, deep, { blockCapacity: 3 * 6 });
        const parts: Part[] = [];
        for (const [index, name] of ["quest", "mean-deviation per layer", "tokens"].entries()) {
          const plan = PLANS.find((each) => each.name === name)!.plan;
          const sequence = makeSequence(deep, 340 + index, SEED + index);
          await twin.fill(sequence, 324);
          const absent = index === 1 ? [{ block: 0 }, { block: 2, layer: 3 }] : [];
          parts.push({ sequence, position: 324, rowCount: 2, plan: { ...plan, ...rule }, absent });
        }
        const asking = parts.map((part, index): Part => {
          return index === 2 ? part : { ...part, voters: "first", reportChoice: true };
        });
        const { choices } = (await twin.run(asking)).readback;
        expect(choices!.map((choice) => choice?.length)).toEqual([4 * 2 * 5, 4 * 5, undefined]);
        const following = asking.map((part, index): Part => {
          const next = { ...part, position: 326, rowCount: 5 };
          return index === 2 ? next : { ...next, groupStarts: [0, 2], choice: choices![index] };
        });
        await twin.run(following);
      },
    );

    it("within the budget there is nothing to hand on", async () => {
      const { plan } = PAGE_PLANS.find(({ name }) => name === "quest")!;
      const sequence = makeSequence(shape, 190, SEED);
      const twin = new Twin(lane, shape, { blockCapacity: 3 });
      await twin.fill(sequence, 180);
      const part = { sequence, plan, voters: "first" } as const;
      const first = await twin.run([{ ...part, position: 180, rowCount: 1, reportChoice: true }]);
      expect(first.views[0]?.every(({ pages }) => pages === undefined)).toBe(true);
      const choice = first.readback.choices![0];
      const dense = await twin.run([{ sequence, position: 181, rowCount: 1 }]);
      const next = await twin.run([{ ...part, position: 181, rowCount: 1, choice }]);
      expectSameBits(next.out[0]![1]!, dense.out[0]![1]!);
    });
  });
}

/** Rows `[from, to)` in groups that begin at multiples of `run`, all of whose first rows choose alone. */
function runs(options: {
  sequence: Sequence;
  plan: PagesPlan;
  run: number;
  from: number;
  to: number;
  choice?: Uint8Array | undefined;
}): Part {
  const { sequence, plan, run, from, to, choice } = options;
  const rows = Array.from({ length: to - from }, (_, row) => row);
  const groupStarts = rows.filter((row) => row === 0 || (from + row) % run === 0);
  const part = { sequence, plan, position: from, rowCount: to - from, groupStarts, voters: "first" } as const;
  return { ...part, choice, reportChoice: true };
}
