/** Conformance of the row ops: embed, rmsNorm, matmul, siluMul, copyRows, gatherRows. */
import { describe, expect, it } from "vitest";
import type { Device, DeviceBuffer, Matrix, MatrixEncoding, StepRecorder } from "../../../kernels/contract.ts";
import { AssertionError } from "../../../protocol/assert.ts";
import { expectClose, expectSameBits } from "../support/compare.ts";
import { poisoned, results, upload } from "../support/floats.ts";
import type { Lane } from "../support/lane.ts";
import { Random, SEED } from "../support/random.ts";

const ENCODINGS = ["f32", "bf16", "f16", "int8", "int4"] as const satisfies MatrixEncoding[];

/** Runs one op on one device with fresh, poisoned output. */
async function run(
  device: Device,
  outElements: number,
  inputs: readonly Float32Array[],
  record: (recorder: StepRecorder, out: DeviceBuffer, inputs: DeviceBuffer[]) => void,
): Promise<Float32Array<ArrayBuffer>> {
  const out = poisoned(device, "out", outElements);
  const buffers = inputs.map((values, index) => upload(device, `input ${index}`, values));
  const recorder = device.begin([]);
  record(recorder, out, buffers);
  await recorder.submit();
  const values = await results(device, out);
  for (const buffer of [out, ...buffers]) device.release(buffer);
  return values;
}

/** Row ops against f64 and the reference, on odd sizes and extreme values. */
export function describeRowOps(lane: Lane): void {
  describe(`row ops (seed ${SEED})`, () => {
    describeEmbed(lane);
    describeNorm(lane);
    describeMatmul(lane);
    describeMatrixPieces(lane);
    describeSilu(lane);
    describeCopies(lane);
  });
}

function describeEmbed(lane: Lane): void {
  it.each(ENCODINGS)("embed, %s, odd widths, repeated and last ids", async (encoding) => {
    const random = new Random(SEED);
    for (const inWidth of [1, 5, 32, 33, 64, 100]) {
      const data = random.normals(11 * inWidth);
      // Of two weights that are largest in size the first counts.
      for (const [row, largest] of inWidth < 5
        ? []
        : ([
            [3, 9],
            [7, -9],
          ] as const)) {
        data[row * inWidth + 1] = largest;
        data[row * inWidth + 3] = -largest;
      }
      const tokens = Uint32Array.from([10, 0, 3, 3, 7]);
      const lookUp = (device: Device) => {
        const table = device.matrix("table", encoding, { outWidth: 11, inWidth }, data);
        return run(device, tokens.length * inWidth, [], (recorder, out) => recorder.embed({ out, table, tokens }));
      };
      const rows = Float32Array.from([...tokens].flatMap((token) => [...decodedRow(data, token, inWidth, encoding)]));
      const actual = await lookUp(lane.device());
      expectSameBits(actual, rows, `width ${inWidth}, against the definition`);
      expectSameBits(actual, await lookUp(lane.reference()), `width ${inWidth}, against the reference`);
    }
  });
}

/** Adding and taking away 1.5 * 2^23 in f32 rounds to the nearest integer, halves to even. */
function rint(value: number): number {
  return Math.fround(Math.fround(value + 12_582_912) - 12_582_912);
}

/** Codes and scales of a row by the definition in the contract. */
function quantizedRow(row: Float32Array, encoding: "int8" | "int4"): { codes: number[]; scales: number[] } {
  const scales: number[] = [];
  const codes = Array.from(row, (value, index) => {
    const start = index - (index % 32);
    if (index === start) {
      const block = Array.from(row.subarray(start, start + 32));
      const largest = block.find((each) => Math.abs(each) === Math.max(...block.map(Math.abs)))!;
      scales.push(Math.fround(encoding === "int8" ? Math.abs(largest) / 127 : largest / -8));
    }
    const scale = scales.at(-1)!;
    const code = scale === 0 ? 0 : rint(Math.fround(value / scale));
    return encoding === "int8" ? code : Math.min(7, code);
  });
  return { codes, scales };
}

/** The nearest of the f32 values whose lower half is zero; of two, the one with an even upper half. */
function bf16(value: number): number {
  const view = new DataView(new ArrayBuffer(4));
  view.setFloat32(0, value);
  const upper = view.getUint16(0);
  const [down, up] = [upper, upper + 1].map((half) => {
    view.setUint32(0, half * 65536);
    return view.getFloat32(0);
  }) as [number, number];
  const nearer = Math.abs(value - down) - Math.abs(up - value);
  return nearer < 0 || (nearer === 0 && upper % 2 === 0) ? down : up;
}

