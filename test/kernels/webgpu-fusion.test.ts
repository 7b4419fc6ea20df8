/** Ops that the GPU device runs together with the quantization of what they make: the same bits, fewer dispatches, and nothing forgotten. */
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import type { DeviceBuffer, StepRecorder } from "../../kernels/contract.ts";
import { type Kernel, read, write } from "../../kernels/webgpu/kernel.ts";
import { openWebGpuDevice, type WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { EXACT_DIVIDE } from "../../kernels/webgpu/wgsl/exact-math.ts";
import { adapterForTests } from "../support/software-gpu.ts";
import { expectSameBits } from "./support/compare.ts";
import { bytesOf, poisoned, results, upload } from "./support/floats.ts";
import { kernelsOf, kernelsOfStep } from "./support/kernel-names.ts";
import { Random, SEED } from "./support/random.ts";
import { runOver } from "./support/run-kernel.ts";
import { makeSequence, Stage, type StageShape } from "./support/stage.ts";

vi.setConfig({ testTimeout: 120_000 });
const hasAdapter = (await adapterForTests()) !== undefined;
const OUT_WIDTH = 24;

const gemvOf = (encoding: string, rows: number): string => `gemv_${encoding}_${rows === 1 ? 1 : 4}`;

/** Ops that may wait for the product behind them; `made` begins as `x`. */
const OPS = {
  rmsNorm: { alone: (width: number) => `rms_norm_${width <= 256 ? 64 : 256}` },
  siluMul: { alone: () => "silu_mul_in_place" },
};
const FUSED = {
  rmsNorm: (width: number) => `${OPS.rmsNorm.alone(width)}_quantize`,
  siluMul: () => "silu_mul_quantize",
};

describe.skipIf(!hasAdapter)(`ops in front of a product (seed ${SEED})`, () => {
  let device: WebGpuDevice;
  beforeAll(async () => {
    device = await openWebGpuDevice();
  });
  afterAll(() => device.close());

  /** Buffers and ops of one case. */
  function stage(op: keyof typeof OPS, encoding: "int8" | "int4" | "f32", { rows, width }: (typeof SHAPES)[number]) {
    const random = new Random(SEED + width);
    const x = upload(device, "x", random.normals(rows * width, 3));
    const other = upload(device, "weight or up", random.normals(op === "rmsNorm" ? width : rows * width));
    const made = poisoned(device, "made", rows * width);
    const out = poisoned(device, "product", rows * OUT_WIDTH);
    const matrix = device.matrix(
      "m",
      encoding,
      { outWidth: OUT_WIDTH, inWidth: width },
      random.normals(OUT_WIDTH * width),
    );
    const make = (recorder: StepRecorder) => {
      if (op === "rmsNorm") recorder.rmsNorm({ out: made, x, weight: other, rows, width, eps: 1e-5 });
      else recorder.siluMul({ out: made, gate: made, up: other, rows, width });
    };
    /** Sets what siluMul changes in place. */
    const begin = (recorder: StepRecorder) => {
      if (op === "siluMul") recorder.copyRows({ out: made, outRow: 0, x, xRow: 0, rows, width });
    };
    const multiply = (recorder: StepRecorder, to: DeviceBuffer = out) =>
      recorder.matmul({ out: to, x: made, matrix, rows });
    return { x, other, made, out, matrix, make, begin, multiply };
  }

  const SHAPES = [
    { rows: 1, width: 33 },
    { rows: 3, width: 256 },
    { rows: 2, width: 1100 },
  ];
  const CASES = (["rmsNorm", "siluMul"] as const).flatMap((op) =>
    (["int8", "int4"] as const).flatMap((encoding) => SHAPES.map((shape) => ({ op, encoding, ...shape }))),
  );

  it.each(CASES)(
    "$op, $rows rows of $width, $encoding: one dispatch with the bits of two",
    async ({ op, encoding, ...shape }) => {
      const { begin, make, multiply, made, out } = stage(op, encoding, shape);
      const apart = await kernelsOfStep(device, (recorder) => {
        begin(recorder);
        make(recorder);
      });
      expect(apart.at(-1)).toBe(OPS[op].alone(shape.width));
      const values = await results(device, made);
      expect(await kernelsOfStep(device, multiply)).toEqual(["quantize_rows", gemvOf(encoding, shape.rows)]);
      const product = await results(device, out);
      expect(product.some((value) => value !== 0)).toBe(true);
      device.write(out, 0, bytesOf(new Float32Array(product.length).fill(Number.NaN)));
      const together = await kernelsOfStep(device, (recorder) => {
        begin(recorder);
        make(recorder);
        multiply(recorder);
        multiply(recorder);
      });
      expect(together.slice(-3)).toEqual([
        FUSED[op](shape.width),
        gemvOf(encoding, shape.rows),
        gemvOf(encoding, shape.rows),
      ]);
      expectSameBits(await results(device, made), values, "what the op made");
      expectSameBits(await results(device, out), product, "the product");
      const again = await kernelsOfStep(device, (recorder) => {
        multiply(recorder);
        make(recorder);
        multiply(recorder);
      });
      // What was quantized before the op wrote its buffer anew is no input of the product behind.
      expect(again).toEqual([
        ...["quantize_rows", gemvOf(encoding, shape.rows)],
        ...[FUSED[op](shape.width), gemvOf(encoding, shape.rows)],
      ]);
    },
  );

  it("an op whose result goes elsewhere runs by itself, before what reads or writes its buffers", async () => {
    const shape = { rows: 2, width: 64 };
    const { other, made, out, make, multiply } = stage("rmsNorm", "int8", shape);
    const copy = poisoned(device, "copy", 2 * 64);
    const names = await kernelsOfStep(device, (recorder) => {
      make(recorder);
      // Goes between the ops: the norm has read the weight that was there.
      device.write(other, 0, bytesOf(new Float32Array(64)));
      multiply(recorder);
      make(recorder);
      recorder.copyRows({ out: copy, outRow: 0, x: made, xRow: 0, rows: 2, width: 64 });
      make(recorder);
      recorder.rmsNorm({ out: copy, x: made, weight: other, rows: 2, width: 64, eps: 1 });
    });
    const norm = "rms_norm_64";
    expect(names).toEqual([norm, "quantize_rows", "gemv_int8_4", norm, "copy4", norm, norm]);
    expect((await results(device, out)).some((value) => value !== 0)).toBe(true);
    expect((await results(device, copy)).every((value) => value === 0)).toBe(true);
  });

  it("a product of floats, or of fewer rows, has its input made by itself", async () => {
    const floats = stage("rmsNorm", "f32", { rows: 2, width: 256 });
    const names = await kernelsOfStep(device, (recorder) => {
      floats.make(recorder);
      floats.multiply(recorder);
    });
    expect(names).toEqual(["rms_norm_64", "gemv_f32_4"]);
    const codes = stage("rmsNorm", "int8", { rows: 2, width: 64 });
    const fewer = await kernelsOfStep(device, (recorder) => {
      codes.make(recorder);
      recorder.matmul({ out: codes.out, x: codes.made, matrix: codes.matrix, rows: 1 });
    });
    expect(fewer).toEqual(["rms_norm_64", "quantize_rows", "gemv_int8_1"]);
  });

  describe("the merge of attention's splits", () => {
    /** Three rows of a sequence, the last one in the next block, and one of another; three splits and two. */
    function attention(encoding: "f32" | "int8", headCount: number, headDim: number) {
      const shape: StageShape = {
        ...{ layerCount: 1, headCount, kvHeadCount: 2, headDim, encoding, summaryKinds: [] },
      };
      const stage = new Stage(device, shape, { blockCapacity: 30 });
      const parts = [
        { sequence: makeSequence(shape, 1100, SEED), position: 1086, rowCount: 3 },
        { sequence: makeSequence(shape, 600, SEED + 1), position: 599, rowCount: 1 },
      ];
      const [rows, width] = [4, headCount * headDim];
      const random = new Random(SEED);
      const matrix = device.matrix(
        "m",
        "int4",
        { outWidth: OUT_WIDTH, inWidth: width },
        random.normals(OUT_WIDTH * width),
      );
      const attended = poisoned(device, "attended", rows * width);
      const out = poisoned(device, "product", rows * OUT_WIDTH);
      // Leaves rows of codes whose scales are no numbers where those of the product will lie.
      const wide = 2048;
      const wild = upload(device, "wild", new Float32Array(rows * wide).fill(Number.POSITIVE_INFINITY));
      const before = device.matrix("before", "int8", { outWidth: 8, inWidth: wide }, random.normals(8 * wide));
      const ignored = device.buffer("ignored", rows * 8 * 4);
      const run = async (between: (recorder: StepRecorder) => void): Promise<string[]> => {
        const { q, k, v } = stage.upload(parts);
        const names = await kernelsOf(device, () => {
          const recorder = device.begin(parts.map((part) => stage.sliceOf(part)));
          const common = { pool: stage.pool, layer: 0, headCount, q: q[0]! };
          recorder.matmul({ out: ignored, x: wild, matrix: before, rows });
          recorder.append({ ...common, k: k[0]!, v: v[0]!, rope: stage.rope });
          recorder.select(common);
          recorder.attend({ ...common, out: attended });
          between(recorder);
          recorder.matmul({ out, x: attended, matrix, rows });
          return recorder.submit();
        });
        return names.slice(names.findIndex((name) => name.startsWith("attend")) + 1);
      };
      const fill = async (): Promise<void> => {
        for (const { sequence, position } of parts) await stage.fill(sequence, position);
      };
      return { run, fill, attended, out, rows, width };
    }

    // 192 channels are padded to 256, 512 are as they are; heads of 80 are no whole blocks.
    it.each([
      { encoding: "int8", headCount: 6, headDim: 32 },
      { encoding: "f32", headCount: 4, headDim: 128 },
    ] as const)(
      "$headCount heads of $headDim over $encoding: with the input of the product behind, to the bit",
      async (shape) => {
        const { run, fill, attended, out, rows, width } = attention(shape.encoding, shape.headCount, shape.headDim);
        await fill();
        const copy = poisoned(device, "copy", rows * width);
        const merge = `merge_splits_${shape.headDim}`;
        const apart = await run((recorder) =>
          recorder.copyRows({ out: copy, outRow: 0, x: attended, xRow: 0, rows, width }),
        );
        expect(apart).toEqual([merge, "copy4", "quantize_rows", "gemv_int4_4"]);
        const [values, product] = [await results(device, attended), await results(device, out)];
        expect(product.some((value) => value !== 0)).toBe(true);
        for (const each of [attended, out]) {
          device.write(each, 0, bytesOf(new Float32Array(each.bytes / 4).fill(Number.NaN)));
        }
        expect(await run(() => {})).toEqual([`${merge}_quantize`, "gemv_int4_4"]);
        expectSameBits(await results(device, attended), values, "what attention gives");
        expectSameBits(await results(device, out), product, "the product");
      },
    );

    it("runs by itself where a head is not whole blocks", async () => {
      const { run, fill, out } = attention("int8", 4, 80);
      await fill();
      expect(await run(() => {})).toEqual(["merge_splits_80", "quantize_rows", "gemv_int4_4"]);
      expect((await results(device, out)).some((value) => value !== 0)).toBe(true);
    });
  });

  it.each([
    ["as it divides", "1.0"],
    ["2.5 units of the last place too high", "1.0000003"],
    ["too low", "0.9999997"],
  ])("codes are the nearest integers of exact quotients, halves to even: a GPU %s", async (_, error) => {
    const count = 1 << 16;
    const random = new Random(SEED);
    const scales = Float32Array.from({ length: count }, () =>
      Math.fround((1 + random.next()) * 2 ** (random.integer(120) - 60)),
    );
    // Every third lies on the middle between two codes as nearly as f32 can say.
    const x = scales.map((scale, at) => {
      if (at % 3 === 0) return scale * (random.integer(256) - 128 + 0.5);
      return scale * (random.next() * 260 - 130);
    });
    x.set([0, 5, -5, 1e-44]);
    scales.set([1, 0, 0, 1]);
    const expected = Int32Array.from(x, (value, at) => codeOf(value, scales[at]!));
    const codes = new Int32Array(await runOver(codesOf(error), [x, scales]));
    expectSameBits(codes, expected);
  });
});

/** `out[i] = int8_code(x[i], scales[i])`. */
const codesOf = (error: string): Kernel => ({
  name: "test_codes",
  params: {},
  bindings: { x: read("f32"), scales: read("f32"), out: write("i32") },
  code: /* wgsl */ `
${EXACT_DIVIDE.replace("x / scale", `x / scale * ${error}`)}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x < arrayLength(&out)) { out[id.x] = int8_code(x[id.x], scales[id.x]); }
}
`,
});

/** The quotient rounded to f32, then to the nearest integer, halves to even. */
function codeOf(value: number, scale: number): number {
  if (scale === 0) return 0;
  const quotient = Math.fround(value / scale);
  const low = Math.floor(quotient);
  const rest = quotient - low;
  const nearest = rest > 0.5 || (rest === 0.5 && low % 2 !== 0) ? low + 1 : low;
  return Math.max(-127, Math.min(127, nearest)) + 0;
}
