/** Products of the same rows that follow each other: one dispatch of the GPU device with the bits of several, and none that joins where it must not. */
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { decodeStep } from "../../bench/gpu/host-time.ts";
import type { DeviceBuffer, Matrix, MatrixEncoding, StepRecorder } from "../../kernels/contract.ts";
import { adapterReport, requestAdapter } from "../../kernels/webgpu/adapter.ts";
import { Gpu } from "../../kernels/webgpu/gpu.ts";
import { type Lane, PLAIN_LANE } from "../../kernels/webgpu/kernel.ts";
import { openWebGpuDevice, WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { expectSameBits } from "./support/compare.ts";
import { bytesOf, poisoned, results, upload } from "./support/floats.ts";
import { kernelsOf, kernelsOfStep } from "./support/kernel-names.ts";
import { Random, SEED } from "./support/random.ts";

vi.setConfig({ testTimeout: 120_000 });
const hasAdapter = (await adapterForTests()) !== undefined;
const ENCODINGS: readonly MatrixEncoding[] = ["f32", "bf16", "f16", "int8", "int4"];
const IN_WIDTH = 300;

/** A device of its own, with these limits of the adapter's. */
async function deviceIn(lane: Lane, limits: Readonly<Record<string, number>> = {}): Promise<WebGpuDevice> {
  const adapter = await requestAdapter();
  const { maxComputeWorkgroupStorageSize, maxStorageBuffersPerShaderStage } = adapter.limits;
  const all = { maxComputeWorkgroupStorageSize, maxStorageBuffersPerShaderStage };
  const requiredFeatures: GPUFeatureName[] = lane.subgroups === "native" ? ["subgroups"] : [];
  const device = await adapter.requestDevice({ requiredFeatures, requiredLimits: { ...all, ...limits } });
  return new WebGpuDevice(new Gpu(device, lane), adapterReport(adapter), { settled: { lane, used: [], notes: [] } });
}

/** An input, and a product by each of some matrices. */
function stage(device: WebGpuDevice, encoding: MatrixEncoding, { rows, widths }: { rows: number; widths: number[] }) {
  const random = new Random(SEED + rows);
  const x = upload(device, "x", random.normals(rows * IN_WIDTH));
  const products = widths.map((outWidth) => {
    const data = random.normals(outWidth * IN_WIDTH);
    const matrix = device.matrix(`m${outWidth}`, encoding, { outWidth, inWidth: IN_WIDTH }, data);
    return { out: poisoned(device, `out of ${outWidth}`, rows * outWidth), x, matrix, rows };
  });
  return { x, products };
}

async function inTurn(device: WebGpuDevice, outs: readonly DeviceBuffer[]): Promise<Float32Array[]> {
  const all: Float32Array[] = [];
  for (const out of outs) all.push(await results(device, out));
  return all;
}

/** What the products begin with: nothing that may be read, or what is added to. */
function begin(device: WebGpuDevice, { products }: ReturnType<typeof stage>, accumulate: boolean): void {
  for (const { out, matrix, rows } of products) {
    const values = new Float32Array(rows * matrix.outWidth);
    device.write(out, 0, bytesOf(accumulate ? values.map((_, at) => at % 7) : values.fill(Number.NaN)));
  }
}

describe.skipIf(!hasAdapter)(`products that follow each other (seed ${SEED})`, () => {
  const devices = new Map<string, WebGpuDevice>();
  const LANES: Readonly<Record<string, Lane>> = {
    plain: PLAIN_LANE,
    "the adapter's subgroups": { ...PLAIN_LANE, subgroups: "native" },
    "subgroups of 32, simulated": { ...PLAIN_LANE, subgroups: { simulated: 32 } },
    "subgroup matrices, simulated": { ...PLAIN_LANE, matrix: { m: 16, n: 16, k: 16, isSimulated: true } },
  };
  beforeAll(async () => {
    for (const [name, lane] of Object.entries(LANES)) devices.set(name, await deviceIn(lane));
  });
  afterAll(async () => {
    for (const device of devices.values()) await device.close();
  });
  const plain = (): WebGpuDevice => devices.get("plain")!;

  // Widths that are no whole work groups, and matrices of one work group.
  const SHAPES = [
    { rows: 1, widths: [40, 24] },
    { rows: 1, widths: [37, 72, 8] },
    { rows: 3, widths: [72, 9, 20] },
    { rows: 8, widths: [72, 9, 20] },
    { rows: 37, widths: [70, 9, 33] },
  ];
  /** Lanes change products of few rows of integers, and subgroup matrices those of many (slow to compile where they are simulated). */
  const CASES = [
    ...ENCODINGS.flatMap((encoding) => SHAPES.map((shape) => ({ lane: "plain", encoding, ...shape }))),
    ...["the adapter's subgroups", "subgroups of 32, simulated"].flatMap((lane) =>
      SHAPES.slice(1, 4).map((shape) => ({ lane, encoding: "int4" as const, ...shape })),
    ),
    { lane: "subgroup matrices, simulated", encoding: "int4" as const, rows: 37, widths: [70, 9] },
  ];

  it.each(CASES)("$lane, $rows rows of $encoding by $widths: one dispatch with the bits of each", async (shape) => {
    const device = devices.get(shape.lane)!;
    const staged = stage(device, shape.encoding, shape);
    const { products } = staged;
    const outs = products.map(({ out }) => out);
    for (const accumulate of [false, true]) {
      begin(device, staged, accumulate);
      const apart: string[] = [];
      for (const each of products) {
        apart.push(...(await kernelsOfStep(device, (recorder) => recorder.matmul({ ...each, accumulate }))).slice(-1));
      }
      const expected = await inTurn(device, outs);
      begin(device, staged, accumulate);
      const together = await kernelsOfStep(device, (recorder) => {
        for (const each of products) recorder.matmul({ ...each, accumulate });
      });
      const input = shape.encoding.startsWith("int") ? "quantize_rows" : "pad_rows";
      expect(together).toEqual([input, `${apart[0]}_of_${products.length}`]);
      (await inTurn(device, outs)).forEach((values, index) => {
        expectSameBits(values, expected[index]!, `product ${index}`);
        expect(values.some((value) => value !== 0)).toBe(true);
      });
    }
  });

  it("two groups of 8 rows go to a work group where all matrices together have rows enough", async () => {
    const device = plain();
    const staged = stage(device, "int4", { rows: 3, widths: [4001, 4200] });
    const { products } = staged;
    const outs = products.map(({ out }) => out);
    for (const each of products)
      expect(await kernelsOfStep(device, (recorder) => recorder.matmul(each))).toContain("gemv_int4_4");
    const expected = await inTurn(device, outs);
    begin(device, staged, false);
    const names = await kernelsOfStep(device, (recorder) => {
      for (const each of products) recorder.matmul(each);
    });
    expect(names).toEqual(["quantize_rows", "gemv_int4_4x2_of_2"]);
    (await inTurn(device, outs)).forEach((values, index) => void expectSameBits(values, expected[index]!));
  });

  it("a layer of a decode step has 9 dispatches, and 2 of a selection", { timeout: 240_000 }, async () => {
    const device = await openWebGpuDevice();
    expect(device.adapter.storageBuffersMax).toBeGreaterThanOrEqual(11);
    const count = async (layerCount: number): Promise<number> => {
      const run = await decodeStep(device, { layerCount, batch: 1, contextTokens: 4096, policy: "quest" });
      return (await kernelsOf(device, run)).length;
    };
    // Norm; queries, keys and values; append; attention; merge; product; norm; gate, up and activation; product.
    expect((await count(3)) - (await count(2))).toBe(9 + 2);
    await device.close();
  });

  describe("do not join", () => {
    const widths = [24, 24, 16];
    const [Q, G] = ["quantize_rows", "gemv_int8_4"];
    /** What a step of these ops dispatches, by products of three rows. */
    async function joined(
      record: (recorder: StepRecorder, staged: ReturnType<typeof stage>) => void,
      device = plain(),
    ) {
      const staged = stage(device, "int8", { rows: 3, widths });
      return kernelsOfStep(device, (recorder) => record(recorder, staged));
    }

    it("beyond three", async () => {
      const names = await joined((recorder, { products: [a, b, c] }) => {
        const more = poisoned(plain(), "more", 3 * 24);
        for (const each of [a, b, c, { ...a!, out: more }]) recorder.matmul(each!);
      });
      expect(names).toEqual([Q, `${G}_of_3`, G]);
    });

    it("into one buffer, which the last of them writes", async () => {
      const device = plain();
      const { products } = stage(device, "int8", { rows: 3, widths });
      const [a, b] = products;
      await kernelsOfStep(device, (recorder) => recorder.matmul(b!));
      const expected = await results(device, b!.out);
      const names = await kernelsOfStep(device, (recorder) => {
        recorder.matmul({ ...a!, out: b!.out });
        recorder.matmul(b!);
      });
      expect(names).toEqual([Q, G, G]);
      expectSameBits(await results(device, b!.out), expected);
    });

    it("where one is added and the other is not", async () => {
      const names = await joined((recorder, { products: [a, b] }) => {
        recorder.matmul({ ...a!, accumulate: true });
        recorder.matmul(b!);
      });
      expect(names).toEqual([Q, G, G]);
    });

    it("of other rows, of fewer rows, or by a matrix of another encoding or width", async () => {
      const device = plain();
      const { x, products } = stage(device, "int8", { rows: 3, widths });
      const [a, b] = products;
      const other = upload(device, "other", new Float32Array(3 * IN_WIDTH).fill(1));
      const matrixOf = (encoding: MatrixEncoding, inWidth: number): Matrix =>
        device.matrix("other", encoding, { outWidth: 24, inWidth }, new Float32Array(24 * inWidth).fill(1));
      const second = [
        { it: { ...b!, x: other }, names: [Q, G] },
        { it: { ...b!, rows: 2 }, names: [Q, G] },
        { it: { ...b!, matrix: matrixOf("int4", IN_WIDTH) }, names: ["gemv_int4_4"] },
        { it: { ...b!, matrix: matrixOf("f32", IN_WIDTH) }, names: ["pad_rows", "gemv_f32_4"] },
        { it: { ...b!, matrix: matrixOf("int8", IN_WIDTH - 32) }, names: [Q, G] },
      ];
      for (const { it: product, names: behind } of second) {
        const names = await kernelsOfStep(device, (recorder) => {
          recorder.matmul(a!);
          recorder.matmul(product);
        });
        expect(names).toEqual([Q, G, ...behind]);
      }
      device.release(x);
    });

    it("over what another op reads or writes, or what comes from the host in between", async () => {
      const device = plain();
      const { x, products } = stage(device, "int8", { rows: 3, widths });
      const [a, b] = products;
      const copy = poisoned(device, "copy", 3 * 24);
      const names = await kernelsOfStep(device, (recorder) => {
        recorder.matmul(a!);
        recorder.copyRows({ out: copy, outRow: 0, x: a!.out, xRow: 0, rows: 3, width: 24 });
        recorder.matmul(b!);
        device.write(x, 0, bytesOf(new Float32Array(3 * IN_WIDTH)));
        recorder.matmul({ ...a!, matrix: b!.matrix });
      });
      expect(names).toEqual([Q, G, "copy4", G, Q, G]);
      expect((await results(device, b!.out)).some((value) => value !== 0)).toBe(true);
      expect((await results(device, a!.out)).every((value) => value === 0)).toBe(true);
      expect((await results(device, copy)).some((value) => value !== 0)).toBe(true);
    });

    it("where one makes what the next one reads", async () => {
      const device = plain();
      const square = stage(device, "int8", { rows: 3, widths: [IN_WIDTH, IN_WIDTH] });
      const [a, b] = square.products;
      const record = (recorder: StepRecorder) => {
        recorder.matmul(a!);
        recorder.matmul({ ...b!, x: a!.out });
      };
      expect(await kernelsOfStep(device, record)).toEqual([Q, G, Q, G]);
      const together = await results(device, b!.out);
      await kernelsOfStep(device, (recorder) => recorder.matmul(a!));
      await kernelsOfStep(device, (recorder) => recorder.matmul({ ...b!, x: a!.out }));
      expectSameBits(await results(device, b!.out), together);
    });

    it("a write between them comes behind a product that waits, also the first op of a step", async () => {
      const device = plain();
      const { x, products } = stage(device, "f32", { rows: 3, widths });
      const names = await kernelsOfStep(device, (recorder) => {
        recorder.matmul(products[0]!);
        device.write(x, 0, bytesOf(new Float32Array(3 * IN_WIDTH)));
      });
      expect(names).toEqual(["pad_rows", "gemv_f32_4"]);
      expect((await results(device, products[0]!.out)).some((value) => value !== 0)).toBe(true);
    });

    it("by a matrix in several buffers", async () => {
      const device = await openWebGpuDevice({ bindingBytesMax: 2 * 8 * 512, features: [] });
      const { products } = stage(device, "int8", { rows: 3, widths });
      const names = await kernelsOfStep(device, (recorder) => {
        for (const each of products) recorder.matmul(each);
      });
      // 24 rows are two parts, 16 are one.
      expect(names).toEqual([Q, G, G, G, G, G]);
      for (const { out } of products) await results(device, out);
      await device.close();
    });

    it("to more buffers than a kernel may have", async () => {
      const device = await deviceIn(PLAIN_LANE, { maxStorageBuffersPerShaderStage: 10 });
      const record = (recorder: StepRecorder, { products }: ReturnType<typeof stage>) => {
        for (const each of products) recorder.matmul(each);
      };
      expect(await joined(record, device)).toEqual([Q, `${G}_of_2`, G]);
      await device.close();
    });
  });

  describe("gate and up with the activation", () => {
    const EITHER = ["int8", "int4"] as const;
    const OUT_WIDTH = 24;

    /** Products by `gate` and `up`, `silu(gate) * up` in place, and the product of that by `down`. */
    function ffn(device: WebGpuDevice, encoding: MatrixEncoding, { rows, width }: { rows: number; width: number }) {
      const staged = stage(device, encoding, { rows, widths: [width, width] });
      const [gate, up] = staged.products;
      const data = new Random(SEED + width).normals(OUT_WIDTH * width);
      const matrix = device.matrix("down", encoding, { outWidth: OUT_WIDTH, inWidth: width }, data);
      const out = poisoned(device, "out", rows * OUT_WIDTH);
      const activate = (recorder: StepRecorder): void =>
        recorder.siluMul({ out: gate!.out, gate: gate!.out, up: up!.out, rows, width });
      const multiply = (recorder: StepRecorder): void => recorder.matmul({ out, x: gate!.out, matrix, rows });
      const outs = [gate!.out, up!.out, out];
      const clear = (): void => {
        begin(device, staged, false);
        device.write(out, 0, bytesOf(new Float32Array(rows * OUT_WIDTH).fill(Number.NaN)));
      };
      return { x: staged.x, gate: gate!, up: up!, out, outs, activate, multiply, clear };
    }

    // Fewer rows than a block, a block and more, whole rows of blocks without padding; two groups of rows of the input.
    const FFN_SHAPES = [
      { rows: 1, width: 20 },
      { rows: 1, width: 512 },
      { rows: 3, width: 72 },
      { rows: 7, width: 300 },
    ];
    const FFN_CASES = EITHER.flatMap((encoding) => FFN_SHAPES.map((shape) => ({ encoding, ...shape })));

    it.each(FFN_CASES)("$rows rows, $encoding, width $width: one dispatch with the bits of three", async (shape) => {
      const device = plain();
      const { gate, up, outs, activate, multiply, clear } = ffn(device, shape.encoding, shape);
      const apart: string[] = [];
      for (const each of [gate, up]) apart.push(...(await kernelsOfStep(device, (recorder) => recorder.matmul(each))));
      apart.push(...(await kernelsOfStep(device, activate)), ...(await kernelsOfStep(device, multiply)));
      const expected = await inTurn(device, outs);
      expect(apart).toHaveLength(7);
      const down = apart.at(-1);
      for (const [first, second] of [[gate, up] as const, [up, gate] as const]) {
        clear();
        const names = await kernelsOfStep(device, (recorder) => {
          recorder.matmul(first);
          recorder.matmul(second);
          activate(recorder);
          multiply(recorder);
        });
        const few = shape.rows === 1 ? 1 : shape.rows <= 4 ? 4 : 8;
        expect(names).toEqual(["quantize_rows", `gated_ffn_${shape.encoding}_${few}`, down]);
        (await inTurn(device, outs)).forEach((values, index) => {
          expectSameBits(values, expected[index]!, `${index} of gate, up and down`);
          expect(values.some((value) => value !== 0)).toBe(true);
        });
      }
    });

    it("layer behind layer: what one makes is what the next one reads, in other memory", async () => {
      const device = plain();
      const width = IN_WIDTH;
      const a = ffn(device, "int4", { rows: 2, width });
      const b = ffn(device, "int4", { rows: 2, width });
      /** The second reads what the first made, as codes; `between` keeps its ops apart. */
      const run = async (
        between: (recorder: StepRecorder) => void,
      ): Promise<{ names: string[]; values: Float32Array[] }> => {
        for (const each of [a, b]) each.clear();
        const names = await kernelsOfStep(device, (recorder) => {
          for (const each of [a.gate, a.up]) recorder.matmul(each);
          between(recorder);
          a.activate(recorder);
          between(recorder);
          for (const each of [b.gate, b.up]) recorder.matmul({ ...each, x: a.gate.out });
          between(recorder);
          b.activate(recorder);
          between(recorder);
          b.multiply(recorder);
        });
        return { names, values: await inTurn(device, [...a.outs.slice(0, 2), ...b.outs]) };
      };
      const one = poisoned(device, "one", 1);
      const apart = await run((recorder) =>
        recorder.copyRows({ out: one, outRow: 0, x: a.x, xRow: 0, rows: 1, width: 1 }),
      );
      const together = await run(() => {});
      expect(together.names).toEqual(["quantize_rows", "gated_ffn_int4_4", "gated_ffn_int4_4", "gemv_int4_4"]);
      together.values.forEach((values, index) => void expectSameBits(values, apart.values[index]!, `buffer ${index}`));
    });

    const [Q, PAIR, SILU] = ["quantize_rows", "gemv_int8_4_of_2", "silu_mul_in_place"];

    it("run one after the other where another op comes behind, or nothing", async () => {
      const device = plain();
      const { gate, up, outs, activate, multiply, clear } = ffn(device, "int8", { rows: 3, width: 72 });
      const pair = (recorder: StepRecorder): void => {
        for (const each of [gate, up]) recorder.matmul(each);
      };
      await kernelsOfStep(device, pair);
      await kernelsOfStep(device, activate);
      await kernelsOfStep(device, multiply);
      const expected = await inTurn(device, outs);
      const copy = poisoned(device, "copy", 3 * 72);
      const behind: { names: string[]; op: (recorder: StepRecorder) => void }[] = [
        { names: [], op: () => {} },
        {
          names: ["copy4"],
          op: (recorder) => recorder.copyRows({ out: copy, outRow: 0, x: up.out, xRow: 0, rows: 3, width: 72 }),
        },
      ];
      for (const { names, op } of behind) {
        clear();
        const all = await kernelsOfStep(device, (recorder) => {
          pair(recorder);
          activate(recorder);
          op(recorder);
        });
        expect(all).toEqual([Q, PAIR, SILU, ...names]);
        (await inTurn(device, outs.slice(0, 2))).forEach((values, at) => void expectSameBits(values, expected[at]!));
      }
      expectSameBits(await results(device, copy), expected[1]!);
    });

    it("are not taken for others: other rows, an output elsewhere, floats, many rows, fewer buffers", async () => {
      const device = plain();
      const few = ffn(device, "int8", { rows: 3, width: 72 });
      const rowsLess = await kernelsOfStep(device, (recorder) => {
        for (const each of [few.gate, few.up]) recorder.matmul(each);
        recorder.siluMul({ out: few.gate.out, gate: few.gate.out, up: few.up.out, rows: 2, width: 72 });
        few.multiply(recorder);
      });
      expect(rowsLess).toEqual([Q, PAIR, SILU, Q, "gemv_int8_4"]);
      const elsewhere = poisoned(device, "elsewhere", 3 * 72);
      const apart = await kernelsOfStep(device, (recorder) => {
        for (const each of [few.gate, few.up]) recorder.matmul(each);
        recorder.siluMul({ out: elsewhere, gate: few.gate.out, up: few.up.out, rows: 3, width: 72 });
      });
      expect(apart).toEqual([Q, PAIR, "silu_mul"]);
      const added = await kernelsOfStep(device, (recorder) => {
        for (const each of [few.gate, few.up]) recorder.matmul({ ...each, accumulate: true });
        few.activate(recorder);
        few.multiply(recorder);
      });
      expect(added).toEqual([Q, PAIR, "silu_mul_quantize", "gemv_int8_4"]);
      const all =
        ({ gate, up, activate, multiply }: ReturnType<typeof ffn>) =>
        (recorder: StepRecorder): void => {
          for (const each of [gate, up]) recorder.matmul(each);
          activate(recorder);
          multiply(recorder);
        };
      const floats = await kernelsOfStep(device, all(ffn(device, "f16", { rows: 3, width: 256 })));
      expect(floats).toEqual(["pad_rows", "gemv_f16_4_of_2", SILU, "gemv_f16_4"]);
      const many = await kernelsOfStep(device, all(ffn(device, "int8", { rows: 9, width: 72 })));
      expect(many).toEqual([Q, "gemm_int8_of_2", "silu_mul_quantize", "gemm_int8"]);
      const small = await deviceIn(PLAIN_LANE, { maxStorageBuffersPerShaderStage: 8 });
      const eight = await kernelsOfStep(small, all(ffn(small, "int8", { rows: 3, width: 72 })));
      expect(eight).toEqual([Q, PAIR, "silu_mul_quantize", "gemv_int8_4"]);
      await small.close();
    });
  });
});