/** Of all f16, smallest first, the nearest; of two, the one whose pattern is even. */
function f16(value: number): number {
  const magnitude = Math.abs(value);
  if (magnitude > 65504) return Math.sign(value) * 65504;
  let [below, upper] = [-1, F16_VALUES.length - 1];
  while (upper - below > 1) {
    const middle = (below + upper) >> 1;
    if (F16_VALUES[middle]! >= magnitude) upper = middle;
    else below = middle;
  }
  const [up, down] = [F16_VALUES[upper]!, F16_VALUES[Math.max(0, upper - 1)]!];
  const nearer = magnitude - down - (up - magnitude);
  const isDown = nearer < 0 || (nearer === 0 && upper % 2 === 1);
  return Math.sign(value) * (isDown ? down : up);
}

const F16_VALUES = Float64Array.from({ length: 0x7c00 }, (_, bits) =>
  bits < 1024 ? bits * 2 ** -24 : (1024 + (bits % 1024)) * 2 ** (Math.floor(bits / 1024) - 25),
);

function decodedRow(data: Float32Array, row: number, width: number, encoding: MatrixEncoding): Float32Array {
  const values = data.slice(row * width, (row + 1) * width);
  if (encoding === "f32") return values;
  if (encoding === "bf16") return values.map(bf16);
  if (encoding === "f16") return values.map(f16);
  const { codes, scales } = quantizedRow(values, encoding);
  return Float32Array.from(codes, (code, index) => code * scales[Math.floor(index / 32)]!);
}

function describeNorm(lane: Lane): void {
  it("rmsNorm, odd widths, tiny and zero rows", async () => {
    const random = new Random(SEED);
    for (const width of [1, 3, 7, 16, 20, 33, 128, 352]) {
      const shape = { rows: 4, width, eps: 1e-5 };
      const x = random.normals(4 * width);
      x.fill(0, width, 2 * width);
      for (let at = 2 * width; at < 3 * width; at++) x[at] = x[at]! * 1e-3;
      const weight = random.normals(width);
      const normalize = (device: Device) =>
        run(device, 4 * width, [x, weight], (recorder, out, [x, weight]) =>
          recorder.rmsNorm({ out, x: x!, weight: weight!, ...shape }),
        );
      const actual = await normalize(lane.device());
      const expected = Array.from(x, (value, at) => {
        const row = x.subarray(at - (at % width), at - (at % width) + width);
        const mean = row.reduce((sum, each) => sum + each * each, 0) / width;
        return (value / Math.sqrt(mean + shape.eps)) * weight[at % width]!;
      });
      const bound = { relative: lane.tolerances.elementwise };
      expectClose(actual, expected, bound, `width ${width}, against f64`);
      expectClose(actual, await normalize(lane.reference()), bound, `width ${width}, against the reference`);
    }
  });
}

const PRODUCT_SHAPES = [
  { rows: 1, inWidth: 1, outWidth: 1 },
  { rows: 1, inWidth: 3, outWidth: 5 },
  { rows: 2, inWidth: 7, outWidth: 9 },
  { rows: 3, inWidth: 31, outWidth: 17 },
  { rows: 5, inWidth: 33, outWidth: 33 },
  { rows: 4, inWidth: 64, outWidth: 8 },
  { rows: 8, inWidth: 100, outWidth: 260 },
  { rows: 9, inWidth: 128, outWidth: 352 },
  { rows: 1, inWidth: 352, outWidth: 128 },
  { rows: 33, inWidth: 20, outWidth: 50 },
  { rows: 70, inWidth: 40, outWidth: 24 },
];

