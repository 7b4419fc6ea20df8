/** Conformance of the kinds of summaries behind the first two: their bytes, and what plans choose by them. */
import { describe, expect, it } from "vitest";
import { type PageScorer, type SelectionPlan, SUMMARY_KINDS, type SummaryKind } from "../../../kernels/contract.ts";
import { residualSignsLayout } from "../../../kernels/residual-signs.ts";
import { Twin } from "../support/check.ts";
import { expectSameBits } from "../support/compare.ts";
import type { Lane } from "../support/lane.ts";
import { Random, SEED } from "../support/random.ts";
import { makeSequence, type Part, ropeAngles, Stage, type StageShape } from "../support/stage.ts";
import { checkSummaries } from "./append.ts";

const LENGTH = 700;
const SMALL = { budgetPages: 12, sinkPages: 1, recentPages: 2 };
const SCORERS = {
  "centre-deviation": { summary: "centre-deviation", radiusWeight: 1 },
  representatives: { summary: "representatives", radiusWeight: 1 },
  "sign-bits": { summary: "sign-bits", radiusWeight: 0 },
  "residual-signs": { summary: "residual-signs", radiusWeight: 1 },
} as const satisfies Partial<Record<SummaryKind, PageScorer>>;

/** Each kind in several plans. */
const PLANS = Object.values(SCORERS).flatMap((scorer): { name: string; plan: SelectionPlan }[] => [
  {
    name: `${scorer.summary}, each head`,
    plan: { kind: "pages", ...SMALL, scorer, scope: "kv-head", combine: "max" },
  },
  {
    name: `${scorer.summary} by vote of the layer`,
    plan: { kind: "pages", ...SMALL, scorer, scope: "layer", combine: "softmax-sum" },
  },
  { name: `tokens of the best by ${scorer.summary}`, plan: { kind: "tokens", ...SMALL, candidatePages: 14, scorer } },
]);

/** Kinds that a pool of this width may keep. */
function kindsOf(headDim: number): readonly SummaryKind[] {
  return SUMMARY_KINDS.filter(
    (kind) => headDim % (kind === "residual-signs" ? 16 : kind === "sign-bits" ? 8 : 4) === 0,
  );
}

