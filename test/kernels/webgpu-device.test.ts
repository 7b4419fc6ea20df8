/** What the conformance suite does not ask of the GPU device: arithmetic to the bit, memory in several buffers, submissions, failure. */
import { describe, expect, it, vi } from "vitest";
import type { Device, MatrixEncoding, SampleRow, SelectionPlan } from "../../kernels/contract.ts";
import { openReferenceDevice } from "../../kernels/reference/device.ts";
import { sampleRow } from "../../kernels/sample-row.ts";
import { requestAdapter } from "../../kernels/webgpu/adapter.ts";
import type { KernelTime } from "../../kernels/webgpu/command-list.ts";
import { type Kernel, read, write } from "../../kernels/webgpu/kernel.ts";
import { openWebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { EXACT_DIVIDE } from "../../kernels/webgpu/wgsl/exact-math.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { plainRow } from "./conformance/sampling.ts";
import { expectClose, expectSameBits, magnitude } from "./support/compare.ts";
import { counted, noCalls } from "./support/counted-adapter.ts";
import { bytesOf, poisoned, results, upload } from "./support/floats.ts";
import { F32_TOLERANCES } from "./support/lane.ts";
import { Random, SEED } from "./support/random.ts";
import { runOver } from "./support/run-kernel.ts";
import { makeSequence, Stage, type StageShape } from "./support/stage.ts";

// Compiling a kernel for a software GPU takes seconds, on a busy machine more.
vi.setConfig({ testTimeout: 120_000 });
const hasAdapter = (await adapterForTests()) !== undefined;

describe.skipIf(!hasAdapter)(`the GPU device (seed ${SEED})`, () => {
  describeDivision();
  describeParts();
  describeSampling();
  describeSubmissions();
  describeFailure();
});

/** `out[i] = divide(a[i], b[i])`. */
const DIVIDE: Kernel = {
  name: "test_divide",
  params: {},
  bindings: { a: read("f32"), b: read("f32"), out: write("f32") },
  code: /* wgsl */ `
${EXACT_DIVIDE}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x < arrayLength(&out)) { out[id.x] = divide(a[id.x], b[id.x]); }
}
`,
};

function describeDivision(): void {
  it("divides to the nearest f32, halves to even", async () => {
    const count = 20_000;
    const random = new Random(SEED);
    const normal = (isPositive: boolean): number => {
      const value = (1 + random.next()) * 2 ** (random.integer(60) - 30);
      return Math.fround(isPositive || random.next() < 0.5 ? value : -value);
    };
    const a = Float32Array.from({ length: count }, () => normal(false));
    const b = Float32Array.from({ length: count }, (_, at) => (at % 3 === 0 ? 127 : normal(true)));
    // Quotients that lie on the middle between two f32, which no random pair hits: an odd 25-bit number over a power of two is one.
    for (let at = 0; at < 1000; at++) {
      b[at] = 2 ** random.integer(20) * 3;
      a[at] = Math.fround(b[at]! * (1 + random.integer(2 ** 23) / 2 ** 23));
    }
    a[0] = 0;
    const quotients = new Float32Array(await runOver(DIVIDE, [a, b]));
    expectSameBits(
      quotients,
      a.map((value, at) => value / b[at]!),
    );
  });
}

function describeParts(): void {
  /** A binding holds few rows of the matrices below, and three to seven blocks of the pool. */
  const bindingBytesMax = 1 << 16;

  async function onBoth<T>(run: (device: Device) => Promise<T>): Promise<[whole: T, parts: T]> {
    const answers: T[] = [];
    for (const options of [{}, { bindingBytesMax }]) {
      const device = await openWebGpuDevice(options);
      answers.push(await run(device));
      await device.close();
    }
    return answers as [T, T];
  }

  const all = [
    ["int4", "native"],
    ["int8", "native"],
    ["int4", "none"],
  ] as const;
  it.each(process.env.QUIRE_TEST_FULL === undefined ? all.slice(0, 1) : all)(
    "of a large %s matrix, two groups of rows a work group, the bits are those of one row alone (subgroups: %s)",
    async (encoding, subgroups) => {
      const device = await openWebGpuDevice(subgroups === "none" ? { features: [] } : {});
      const random = new Random(SEED);
      // An odd number of groups of 8 rows, and lanes with two blocks of which the last are padding.
      const [outWidth, inWidth] = [8200, 300];
      const matrix = device.matrix("large", encoding, { outWidth, inWidth }, random.normals(outWidth * inWidth));
      const values = random.normals(7 * inWidth);
      const product = async (rows: number, x: Float32Array): Promise<Float32Array> => {
        const out = poisoned(device, "product", rows * outWidth);
        const times: KernelTime[] = [];
        device.time(times);
        const recorder = device.begin([]);
        recorder.matmul({ out, x: upload(device, "x", x), matrix, rows });
        await recorder.submit();
        expect(times.at(-1)!.name).toBe(`gemv_${encoding}_${{ 1: "1", 3: "4x2", 7: "8x2" }[rows]}`);
        return results(device, out);
      };
      const [three, seven] = [await product(3, values), await product(7, values)];
      for (const row of [0, 2, 6]) {
        const alone = await product(1, values.slice(row * inWidth, (row + 1) * inWidth));
        expectSameBits(seven.slice(row * outWidth, (row + 1) * outWidth), alone, `row ${row} of 7`);
        if (row < 3) expectSameBits(three.slice(row * outWidth, (row + 1) * outWidth), alone, `row ${row} of 3`);
      }
      await device.close();
    },
  );

  it.each(["f32", "bf16", "int8", "int4"] as const)(
    "a matrix of %s in several buffers gives the same bits",
    async (encoding: MatrixEncoding) => {
      const random = new Random(SEED);
      const shape = { outWidth: 300, inWidth: 300 };
      const weights = random.normals(300 * 300);
      const x = random.normals(10 * 300);
      const tokens = Uint32Array.of(299, 0, 63, 64, 150);
      const [whole, parts] = await onBoth(async (device) => {
        const matrix = device.matrix("weights", encoding, shape, weights);
        const input = upload(device, "x", x);
        // The kernel for many rows takes seconds to compile; int4 alone shows that it finds its parts.
        const counts = encoding === "int4" ? [2, 10] : [2];
        const products = counts.map((count) => ({ rows: count, out: poisoned(device, "product", count * 300) }));
        const rows = poisoned(device, "rows", 5 * 300);
        const recorder = device.begin([]);
        for (const each of products) recorder.matmul({ ...each, x: input, matrix });
        recorder.embed({ out: rows, table: matrix, tokens });
        await recorder.submit();
        const packed = await device.readPacked(matrix, 0, matrix.packedBytes);
        return {
          packed,
          values: await Promise.all([...products.map(({ out }) => out), rows].map((buffer) => results(device, buffer))),
        };
      });
      expect(parts.packed.length).toBe(whole.packed.length);
      parts.values.forEach((values, index) => void expectSameBits(values, whole.values[index]!, `op ${index}`));
    },
  );

  it.each(["f32", "int8"] as const)(
    "a pool of %s in several buffers gives the same bits, and the right ones",
    async (encoding) => {
      const shape: StageShape = {
        ...{ layerCount: 1, headCount: 4, kvHeadCount: 2, headDim: encoding === "f32" ? 16 : 32, encoding },
        summaryKinds: ["min-max"],
      };
      const scorer = { summary: "min-max", radiusWeight: 1 } as const;
      const budget = { budgetPages: 9, sinkPages: 1, recentPages: 1 };
      const plans: SelectionPlan[] = [
        { kind: "dense" },
        { kind: "tokens", ...budget, candidatePages: 12, scorer },
        { kind: "pages", ...budget, scope: "kv-head", combine: "max", scorer },
      ];
      const sequence = makeSequence(shape, 410, SEED);
      const answersOf = async (device: Device): Promise<Float32Array[]> => {
        const stage = new Stage(device, shape, { blockCapacity: 9 });
        await stage.fill(sequence, 400);
        const answers: Float32Array[] = [];
        for (const plan of plans)
          answers.push((await stage.run([{ sequence, position: 400, rowCount: 1, plan }])).out[0]![0]!);
        return answers;
      };
      const [whole, parts] = await onBoth(answersOf);
      parts.forEach((rows, index) => void expectSameBits(rows, whole[index]!, `plan ${index}`));
      const reference = openReferenceDevice();
      const bound = { relative: 0, absolute: F32_TOLERANCES.attention * magnitude(sequence.layers[0]!.v) };
      const expected = await answersOf(reference);
      whole.forEach((rows, index) => void expectClose(rows, expected[index]!, bound, `plan ${index}`));
      await reference.close();
    },
  );

  it("says what does not fit, and by how much", async () => {
    const device = await openWebGpuDevice({ bindingBytesMax });
    const spec = { layerCount: 1, kvHeadCount: 2, headDim: 64, encoding: "int8", summaryKinds: [] } as const;
    const counts = { blockCount: 1000, openSlotCount: 0, summarySlotCount: 0 };
    expect(() => device.kvPool({ ...spec, ...counts })).toThrow(
      /blockCount 1000: this adapter holds at most \d+ blocks/,
    );
    await device.close();
  });
}

function describeSampling(): void {
  it("draws what sample-row.ts draws, over 300 kinds of rows", async () => {
    const device = await openWebGpuDevice();
    const width = 500;
    const random = new Random(SEED);
    const logits = random.normals(20 * width, 3);
    logits.fill(Number.NaN, 3 * width, 3 * width + 20);
    logits.fill(Number.NEGATIVE_INFINITY, 4 * width, 5 * width);
    for (let id = 0; id < width; id++) logits[5 * width + id] = id % 7;
    const choose = <T>(choices: readonly T[]): T => choices[random.integer(choices.length)]!;
    const rows = Array.from({ length: 300 }, (_, index): SampleRow => {
      const seenIds = Uint32Array.from(random.permutation(width).slice(0, random.integer(30)));
      const biasIds = Uint32Array.from(random.permutation(width + 5).slice(0, random.integer(5)));
      return plainRow(random.integer(20), {
        ...{
          temperature: choose([0, 0.3, 1, 2]),
          topK: choose([0, 1, 7, 40, 499, 900]),
          topP: choose([1, 0.95, 0.5, 0.01]),
        },
        ...{ minP: choose([0, 0.05, 0.5]), frequencyPenalty: choose([0, 0.7]), presencePenalty: choose([0, -0.4]) },
        ...{ repetitionPenalty: choose([1, 1.2]), seenIds, seenCounts: seenIds.map((id) => id % 3) },
        ...{ biasIds, biasValues: Float32Array.from(biasIds, () => random.normal(4)) },
        ...{ seed: random.integer(2 ** 32), position: index },
      });
    });
    const buffer = upload(device, "logits", logits);
    const recorder = device.begin([]);
    recorder.sample({ logits: buffer, width, rows });
    const { samples } = await recorder.submit();
    await device.close();
    const expected = rows.map((row) => sampleRow(logits.slice(row.row * width, (row.row + 1) * width), row).tokenId);
    expect(samples.map(({ tokenId }) => tokenId)).toEqual(expected);
  });
}

function describeSubmissions(): void {
  it("memory that a later step makes larger is bound anew", async () => {
    const device = await openWebGpuDevice();
    const table = device.matrix("table", "f32", { outWidth: 8, inWidth: 4 }, new Random(SEED).normals(32));
    const [out, many] = [poisoned(device, "one", 4), device.buffer("many", 20_000 * 4 * 4)];
    const lookUp = async (token: number, others: number): Promise<Float32Array> => {
      const recorder = device.begin([]);
      recorder.embed({ out, table, tokens: Uint32Array.of(token) });
      // The tables of this step do not fit into those of the step before.
      recorder.embed({ out: many, table, tokens: new Uint32Array(others) });
      await recorder.submit();
      return results(device, out);
    };
    const first = await lookUp(5, 0);
    await lookUp(1, 0);
    expectSameBits(await lookUp(5, 20_000), first);
    await device.close();
  });

  it("a long step is a few submissions, so that the GPU begins while the host encodes, and one readback", async () => {
    const calls = noCalls();
    const device = await openWebGpuDevice({ adapter: counted(await requestAdapter(), calls) });
    const count = 500;
    const values = new Random(SEED).normals(count);
    const x = upload(device, "x", values);
    const [from, to] = [poisoned(device, "from", count), poisoned(device, "to", count)];
    Object.assign(calls, noCalls());
    const recorder = device.begin([]);
    // Each copy but the first takes what the one before has brought.
    recorder.copyRows({ out: from, outRow: 0, x, xRow: 0, rows: 1, width: count });
    for (let at = 0; at < count; at += 2) {
      recorder.copyRows({ out: to, outRow: at / 2, x: from, xRow: at / 2, rows: 1, width: 2 });
      recorder.copyRows({ out: from, outRow: at / 2, x: to, xRow: at / 2, rows: 1, width: 2 });
    }
    expect(calls.submit).toBe(0);
    await recorder.submit();
    expect(calls.map).toBe(1);
    expect(calls.submit).toBe(3);
    expectSameBits(await results(device, to), values);
    await device.close();
  });

  it("a step is one submission, and its readback is small", async () => {
    const adapter = await requestAdapter();
    const calls = noCalls();
    const device = await openWebGpuDevice({ adapter: counted(adapter, calls) });
    const shape: StageShape = {
      ...{ layerCount: 2, headCount: 4, kvHeadCount: 2, headDim: 8, encoding: "int8", summaryKinds: ["min-max"] },
    };
    const plan: SelectionPlan = {
      ...{ kind: "pages", budgetPages: 9, sinkPages: 1, recentPages: 1, scope: "kv-head", combine: "max" },
      scorer: { summary: "min-max", radiusWeight: 1 },
    };
    const stage = new Stage(device, shape, { blockCapacity: 7 });
    const sequence = makeSequence(shape, 400, SEED);
    await stage.fill(sequence, 399);
    const q = upload(device, "q", sequence.layers[0]!.q);
    const [k, v] = (["k", "v"] as const).map((name) => upload(device, name, sequence.layers[0]![name]));
    const out = device.buffer("out", 4 * 8 * 4);
    Object.assign(calls, noCalls());
    const recorder = device.begin([stage.sliceOf({ sequence, position: 399, rowCount: 1, plan })]);
    for (const layer of [0, 1]) {
      const common = { pool: stage.pool, layer, headCount: 4, q };
      recorder.append({ ...common, k: k!, v: v!, rope: stage.rope });
      recorder.select(common);
      recorder.attend({ ...common, out });
    }
    recorder.sample({ logits: out, width: 32, rows: [plainRow(0)] });
    expect(calls.submit).toBe(0);
    const { samples, traffic } = await recorder.submit();
    expect(calls).toMatchObject({ submit: 1, map: 1 });
    expect(calls.mappedBytes).toBeLessThan(256);
    expect(samples.length).toBe(1);
    expect(traffic[0]!.pagesSelected).toBe(9 * 2 * 2);
    await device.close();
  });
}

/** An adapter whose device says that it has no memory for some buffers. */
function short(adapter: GPUAdapter, labels: RegExp): GPUAdapter {
  const request = adapter.requestDevice.bind(adapter);
  adapter.requestDevice = async (descriptor) => {
    const device = await request(descriptor);
    let label = "";
    const create = device.createBuffer.bind(device);
    device.createBuffer = (wanted) => {
      label = wanted.label ?? "";
      return create(wanted);
    };
    const pop = device.popErrorScope.bind(device);
    device.popErrorScope = async () => {
      const isShort = labels.test(label);
      const error = await pop();
      return isShort ? ({ message: "planted" } as GPUError) : error;
    };
    return device;
  };
  return adapter;
}

function describeFailure(): void {
  it("a step on a lost GPU fails by name, and so does the next one", async () => {
    const adapter = await requestAdapter();
    let lose = (): void => {};
    const request = adapter.requestDevice.bind(adapter);
    adapter.requestDevice = async (descriptor) => {
      const device = await request(descriptor);
      lose = () => device.destroy();
      return device;
    };
    const device = await openWebGpuDevice({ adapter });
    const [x, out] = [upload(device, "x", new Float32Array(8)), poisoned(device, "out", 8)];
    lose();
    for (let step = 0; step < 2; step++) {
      const recorder = device.begin([]);
      recorder.copyRows({ out, outRow: 0, x, xRow: 0, rows: 1, width: 8 });
      await expect(recorder.submit()).rejects.toMatchObject({ code: "engine_failed" });
    }
    await device.close();
  });

  it("memory that the GPU does not have is said by name, before anything runs and when something does", async () => {
    const device = await openWebGpuDevice({ adapter: short(await requestAdapter(), /^blocks/) });
    await device.allocated();
    const counts = { blockCount: 8, openSlotCount: 1, summarySlotCount: 0 };
    device.kvPool({ layerCount: 1, kvHeadCount: 2, headDim: 64, encoding: "int8", summaryKinds: [], ...counts });
    const says = /the GPU has no memory for blocks 0, \d+ bytes \(planted\)/;
    await expect(device.allocated()).rejects.toThrow(says);
    await expect(device.allocated()).rejects.toMatchObject({ code: "invalid_request", param: "pool_bytes" });
    const [x, out] = [upload(device, "x", new Float32Array(8)), poisoned(device, "out", 8)];
    const recorder = device.begin([]);
    recorder.copyRows({ out, outRow: 0, x, xRow: 0, rows: 1, width: 8 });
    await expect(recorder.submit()).rejects.toThrow(says);
    await device.close();
  });

  it("bytes written within a step come between its ops", async () => {
    const device = await openWebGpuDevice();
    const [x, first, second] = [
      upload(device, "x", Float32Array.of(1)),
      ...[1, 2].map(() => poisoned(device, "out", 1)),
    ];
    const copy = { outRow: 0, xRow: 0, rows: 1, width: 1 };
    const recorder = device.begin([]);
    recorder.copyRows({ out: first!, x: x!, ...copy });
    device.write(x!, 0, bytesOf(Float32Array.of(2)));
    recorder.copyRows({ out: second!, x: x!, ...copy });
    await recorder.submit();
    expect([(await results(device, first!))[0], (await results(device, second!))[0]]).toEqual([1, 2]);
    await device.close();
  });
}