function describeMatmul(lane: Lane): void {
  describe.each(ENCODINGS)("matmul, %s", (encoding) => {
    it.each(PRODUCT_SHAPES)("$rows rows, $inWidth to $outWidth", async ({ rows, inWidth, outWidth }) => {
      const random = new Random(SEED + rows * 1000 + inWidth);
      const weights = random.normals(outWidth * inWidth);
      const x = random.normals(rows * inWidth);
      x[random.integer(x.length)] = 60;
      if (rows > 2) x.fill(0, inWidth, 2 * inWidth);
      const start = random.normals(rows * outWidth);
      const multiply = (device: Device, accumulate: boolean) => {
        const matrix = device.matrix("weights", encoding, { outWidth, inWidth }, weights);
        return run(device, rows * outWidth, [x, start], (recorder, out, [x, start]) => {
          if (accumulate) recorder.copyRows({ out, outRow: 0, x: start!, xRow: 0, rows, width: outWidth });
          recorder.matmul({ out, x: x!, matrix, rows, accumulate });
        });
      };
      const { product, magnitudes } = plainProduct(x, weights, { rows, inWidth, outWidth, encoding });
      const isFloat = encoding !== "int8" && encoding !== "int4";
      const relative = isFloat ? lane.tolerances.matmul : lane.tolerances.matmulInt8;
      const bound = { relative, scale: magnitudes };
      const actual = await multiply(lane.device(), false);
      expectClose(actual, product, { ...bound, relative: Math.max(relative, 2e-6) }, "against f64");
      expectClose(actual, await multiply(lane.reference(), false), bound, "against the reference");
      const added = await multiply(lane.device(), true);
      expectSameBits(
        added,
        start.map((value, index) => value + actual[index]!),
        "accumulate adds the finished product",
      );
    });
  });
}

function describeMatrixPieces(lane: Lane): void {
  it.each(ENCODINGS)(
    "a matrix of %s written in pieces, or copied packed, is the matrix written whole, to the bit",
    async (encoding) => {
      const random = new Random(SEED);
      const shape = { outWidth: 45, inWidth: 70 };
      const { outWidth, inWidth } = shape;
      const weights = random.normals(outWidth * inWidth);
      const x = random.normals(3 * inWidth);
      const device = lane.device();
      const multiply = (matrix: Matrix) =>
        run(device, 3 * outWidth, [x], (recorder, out, [x]) => recorder.matmul({ out, x: x!, matrix, rows: 3 }));
      const pieces = device.emptyMatrix("pieces", encoding, shape);
      for (const [first, end] of [
        [24, 45],
        [0, 8],
        [8, 24],
      ] as const) {
        device.writeRows(pieces, first, weights.slice(first * inWidth, end * inWidth));
      }
      expectSameBits(await multiply(pieces), await multiply(device.matrix("whole", encoding, shape, weights)));
      const copy = device.emptyMatrix("copy", encoding, shape);
      expect(copy.packedBytes).toBe(pieces.packedBytes);
      const half = Math.floor(copy.packedBytes / 2);
      for (const [at, bytes] of [
        [half, copy.packedBytes - half],
        [0, half],
      ] as const) {
        device.writePacked(copy, at, await device.readPacked(pieces, at, bytes));
      }
      expectSameBits(await multiply(copy), await multiply(pieces));
      const packedBehind = async (before: Float32Array): Promise<Uint8Array> => {
        device.matrix("before", encoding, shape, before);
        const few = device.matrix("few", encoding, { outWidth: 21, inWidth }, weights.slice(0, 21 * inWidth));
        return device.readPacked(few, 0, few.packedBytes);
      };
      const zeros = new Float32Array(weights.length);
      expectSameBits(
        await packedBehind(weights),
        await packedBehind(zeros),
        "padding is nothing that was there before",
      );
      expect(() => device.writePacked(copy, copy.packedBytes, Uint8Array.of(0))).toThrow(AssertionError);
      await expect(device.readPacked(copy, -1, 1)).rejects.toThrow(AssertionError);
      const rows = (count: number) => new Float32Array(count * inWidth);
      for (const [first, data] of [
        [4, rows(8)],
        [0, rows(7)],
        [40, rows(8)],
        [48, rows(8)],
        [-8, rows(8)],
        [0, rows(0)],
        [0, new Float32Array(8 * inWidth - 1)],
      ] as const) {
        expect(() => device.writeRows(pieces, first, data)).toThrow(AssertionError);
      }
    },
  );
}

interface ProductShape {
  rows: number;
  inWidth: number;
  outWidth: number;
  encoding: MatrixEncoding;
}

