/**
 * Blocks that are not on the GPU: what a step chose and missed comes back with its token, what is fetched goes up beside the next step, and a step that
 * waited for it has the bits of one that missed nothing. By counts of what the host asks of the GPU.
 */
import { describe, expect, it, vi } from "vitest";
import type { DeviceBuffer, SelectionPlan, StepReadback } from "../../kernels/contract.ts";
import { requestAdapter } from "../../kernels/webgpu/adapter.ts";
import { openWebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { plainRow } from "./conformance/sampling.ts";
import { expectSameBits } from "./support/compare.ts";
import { counted, noCalls } from "./support/counted-adapter.ts";
import { poisoned, results, upload } from "./support/floats.ts";
import { Random, SEED } from "./support/random.ts";
import { makeSequence, type Part, type Sequence, Stage, type StageShape } from "./support/stage.ts";

vi.setConfig({ testTimeout: 120_000 });
const hasAdapter = (await adapterForTests()) !== undefined;

const SHAPE: StageShape = {
  ...{ layerCount: 2, headCount: 4, kvHeadCount: 2, headDim: 16, encoding: "int8", summaryKinds: ["min-max"] },
};
const PLAN: SelectionPlan = {
  ...{ kind: "pages", budgetPages: 8, sinkPages: 1, recentPages: 1, scope: "kv-head", combine: "max" },
  scorer: { summary: "min-max", radiusWeight: 1 },
};
const POSITION = 560;

describe.skipIf(!hasAdapter)(`offload on the GPU device (seed ${SEED})`, () => {
  it("misses come back with the token, blocks go up beside the next step, and the exact step then misses nothing", async () => {
    const calls = noCalls();
    const device = await openWebGpuDevice({ adapter: counted(await requestAdapter(), calls) });
    const [sequence, other] = [makeSequence(SHAPE, 600, SEED), makeSequence(SHAPE, 600, SEED + 1)];
    const spare = makeSequence(SHAPE, 600, SEED + 2);
    const stage = new Stage(device, SHAPE, { blockCapacity: 30 });
    for (const each of [sequence, other]) await stage.fill(each, POSITION);
    const part = (of: Sequence): Part => ({ sequence: of, position: POSITION, rowCount: 1, plan: PLAN });
    const logits = upload(device, "logits", new Random(SEED).normals(100));

    /** Records a step of one part with a sampled row, and submits it. */
    const begin = (each: Part): { out: DeviceBuffer[]; done: Promise<StepReadback> } => {
      const { q, k, v } = stage.upload([each]);
      const recorder = device.begin([stage.sliceOf(each)]);
      const out = q.map((queries, layer) => {
        const to = poisoned(device, "attended", SHAPE.headCount * SHAPE.headDim);
        const common = { pool: stage.pool, layer, headCount: SHAPE.headCount, q: queries };
        recorder.append({ ...common, k: k[layer]!, v: v[layer]!, rope: stage.rope });
        recorder.select(common);
        recorder.attend({ ...common, out: to });
        return to;
      });
      recorder.sample({ logits, width: 100, rows: [plainRow(0, {})] });
      Object.assign(calls, noCalls());
      return { out, done: recorder.submit() };
    };
    const valuesOf = (buffers: readonly DeviceBuffer[]) => Promise.all(buffers.map((each) => results(device, each)));

    const resident = begin(part(sequence));
    const { samples, chosenBlocks } = await resident.done;
    const expected = await valuesOf(resident.out);
    const alone = begin(part(other));
    await alone.done;
    const expectedOther = await valuesOf(alone.out);

    // Three of the blocks that layer 1 chose leave the device.
    const { blockIds, blockCapacity } = stage.place(sequence);
    const stride = Math.ceil(blockCapacity / 32);
    const gone = Array.from({ length: blockCapacity }, (_, block) => block)
      .filter((block) => ((chosenBlocks![0]![stride + (block >> 5)]! >>> (block & 31)) & 1) === 1)
      .slice(0, 3);
    expect(gone.length).toBe(3);
    const stored = await Promise.all(gone.map((block) => stage.pool.readBlock(blockIds[blockCapacity + block]!)));
    const missing = begin({ ...part(sequence), absent: gone.map((block) => ({ block, layer: 1 })) });
    const told = await missing.done;
    expect(calls, "one submission and one readback, with misses and token").toMatchObject({ submit: 1, map: 1 });
    expect(told.samples).toEqual(samples);
    expect(told.misses).toEqual(gone.map((block) => ({ sliceIndex: 0, layer: 1, block })));
    const holed = await valuesOf(missing.out);
    expectSameBits(holed[0]!, expected[0]!, "the layer that missed nothing");
    expect(holed[1]).not.toEqual(expected[1]);

    // What was fetched arrives in other blocks while another sequence's step runs.
    const between = begin(part(other));
    const free = stage.place(spare).blockIds;
    gone.forEach((block, at) => {
      stage.pool.writeBlock(free[at]!, stored[at]!);
      blockIds[blockCapacity + block] = free[at]!;
    });
    expect(calls.submit, "uploads wait for the next submission").toBe(1);
    await between.done;
    (await valuesOf(between.out)).forEach((values, layer) => void expectSameBits(values, expectedOther[layer]!));

    const again = begin(part(sequence));
    expect((await again.done).misses).toEqual([]);
    expect(calls, "uploads and the step in one submission").toMatchObject({ submit: 1, map: 1 });
    (await valuesOf(again.out)).forEach((values, layer) => void expectSameBits(values, expected[layer]!, "exact"));
    await device.close();
  });
});
