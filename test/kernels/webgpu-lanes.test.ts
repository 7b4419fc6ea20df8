/** The GPU device with and without its optional features, in subgroups of every size: the same bits. */
import { beforeAll, describe, expect, it, vi } from "vitest";
import type { Device, Sample, SelectionPlan } from "../../kernels/contract.ts";
import { openReferenceDevice } from "../../kernels/reference/device.ts";
import { adapterReport, openAdapter, requestAdapter } from "../../kernels/webgpu/adapter.ts";
import { CommandList, StepBuffers } from "../../kernels/webgpu/command-list.ts";
import { checkMatrices, matrixShapes, parseFeatures, settleLane } from "../../kernels/webgpu/features.ts";
import { Gpu } from "../../kernels/webgpu/gpu.ts";
import { type Kernel, type Lane, PLAIN_LANE, write } from "../../kernels/webgpu/kernel.ts";
import { openWebGpuDevice, WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { laneCheck, laneCheckExpected } from "../../kernels/webgpu/wgsl/checks.ts";
import { bestOf, laneParam, laneWidth, maxOf } from "../../kernels/webgpu/wgsl/reduce.ts";
import { Words } from "../../kernels/webgpu/words.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { plainRow } from "./conformance/sampling.ts";
import { poisoned, results, upload } from "./support/floats.ts";
import { Random, SEED } from "./support/random.ts";
import { makeSequence, type Part, Stage, type StageShape } from "./support/stage.ts";

// Compiling a kernel for a software GPU takes seconds, on a busy machine more.
vi.setConfig({ testTimeout: 240_000 });
const hasAdapter = (await adapterForTests()) !== undefined;
const SIZES = [4, 8, 16, 32, 64, 128] as const;
const simulated = (size: number): Lane => ({ ...PLAIN_LANE, subgroups: { simulated: size } });

describe("features by name", () => {
  it("are read from one word or several, and nothing else is accepted", () => {
    expect(parseFeatures("")).toEqual(parseFeatures("auto"));
    expect(parseFeatures("auto")).toContain("subgroups");
    expect(parseFeatures("none")).toEqual([]);
    expect(parseFeatures("f16,subgroups")).toEqual(["f16", "subgroups"]);
    expect(() => parseFeatures("subgroup")).toThrow(/QUIRE_WEBGPU_FEATURES: "subgroup" is none of auto, none/);
  });
});

describe.skipIf(!hasAdapter)(`lanes of the GPU device (seed ${SEED})`, () => {
  it.each(SIZES)("sums, prefix sums and the best in subgroups of %i are those without any", async (size) => {
    const gpu = new Gpu(await openAdapter(await requestAdapter()), simulated(size));
    for (const threads of [64, 256] as const) {
      expect(await run(gpu, laneCheck(threads), threads * 3)).toEqual(laneCheckExpected(threads));
    }
    // Keys of 5 bits: each is shared by eight threads, of which the least is the best.
    const keys = Array.from({ length: 256 }, (_, lid) => (lid * 37 + 11) % 32);
    const best = keys.indexOf(31);
    expect([...(await run(gpu, BEST, 3))]).toEqual([31, best, 255 * 37 + 11]);
    gpu.close();
  });

  it("an adapter's subgroups are used where the check passes, and not where its places are others", async () => {
    const device = await openAdapter(await requestAdapter());
    expect(await settleLane(device, ["subgroups"])).toMatchObject({ used: ["subgroups"], notes: [] });
    expect(await settleLane(device, [])).toMatchObject({ lane: PLAIN_LANE, used: [], notes: [] });
    const create = device.createShaderModule.bind(device);
    device.createShaderModule = (descriptor) =>
      create({
        ...descriptor,
        code: descriptor.code.replace("place == lid % lane_width", "place == lid / lane_width"),
      });
    const { lane, notes } = await settleLane(device, ["subgroups"]);
    expect(lane).toEqual(PLAIN_LANE);
    expect(notes).toEqual([
      expect.stringMatching(/^subgroups not used, self-check failed: lane_check_64 wrote 0 for 1/),
    ]);
    device.createShaderModule = (descriptor) => create({ ...descriptor, code: `${descriptor.code} broken` });
    expect((await settleLane(device, ["subgroups"])).notes[0]).toMatch(/self-check failed: Error while parsing WGSL/);
    device.destroy();
  });

  it("a feature over which the driver ends is left out, and no error scope is left behind", async () => {
    const device = await openAdapter(await requestAdapter());
    const scopes: string[] = [];
    const push = device.pushErrorScope.bind(device);
    device.pushErrorScope = (filter) => {
      scopes.push(filter);
      push(filter);
    };
    device.createComputePipeline = () => {
      throw new Error("the driver does not compile it");
    };
    expect(await settleLane(device, ["subgroups"])).toEqual({
      ...{ lane: PLAIN_LANE, used: [] },
      notes: ["subgroups not used, self-check failed: the driver does not compile it"],
    });
    // What Vulkan says of a pipeline that it cannot make is an internal error.
    expect(scopes).toContain("internal");
    await expect(device.popErrorScope()).rejects.toThrow();
    device.destroy();
  });

  it("a device says what it uses", async () => {
    const device = await openWebGpuDevice({ features: [] });
    expect(device.report.description).toMatch(/\(no optional features\)$/);
    await device.close();
  });

  it.each([
    { m: 16, n: 16, k: 16 },
    { m: 8, n: 16, k: 32 },
  ])("products by subgroup matrices of $m x $n x $k, simulated, have the bits of those without", async (shape) => {
    const device = await roomyDevice();
    expect(await checkMatrices(device, { ...shape, isSimulated: true })).toBeUndefined();
    const create = device.createShaderModule.bind(device);
    device.createShaderModule = (descriptor) =>
      create({
        ...descriptor,
        code: descriptor.code
          .replace("words >> vec4u(half", "words >> vec4u(0u * half")
          .replace("+ row_first + j]", "]"),
      });
    expect(await checkMatrices(device, { ...shape, isSimulated: true })).toMatch(
      /^gemm_int8_.* wrote \d+ for \d+ at 72$/,
    );
    device.destroy();
  });

  it("an adapter without subgroup matrices, or of other sizes, is asked for none", async () => {
    const adapter = await requestAdapter();
    expect(matrixShapes(adapter)).toEqual([]);
    const entry = { componentType: "f16", resultComponentType: "f32", M: 16, N: 16, K: 16 };
    const listed = [
      { ...entry, componentType: "i8", resultComponentType: "i32" },
      { ...entry, resultComponentType: "f16" },
      { ...entry, M: 12 },
      { ...entry, M: 8, K: 8 },
      entry,
    ];
    const info = { ...adapter.info, subgroupMatrixConfigs: listed };
    expect(matrixShapes({ info } as unknown as GPUAdapter)).toEqual([
      { m: 16, n: 16, k: 16 },
      { m: 8, n: 16, k: 8 },
    ]);
  });

  describe("a step", () => {
    let plain: StepValues;

    beforeAll(async () => {
      plain = await stepIn(PLAIN_LANE);
    }, 240_000);

    it.each<[string, Lane]>([
      ["the adapter's subgroups", { ...PLAIN_LANE, subgroups: "native" }],
      ["subgroups of 32, simulated", simulated(32)],
    ])("has the same bits with %s", async (_, lane) => {
      expect(await stepIn(lane)).toEqual(plain);
    });

    it("attends as the reference does", async () => {
      const expected = await attentionIn(openReferenceDevice());
      const largest = Math.max(...expected.map((value) => Math.abs(value)));
      plain.attended.forEach((value, at) => void expect(Math.abs(value - expected[at]!)).toBeLessThan(5e-6 * largest));
    });
  });
});

/** A device with room in its work groups for tiles of f32. */
async function roomyDevice(): Promise<GPUDevice> {
  const adapter = await requestAdapter();
  const { maxComputeWorkgroupStorageSize } = adapter.limits;
  return adapter.requestDevice({ requiredLimits: { maxComputeWorkgroupStorageSize } });
}

/** The best (key, id) of 256 threads, and the largest of numbers. */
const BEST: Kernel = {
  name: "test_best",
  params: {},
  bindings: { out: write("u32") },
  code: (lane) => /* wgsl */ `
${laneWidth(lane)}${bestOf(lane, 256)}${maxOf(lane, 256, "u32")}
@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lid: u32${laneParam(lane)}) {
  let best = best_of(vec2u((lid * 37u + 11u) % 32u, lid), lid, lane_width);
  let largest = max_of(lid * 37u + 11u, lid, lane_width);
  if (lid == 77u) {
    out[0] = best.x;
    out[1] = best.y;
    out[2] = largest;
  }
}
`,
};

async function run(gpu: Gpu, kernel: Kernel, words: number): Promise<Uint32Array> {
  const out = gpu.storage("out", words * 4);
  const list = new CommandList(gpu, new StepBuffers());
  list.dispatch(kernel, {}, [out], [1]);
  await list.submit(new Words(), 0);
  return new Uint32Array((await gpu.read(out, 0, words * 4)).buffer);
}

interface StepValues {
  samples: readonly Sample[];
  rows: readonly Float32Array[];
  attended: Float32Array;
}

/** What a step gives by kernels that reduce. */
async function stepIn(lane: Lane): Promise<StepValues> {
  const adapter = await requestAdapter();
  const report = adapterReport(adapter);
  const settled = { lane, used: [], notes: [] };
  const device = new WebGpuDevice(new Gpu(await openAdapter(adapter), lane), report, { settled });
  const random = new Random(SEED);
  const [width, outWidth] = [300, 40];
  const x = upload(device, "x", random.normals(3 * width));
  const norm = upload(device, "norm", random.normals(width));
  const matrices = (["f32", "f16", "int4"] as const).map((encoding) =>
    device.matrix(encoding, encoding, { outWidth, inWidth: width }, random.normals(outWidth * width)),
  );
  const logits = upload(device, "logits", random.normals(2 * 1000, 3));
  const normed = poisoned(device, "normed", 3 * width);
  const products = matrices.map((matrix) => ({ matrix, out: poisoned(device, "product", 3 * outWidth) }));
  const recorder = device.begin([]);
  recorder.rmsNorm({ out: normed, x, weight: norm, rows: 3, width, eps: 1e-5 });
  for (const each of products) recorder.matmul({ ...each, x: normed, rows: 3 });
  const drawn = { temperature: 0.9, topK: 300, topP: 0.95, topLogprobs: 3, seed: 11 };
  recorder.sample({ logits, width: 1000, rows: [plainRow(0, drawn), plainRow(1, { topLogprobs: 2 })] });
  const { samples } = await recorder.submit();
  const buffers = await Promise.all([normed, ...products.map(({ out }) => out)].map((each) => results(device, each)));
  const attended = await attentionIn(device);
  await device.close();
  return { samples, rows: buffers, attended };
}

/** Attention of one row under plans that rank in every way, and of six rows without. */
async function attentionIn(device: Device): Promise<Float32Array> {
  const shape: StageShape = {
    ...{ layerCount: 1, headCount: 4, kvHeadCount: 2, headDim: 16, encoding: "f32", summaryKinds: ["min-max"] },
  };
  const scorer = { summary: "min-max", radiusWeight: 1 } as const;
  const budget = { budgetPages: 9, sinkPages: 1, recentPages: 1 };
  const plans: SelectionPlan[] = [
    { kind: "pages", ...budget, scorer, scope: "kv-head", combine: "max", massShare: 0.7 },
    { kind: "tokens", ...budget, candidatePages: 12, scorer },
  ];
  const stage = new Stage(device, shape, { blockCapacity: 10 });
  const sequence = makeSequence(shape, 420, SEED);
  await stage.fill(sequence, 400);
  const parts: Part[] = plans.map((plan) => ({ sequence, position: 400, rowCount: 1, plan }));
  const outs: number[] = [];
  for (const part of [...parts, { sequence, position: 400, rowCount: 6 }]) {
    outs.push(...(await stage.run([part])).out[0]![0]!);
  }
  return Float32Array.from(outs);
}