/** The product in f64 of what the encoding leaves of both sides, and the sums of |x||w|. */
function plainProduct(x: Float32Array, weights: Float32Array, { rows, inWidth, outWidth, encoding }: ProductShape) {
  const decode = (data: Float32Array, count: number, encoding: MatrixEncoding): Float32Array[] =>
    Array.from({ length: count }, (_, row) => decodedRow(data, row, inWidth, encoding));
  const isFloat = encoding !== "int8" && encoding !== "int4";
  const inputs = decode(x, rows, isFloat ? "f32" : "int8");
  const outputs = decode(weights, outWidth, encoding);
  const product = inputs.flatMap((a) => outputs.map((b) => a.reduce((sum, value, k) => sum + value * b[k]!, 0)));
  const magnitudes = inputs.flatMap((a) => outputs.map((b) => a.reduce((sum, v, k) => sum + Math.abs(v * b[k]!), 0)));
  return { product, magnitudes };
}

function describeSilu(lane: Lane): void {
  it("siluMul, odd sizes, large gates, in place and not", async () => {
    const random = new Random(SEED);
    for (const { rows, width } of [
      { rows: 1, width: 1 },
      { rows: 3, width: 7 },
      { rows: 5, width: 33 },
    ]) {
      const gate = random.normals(rows * width, 3);
      const extremes = [-200, 200, -80, 40, -0.0001, 0].slice(0, gate.length);
      gate.set(extremes, gate.length - extremes.length);
      const up = random.normals(rows * width);
      const activate = (device: Device, inPlace: boolean) =>
        run(device, rows * width, [gate, up], (recorder, out, [gate, up]) => {
          if (inPlace) recorder.copyRows({ out, outRow: 0, x: gate!, xRow: 0, rows, width });
          recorder.siluMul({ out, gate: inPlace ? out : gate!, up: up!, rows, width });
        });
      const actual = await activate(lane.device(), false);
      const expected = Array.from(gate, (value, index) => (value / (1 + Math.exp(-value))) * up[index]!);
      const bound = { relative: lane.tolerances.elementwise, absolute: 1e-30 };
      expectClose(actual, expected, bound, "against f64");
      expectClose(actual, await activate(lane.reference(), false), bound, "against the reference");
      expectSameBits(await activate(lane.device(), true), actual, "in place");
    }
  });
}

function describeCopies(lane: Lane): void {
  it("copyRows between buffers and within one", async () => {
    const device = lane.device();
    const width = 7;
    const x = new Random(SEED).normals(6 * width);
    const buffer = upload(device, "rows", x);
    const out = poisoned(device, "copied rows", 6 * width);
    const recorder = device.begin([]);
    recorder.copyRows({ out, outRow: 0, x: buffer, xRow: 4, rows: 2, width });
    recorder.copyRows({ out, outRow: 2, x: buffer, xRow: 0, rows: 4, width });
    recorder.copyRows({ out, outRow: 0, x: out, xRow: 3, rows: 2, width });
    await recorder.submit();
    const rows = [1, 2, 0, 1, 2, 3].map((row) => x.subarray(row * width, (row + 1) * width));
    expectSameBits(await results(device, out), Float32Array.from(rows.flatMap((row) => [...row])));
  });

  it("gatherRows, repeated and out of order", async () => {
    const width = 5;
    const x = new Random(SEED).normals(4 * width);
    const indices = Uint32Array.from([3, 3, 0, 2]);
    const actual = await run(lane.device(), indices.length * width, [x], (recorder, out, [x]) =>
      recorder.gatherRows({ out, x: x!, indices, width }),
    );
    expectSameBits(
      actual,
      Float32Array.from([...indices].flatMap((row) => [...x.subarray(row * width, row * width + width)])),
    );
  });

  it("ops see what ops before them wrote, in the order recorded", async () => {
    const device = lane.device();
    const x = upload(device, "x", Float32Array.of(1, 2, 3, 4));
    const out = poisoned(device, "out", 4);
    const double = device.matrix("double", "f32", { outWidth: 2, inWidth: 2 }, Float32Array.of(2, 0, 0, 2));
    const recorder = device.begin([]);
    recorder.matmul({ out, x, matrix: double, rows: 2 });
    recorder.copyRows({ out: x, outRow: 0, x: out, xRow: 0, rows: 2, width: 2 });
    recorder.matmul({ out, x, matrix: double, rows: 2, accumulate: true });
    await recorder.submit();
    expect([...(await results(device, out))]).toEqual([6, 12, 18, 24]);
  });
}