/** Bytes of every kind; selection by each of them alone and side by side. */
export function describeKinds(lane: Lane): void {
  describe.each(["f32", "int8"] as const)(`kinds of summaries, %s KV (seed ${SEED})`, (encoding) => {
    const shape: StageShape = {
      ...{ layerCount: 1, headCount: 6, kvHeadCount: 2, headDim: 16, encoding },
      summaryKinds: SUMMARY_KINDS,
    };

    it.each([4, 8, 16, 36, 48, 64, 80, 96, 128])(
      "have the codec's bytes, also of extreme keys, headDim %i",
      async (headDim) => {
        const own: StageShape = { ...shape, headCount: 2, headDim, summaryKinds: kindsOf(headDim) };
        const stage = new Stage(lane.device(), own, { blockCapacity: 4 });
        const sequence = makeSequence(own, 256, SEED);
        const { k } = sequence.layers[0]!;
        const width = 2 * headDim;
        const random = new Random(SEED);
        // Block 0: pages of zeros, of one value, of integers (many ties), of huge ones. Block 1: a lone large channel. Block 2: as random as can be.
        for (let at = 0; at < 64 * width; at++) {
          const page = Math.floor(at / width / 16);
          k[at] = [0, 0.75, random.integer(9) - 4, random.normal(1e30)][page]!;
        }
        for (let at = 64 * width; at < 128 * width; at += headDim) k[at] = 1000 * random.normal();
        await stage.fill(sequence, 256);
        const { blockIds, summarySlots } = stage.place(sequence);
        for (let block = 0; block < 4; block++) {
          const sealed = await stage.pool.readBlock(blockIds[block]!);
          const slot = summarySlots[block]!;
          for (const head of [0, 1]) await checkSummaries(stage, { sealed, slot, layer: 0, head });
        }
      },
    );

    describe.each(PLANS)("$name", ({ plan }) => {
      it("one query at the end of a long context, two layers", async () => {
        const deep = { ...shape, layerCount: 2 };
        const sequence = makeSequence(deep, LENGTH, SEED);
        const twin = new Twin(lane, deep, { blockCapacity: 11 });
        await twin.fill(sequence, LENGTH - 1);
        const { traffic } = (await twin.run([{ sequence, position: LENGTH - 1, rowCount: 1, plan }])).readback;
        expect(traffic[0]!.pagesSelected).toBeGreaterThan(0);
        expect(traffic[0]!.metadataBytes).toBeGreaterThanOrEqual(2 * 2 * 39 * 2 * (16 + 4));
      });

      it("a chunk in uneven groups, with blocks that are not there", async () => {
        const sequence = makeSequence(shape, LENGTH, SEED + 1);
        const twin = new Twin(lane, shape, { blockCapacity: 11 });
        await twin.fill(sequence, 630);
        const absent = [2, 3, 5, 8].map((block) => ({ block }));
        await twin.run([{ sequence, position: 630, rowCount: 40, groupStarts: [0, 5, 9, 26], plan, absent }]);
      });

      it("within the budget it is dense to the bit", async () => {
        const sequence = makeSequence(shape, 500, SEED);
        const stage = new Stage(lane.device(), shape, { blockCapacity: 8 });
        await stage.fill(sequence, 450);
        const part = { sequence, position: 450, rowCount: 50 };
        const dense = await stage.run([part]);
        const roomy = { ...plan, budgetPages: 32 } as SelectionPlan;
        const result = await stage.run([{ ...part, groupStarts: [0, 1, 13, 14, 40], plan: roomy }]);
        expectSameBits(result.out[0]![0]!, dense.out[0]![0]!);
      });
    });

    it("choose side by side in one step, each by its own", async () => {
      const twin = new Twin(lane, shape, { blockCapacity: 8 * PLANS.length });
      const parts: Part[] = [];
      for (const [index, { plan }] of PLANS.entries()) {
        const sequence = makeSequence(shape, 400 + index * 9, SEED + index);
        const position = sequence.length - 1 - (index % 3);
        await twin.fill(sequence, position);
        parts.push({ sequence, position, rowCount: sequence.length - position, plan });
      }
      await twin.run(parts);
    });

    it.each([16, 48, 64, 80, 128, 256])(
      "residual signs that may be anything rank as defined, headDim %i",
      async (headDim) => {
        const wide: StageShape = { ...shape, headCount: 3, kvHeadCount: 1, headDim, summaryKinds: ["residual-signs"] };
        const random = new Random(SEED + headDim);
        const lengthsAt = (residualSignsLayout(headDim).tokenBytes - 1) * 16;
        const sequence = makeSequence(wide, 500, SEED);
        const twin = new Twin(lane, wide, { blockCapacity: 8 });
        await twin.fill(sequence, 498);
        // Of the first row's first query RoPE leaves one channel, and turning makes all channels as large: no sums of codes are larger.
        const { cos, sin } = ropeAngles(headDim);
        const angle = (498 * headDim) / 2;
        const { q } = sequence.layers[0]!;
        q.fill(0, 498 * 3 * headDim, (498 * 3 + 1) * headDim);
        [q[498 * 3 * headDim], q[498 * 3 * headDim + headDim / 2]] = [cos[angle]!, -sin[angle]!];
        const slots = Array.from({ length: 8 }, () => {
          const scales = Float32Array.from({ length: 8 }, (_, at) =>
            at === 5 ? Number.NaN : 0.01 + Math.abs(random.normal()),
          );
          const codes = random.bytes(8 * headDim);
          // Page 0 has every bit set, page 3 none but those of its lengths: the least sums and the largest.
          codes.fill(255, 0, lengthsAt + 16);
          codes.fill(0, 6 * headDim, 6 * headDim + lengthsAt);
          codes.fill(0xf0, 6 * headDim + lengthsAt, 6 * headDim + lengthsAt + 16);
          return Uint8Array.from([...codes, ...new Uint8Array(scales.buffer)]);
        });
        twin.writeSummaries(sequence, "residual-signs", (block) => slots[block]!);
        for (const [budgetPages, radiusWeight, rowCount] of [
          [9, 1, 1],
          [9, 1, 2],
          [17, 0.5, 2],
          [24, 0, 2],
        ] as const) {
          const scorer = { summary: "residual-signs", radiusWeight } as const;
          const plan = { ...PLANS.at(-3)!.plan, budgetPages, scorer } as SelectionPlan;
          await twin.run([{ sequence, position: 498, rowCount, plan }]);
        }
      },
    );

    it.each([8, 64, 256])("sign bits that may be anything rank as defined, headDim %i", async (headDim) => {
      const wide: StageShape = { ...shape, headCount: 2, kvHeadCount: 1, headDim, summaryKinds: ["sign-bits"] };
      const random = new Random(SEED);
      const sequence = makeSequence(wide, 500, SEED);
      const twin = new Twin(lane, wide, { blockCapacity: 8 });
      await twin.fill(sequence, 498);
      // Page 5 has every bit against a query of negative numbers only: 256 mismatches where headDim is 256, one more than a byte can count.
      const { cos, sin } = ropeAngles(headDim);
      const half = headDim / 2;
      for (let at = 498 * 2 * headDim; at < sequence.layers[0]!.q.length; at++) {
        const angle = Math.floor(at / headDim / 2) * half + (at % half);
        // What RoPE turns into -1 everywhere.
        sequence.layers[0]!.q[at] = -cos[angle]! + (at % headDim < half ? -sin[angle]! : sin[angle]!);
      }
      const slots = Array.from({ length: 8 }, (_, block) => {
        const codes = random.bytes(8 * headDim);
        // Page 6 has one mismatch less: with 256 channels a tie, which goes to page 5.
        if (block === 1) codes.fill(0, 2 * headDim, 6 * headDim).fill(1, 4 * headDim, 4 * headDim + 16);
        const scales = Float32Array.from({ length: 8 }, (_, at) =>
          at % 2 === 1 ? 0 : [0.5, 1, 1, Number.NaN][at / 2]!,
        );
        return Uint8Array.from([...codes, ...new Uint8Array(scales.buffer)]);
      });
      twin.writeSummaries(sequence, "sign-bits", (block) => slots[block]!);
      // At 24 all pages but those that are NaN and the worst of the others are taken.
      for (const budgetPages of [9, 17, 24]) {
        const plan = { ...PLANS[6]!.plan, budgetPages } as SelectionPlan;
        await twin.run([{ sequence, position: 498, rowCount: 2, plan }]);
      }
    });
  });
}
