/** Queries that the GPU quantizes for page scores as it appends: the bits of what it does apart, and nothing forgotten. */
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { SelectionPlan, StepRecorder, SummaryKind } from "../../kernels/contract.ts";
import { openAdapter, requestAdapter } from "../../kernels/webgpu/adapter.ts";
import { CommandList, StepBuffers } from "../../kernels/webgpu/command-list.ts";
import { Gpu } from "../../kernels/webgpu/gpu.ts";
import { openWebGpuDevice, type WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { APPEND } from "../../kernels/webgpu/wgsl/append.ts";
import { appendQueries } from "../../kernels/webgpu/wgsl/append-queries.ts";
import { turnedWords, turnQueries } from "../../kernels/webgpu/wgsl/residual-signs.ts";
import { QUANTIZE_QUERIES } from "../../kernels/webgpu/wgsl/score.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { expectSameBits } from "./support/compare.ts";
import { bytesOf, poisoned, results } from "./support/floats.ts";
import { kernelsOf } from "./support/kernel-names.ts";
import { Random, SEED } from "./support/random.ts";
import { makeSequence, Stage, type StageShape } from "./support/stage.ts";

vi.setConfig({ testTimeout: 120_000 });
const hasAdapter = (await adapterForTests()) !== undefined;
const POSITIONS = 5;

describe.skipIf(!hasAdapter)(`append and the queries of page scores (seed ${SEED})`, () => {
  let gpu: Gpu;
  beforeAll(async () => {
    gpu = new Gpu(await openAdapter(await requestAdapter()));
  });
  afterAll(() => gpu.close());

  it.each([
    { headDim: 20, form: "codes", rows: 1 },
    { headDim: 128, form: "codes", rows: 2 },
    { headDim: 192, form: "codes", rows: 1 },
    { headDim: 64, form: "turned", rows: 2 },
    { headDim: 160, form: "turned", rows: 1 },
  ] as const)("heads of $headDim, $form: one dispatch with the bits of several", async ({ headDim, form, rows }) => {
    const random = new Random(SEED + headDim);
    const [headCount, kvHeadCount, half] = [3, 2, headDim / 2];
    const queries = rows * headCount;
    const q = random.normals(queries * headDim, 3);
    // A query of zeros, and one of numbers too small to divide.
    q.fill(0, headDim, 2 * headDim);
    q.fill(1e-42, 2 * headDim, 3 * headDim);
    const [k, v] = [random.normals(rows * kvHeadCount * headDim), random.normals(rows * kvHeadCount * headDim)];
    const [cosines, sines] = [random.normals(POSITIONS * half), random.normals(POSITIONS * half)];
    const places = { codes_at: 4, scales_at: 4 + queries * headDim, turned_at: 8 + queries * (headDim + 1) };
    const scratchWords = places.turned_at + (form === "turned" ? queries * turnedWords(headDim) : 0);
    const openWords = 2 * kvHeadCount * 64 * headDim * 2;
    // Position, open slot and token of every row.
    const table = Uint32Array.from({ length: rows * 3 }, (_, at) => [3, 1, 7][at % 3]! - Math.floor(at / 3));
    const run = async (isTogether: boolean) => {
      const buffers = new StepBuffers();
      const list = new CommandList(gpu, buffers);
      const inputs = [q, k, v, cosines, sines].map((values) => {
        const buffer = gpu.storage("values", values.byteLength);
        gpu.device.queue.writeBuffer(buffer, 0, values);
        return buffer;
      });
      const open = gpu.storage("open", openWords * 4);
      const scratch = gpu.storage("scratch", scratchWords * 4);
      const params = { head_count: headCount, kv_head_count: kvHeadCount, half, rows_at: 0 };
      const all = [...inputs, buffers.tables, open];
      if (isTogether) {
        list.dispatch(appendQueries(headDim, form), { ...params, ...places }, [...all, scratch], [5, rows]);
      } else {
        list.dispatch(APPEND, params, all, [Math.ceil((5 * half) / 64), rows]);
        const grid = [headCount, rows] as const;
        list.dispatch(QUANTIZE_QUERIES, { ...places, head_dim: headDim }, [inputs[0]!, scratch], grid);
        if (form === "turned") list.dispatch(turnQueries(headDim), places, [scratch], grid);
      }
      buffers.words.push(table);
      await list.submit(buffers.words, 0);
      const read = async (buffer: GPUBuffer, words: number) =>
        new Uint32Array((await gpu.read(buffer, 0, words * 4)).buffer);
      const made = {
        q: await read(inputs[0]!, q.length),
        open: await read(open, openWords),
        scratch: await read(scratch, scratchWords),
      };
      for (const buffer of [...inputs, open, scratch]) gpu.destroy(buffer);
      return made;
    };
    const [apart, together] = [await run(false), await run(true)];
    expectSameBits(together.q, apart.q, "turned queries");
    expectSameBits(together.open, apart.open, "keys and values");
    expectSameBits(together.scratch, apart.scratch, "codes");
    expect(new Set(apart.scratch).size).toBeGreaterThan(20);
  });
});

describe.skipIf(!hasAdapter)(`queries from append to select (seed ${SEED})`, () => {
  let device: WebGpuDevice;
  beforeAll(async () => {
    device = await openWebGpuDevice();
  });
  afterAll(() => device.close());

  const SHAPE = { layerCount: 2, headCount: 4, kvHeadCount: 2, headDim: 16, encoding: "f32" } as const;
  const planBy = (summary: SummaryKind): SelectionPlan => ({
    ...{ kind: "pages", budgetPages: 9, sinkPages: 1, recentPages: 1, scope: "kv-head", combine: "max" },
    ...{ scorer: { summary, radiusWeight: 1 }, denseLayers: 1 },
  });

  it.each([
    { summary: "min-max", append: "append_queries_16", apart: ["quantize_queries"] },
    { summary: "residual-signs", append: "append_turned_16", apart: ["quantize_queries", "turn_queries_16"] },
  ] as const)("$summary: quantized again where anything comes between", async ({ summary, append, apart }) => {
    const shape: StageShape = { ...SHAPE, summaryKinds: [summary] };
    const stage = new Stage(device, shape, { blockCapacity: 7 });
    const sequence = makeSequence(shape, 400, SEED);
    await stage.fill(sequence, 399);
    const part = { sequence, position: 399, rowCount: 1, plan: planBy(summary) };
    const { q, k, v } = stage.upload([part]);
    const elements = shape.headCount * shape.headDim;
    const random = new Random(SEED);
    const values = q.map(() => random.normals(elements));
    const out = poisoned(device, "out", elements);
    const other = poisoned(device, "other", elements);
    const run = async (between: (recorder: StepRecorder) => void) => {
      q.forEach((each, layer) => void device.write(each, 0, bytesOf(values[layer]!)));
      const names = await kernelsOf(device, () => {
        const recorder = device.begin([stage.sliceOf(part)]);
        for (const layer of [0, 1]) {
          const common = { pool: stage.pool, layer, headCount: shape.headCount, q: q[layer]! };
          recorder.append({ ...common, k: k[layer]!, v: v[layer]!, rope: stage.rope });
          if (layer === 1) between(recorder);
          recorder.select(common);
          recorder.attend({ ...common, out });
        }
        return recorder.submit();
      });
      return { names, attended: await results(device, out) };
    };
    const together = await run(() => {});
    const isAppendOrQueries = (name: string) => /append|quer/.test(name);
    // The first layer is dense: nobody scores its pages.
    expect(together.names.filter(isAppendOrQueries)).toEqual(["append", append]);
    const copied = await run((recorder) =>
      recorder.copyRows({ out: other, outRow: 0, x: q[1]!, xRow: 0, rows: 1, width: elements }),
    );
    expect(copied.names.filter(isAppendOrQueries)).toEqual(["append", append, ...apart]);
    expectSameBits(copied.attended, together.attended, "attention");
    // Other queries than those that append has seen are those that choose.
    const negated = await run(() => void device.write(q[1]!, 0, bytesOf(values[1]!.map((value) => -value))));
    expect(negated.names.filter(isAppendOrQueries)).toEqual(["append", append, ...apart]);
    expect(negated.attended).not.toEqual(together.attended);
  });
});
