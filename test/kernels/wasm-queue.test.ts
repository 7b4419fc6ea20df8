/** Ops of the CPU device wait in a queue: whoever looks at memory in the middle of a step must not notice. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { shapeConfig } from "../../bench/shapes.ts";
import type { Device, Matrix, SelectionPlan } from "../../kernels/contract.ts";
import { openWasmDevice } from "../../kernels/wasm/open-wasm.ts";
import { ropeFrequencies } from "../../models/rope-frequencies.ts";
import { RopePositions } from "../../models/rope-table.ts";
import { markExercised } from "../exercised.ts";
import { poisoned, results, upload } from "./support/floats.ts";
import { Random, SEED } from "./support/random.ts";
import { makeSequence, Stage, type StageShape } from "./support/stage.ts";

type PagePlan = Extract<SelectionPlan, { kind: "pages" }>;

const WIDTH = 32;

describe.each([1, 2])("ops that wait, %i threads", (threads) => {
  markExercised("device", "wasm, queue");
  let device: Device;
  beforeAll(async () => {
    device = await openWasmDevice({ threads, sharedWorkMin: 0 });
  });
  afterAll(() => device.close());

  /** A matrix that multiplies by `factor`. */
  const scaling = (factor: number): Matrix => {
    const data = Float32Array.from({ length: WIDTH * WIDTH }, (_, i) => (i % (WIDTH + 1) === 0 ? factor : 0));
    return device.matrix(`times ${factor}`, "f32", { outWidth: WIDTH, inWidth: WIDTH }, data);
  };
  const ramp = (first: number): Float32Array => Float32Array.from({ length: WIDTH }, (_, i) => first + i);
  const times = (values: Float32Array, factor: number): Float32Array => values.map((value) => value * factor);
  const bytesOf = (values: Float32Array): Uint8Array => new Uint8Array(values.buffer);

  it("a write comes behind what was recorded before it, and before what follows", async () => {
    const x = upload(device, "x", ramp(1));
    const [before, after] = [poisoned(device, "before", WIDTH), poisoned(device, "after", WIDTH)];
    const step = device.begin([]);
    step.matmul({ out: before, x, matrix: scaling(2), rows: 1 });
    device.write(x, 0, bytesOf(ramp(100)));
    step.matmul({ out: after, x, matrix: scaling(3), rows: 1 });
    await step.submit();
    expect(await results(device, before)).toEqual(times(ramp(1), 2));
    expect(await results(device, after)).toEqual(times(ramp(100), 3));
  });

  it("memory that is given back in mid-step is not taken from an op that still reads it", async () => {
    const x = upload(device, "x", ramp(1));
    const out = poisoned(device, "out", WIDTH);
    const step = device.begin([]);
    step.matmul({ out, x, matrix: scaling(2), rows: 1 });
    device.release(x);
    upload(device, "in its place", ramp(1000));
    await step.submit();
    expect(await results(device, out)).toEqual(times(ramp(1), 2));
  });

  it("an input that a later op overwrites serves the products before it, and the new one those behind it", async () => {
    const x = upload(device, "x", ramp(1));
    const out = [2, 3, 5].map((factor) => poisoned(device, `times ${factor}`, WIDTH));
    const step = device.begin([]);
    step.matmul({ out: out[0]!, x, matrix: scaling(2), rows: 1 });
    step.matmul({ out: out[1]!, x, matrix: scaling(3), rows: 1 });
    step.copyRows({ out: x, outRow: 0, x: out[1]!, xRow: 0, rows: 1, width: WIDTH });
    step.matmul({ out: out[2]!, x, matrix: scaling(5), rows: 1 });
    await step.submit();
    expect(await results(device, out[0]!)).toEqual(times(ramp(1), 2));
    expect(await results(device, out[1]!)).toEqual(times(ramp(1), 3));
    expect(await results(device, out[2]!)).toEqual(times(ramp(1), 15));
  });

  it("products of one input into one output add up in order", async () => {
    // Wide, so that threads would be at several of them at once.
    const outWidth = 2048;
    const data = new Float32Array(outWidth * WIDTH).fill(1);
    const x = upload(device, "x", ramp(1));
    const sum = ramp(1).reduce((a, b) => a + b);
    const matrix = device.matrix("sums", "f32", { outWidth, inWidth: WIDTH }, data);
    for (let round = 0; round < 20; round++) {
      const out = poisoned(device, "out", outWidth);
      const step = device.begin([]);
      for (const accumulate of [false, true, true]) step.matmul({ out, x, matrix, rows: 1, accumulate });
      await step.submit();
      expect((await results(device, out)).every((value) => value === 3 * sum)).toBe(true);
    }
  });

  it.each(["f32", "bf16", "int8", "int4"] as const)(
    "products beside each other have the bits of products one by one, %s, widths that end inside of a panel",
    async (encoding) => {
      const random = new Random(SEED);
      const inWidth = 40;
      const normals = (length: number) => Float32Array.from({ length }, () => random.next() - 0.5);
      const matrices = [7, 100, 33, 8, 1, 260, 64, 9, 40].map((outWidth) =>
        device.matrix(`${outWidth}`, encoding, { outWidth, inWidth }, normals(outWidth * inWidth)),
      );
      for (const rows of [1, 3, 4, 70]) {
        const x = upload(device, "x", normals(rows * inWidth));
        const together = matrices.map(({ outWidth }) => poisoned(device, "together", rows * outWidth));
        const alone = matrices.map(({ outWidth }) => poisoned(device, "alone", rows * outWidth));
        const step = device.begin([]);
        matrices.forEach((matrix, i) => void step.matmul({ out: together[i]!, x, matrix, rows }));
        await step.submit();
        for (const [i, matrix] of matrices.entries()) {
          const single = device.begin([]);
          single.matmul({ out: alone[i]!, x, matrix, rows });
          await single.submit();
          expect(await results(device, together[i]!), `${rows} rows, ${matrix.outWidth}`).toEqual(
            await results(device, alone[i]!),
          );
        }
      }
    },
  );

  it("a step of more ops than the queue holds is whole", async () => {
    const buffers = [upload(device, "even", ramp(1)), poisoned(device, "odd", WIDTH)];
    const negate = scaling(-1);
    const step = device.begin([]);
    for (let i = 0; i < 1001; i++)
      step.matmul({ out: buffers[(i + 1) % 2]!, x: buffers[i % 2]!, matrix: negate, rows: 1 });
    await step.submit();
    expect(await results(device, buffers[1]!)).toEqual(times(ramp(1), -1));
  });

  it("a pool that is read in mid-step holds what was appended, one that is written what was there before", async () => {
    const config = { ...shapeConfig("tiny"), contextTokensMax: 128 };
    const { layerCount, headCount, kvHeadCount, headDim } = config;
    const pool = device.kvPool({
      ...{ layerCount, kvHeadCount, headDim, encoding: "int8", summaryKinds: ["min-max"] },
      ...{ blockCount: 2 * layerCount, openSlotCount: 1, summarySlotCount: 2 },
    });
    const rope = new RopePositions(device, { ...ropeFrequencies(config), positionCount: config.contextTokensMax });
    rope.ensure(0, 127);
    const random = new Random(SEED);
    const filled = (label: string, heads: number) =>
      upload(
        device,
        label,
        Float32Array.from({ length: 64 * heads * headDim }, () => random.next() - 0.5),
      );
    const [q, k, v] = [filled("q", headCount), filled("k", kvHeadCount), filled("v", kvHeadCount)];
    const append = async (look: () => Promise<Uint8Array>) => {
      const step = device.begin([
        {
          ...{ position: 0, rowCount: 64, blockCapacity: 2, plan: { kind: "dense" } },
          ...{ openSlots: Int32Array.of(0), groupStarts: Int32Array.of(0), summarySlots: Int32Array.of(0, 1) },
          blockIds: Int32Array.from({ length: 2 * layerCount }, (_, i) => i),
        },
      ]);
      for (let layer = 0; layer < layerCount; layer++)
        step.append({ pool, layer, headCount, q, k, v, rope: rope.table });
      const seen = await look();
      await step.submit();
      return seen;
    };
    const block = await append(() => pool.readBlock(2));
    expect(block).toEqual(await pool.readBlock(2));
    expect(block.some((byte) => byte !== 0)).toBe(true);
    pool.writeBlock(2, new Uint8Array(pool.blockBytes));
    pool.writeSummary(0, "min-max", new Uint8Array(pool.summaryBytes));
    const [summary, open] = [
      await append(() => pool.readSummary(0, "min-max")),
      await append(() => pool.readOpen(0, 64)),
    ];
    expect(summary).toEqual(await pool.readSummary(0, "min-max"));
    expect(summary.some((byte) => byte !== 0)).toBe(true);
    expect(open).toEqual(await pool.readOpen(0, 64));
    const mark = new Uint8Array(pool.blockBytes).fill(7);
    await append(async () => {
      pool.writeBlock(2, mark);
      return mark;
    });
    expect(await pool.readBlock(2)).toEqual(mark);
  });

  const shape: StageShape = {
    ...{ layerCount: 4, headCount: 4, kvHeadCount: 2, headDim: 16 },
    ...{ encoding: "int8", summaryKinds: ["min-max"] },
  };
  const plan: PagePlan = {
    ...{
      kind: "pages",
      budgetPages: 12,
      sinkPages: 1,
      recentPages: 2,
      scorer: { summary: "min-max", radiusWeight: 1 },
    },
    ...{ combine: "max", scope: "kv-head" },
  };

  it.each<[string, Partial<PagePlan>, { block: number; layer?: number }[]]>([
    ["every block is there", {}, []],
    [
      "blocks are missing in some layers",
      {},
      [
        { block: 3, layer: 1 },
        { block: 5, layer: 2 },
        { block: 8, layer: 3 },
      ],
    ],
    ["blocks are missing in all layers", { combine: "softmax-sum" }, [{ block: 2 }, { block: 7 }]],
    ["the share of the weight counts", { combine: "softmax-sum", massShare: 0.5 }, []],
    ["layers take over a choice", { layersPerChoice: 2 }, [{ block: 4, layer: 3 }]],
    ["a layer attends to everything", { denseLayers: 1 }, [{ block: 4, layer: 0 }]],
  ])(
    "a step that nobody looks into gives what one gives that is looked into after every op: %s",
    async (_, how, absent) => {
      const stage = new Stage(device, shape, { blockCapacity: 24 });
      const sequences = [1, 2].map((seed) => makeSequence(shape, 12 * 64, seed));
      for (const sequence of sequences) await stage.fill(sequence, 11 * 64);
      const parts = sequences.map((sequence) => {
        return { sequence, position: 11 * 64, rowCount: 3, plan: { ...plan, ...how }, absent };
      });
      const looked = await stage.run(parts);
      const { headCount, layerCount } = shape;
      const { q, k, v } = stage.upload(parts);
      const out = q.map(() => poisoned(device, "out", 6 * headCount * shape.headDim));
      const recorder = device.begin(parts.map((part) => stage.sliceOf(part)));
      for (let layer = 0; layer < layerCount; layer++) {
        const rows = { pool: stage.pool, layer, headCount, q: q[layer]! };
        recorder.append({ ...rows, k: k[layer]!, v: v[layer]!, rope: stage.rope });
        recorder.select(rows);
        recorder.attend({ ...rows, out: out[layer]! });
      }
      expect(await recorder.submit()).toEqual(looked.readback);
      expect(looked.readback.misses.length > 0).toBe(absent.length > 0);
      for (const [layer, buffer] of out.entries()) {
        const rows = Float32Array.from(looked.out.flatMap((layers) => [...layers[layer]!]));
        expect(await results(device, buffer), `layer ${layer}`).toEqual(rows);
      }
    },
  );
});
