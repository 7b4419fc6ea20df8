/** Attention of many tiles, where each walks its splits, against that of one row, whose splits are merged: the same bits, for all of a context and for a list. */
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { SelectionPlan } from "../../kernels/contract.ts";
import { openWebGpuDevice, type WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { expectSameBits } from "./support/compare.ts";
import { kernelsOf } from "./support/kernel-names.ts";
import { SEED } from "./support/random.ts";
import { makeSequence, Stage, type StageShape } from "./support/stage.ts";

vi.setConfig({ testTimeout: 120_000 });
const hasAdapter = (await adapterForTests()) !== undefined;

/** Rows in tiles of 4 and 8 KV heads: more work groups than those up to which attention is split. */
const ROWS = 1088;
const PLANS: Record<string, SelectionPlan> = {
  dense: { kind: "dense" },
  "20 sinks and 20 recent pages": {
    ...{ kind: "pages", budgetPages: 40, sinkPages: 20, recentPages: 20, scope: "kv-head", combine: "max" },
  },
};

describe.skipIf(!hasAdapter)(`attention that walks (seed ${SEED})`, () => {
  let device: WebGpuDevice;
  beforeAll(async () => {
    device = await openWebGpuDevice();
  });
  afterAll(() => device.close());

  it.each(["f32", "int8"] as const)("has the bits of attention that is split and merged, %s KV", async (encoding) => {
    const shape: StageShape = {
      ...{ layerCount: 1, headCount: 8, kvHeadCount: 8, headDim: 16, encoding, summaryKinds: [] },
    };
    const sequence = makeSequence(shape, ROWS, SEED);
    const stage = new Stage(device, shape, { blockCapacity: ROWS / 64 });
    await stage.fill(sequence, ROWS);
    const attended = async (position: number, rowCount: number, plan: SelectionPlan) => {
      const groupCount = plan.kind === "dense" ? 1 : Math.ceil(rowCount / 16);
      const groupStarts = Array.from({ length: groupCount }, (_, group) => group * 16);
      let rows: Float32Array = new Float32Array();
      const names = await kernelsOf(device, async () => {
        const { out } = await stage.run([{ sequence, position, rowCount, plan, groupStarts }]);
        rows = out[0]![0]!;
      });
      return { rows, names };
    };
    for (const [name, plan] of Object.entries(PLANS)) {
      const all = await attended(0, ROWS, plan);
      expect(all.names.some((kernel) => kernel.startsWith("merge_splits"))).toBe(false);
      const width = shape.headCount * shape.headDim;
      for (const position of [1087, 1024, 1000, 767]) {
        const alone = await attended(position, 1, plan);
        expect(alone.names).toContain(`merge_splits_${shape.headDim}`);
        expectSameBits(
          alone.rows,
          all.rows.slice(position * width, (position + 1) * width),
          `${name}, row ${position}`,
        );
      }
    }
  });
});
