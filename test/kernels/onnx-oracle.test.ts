/**
 * The devices against onnxruntime (its WebAssembly build, one thread, offline): kernels that other people wrote, from the same formulas.
 * The conformance suite has the corners; here are the ops as a model uses them.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Device, DeviceBuffer, MatrixEncoding, SampleRow, StepRecorder } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import { markExercised } from "../exercised.ts";
import { expectClose, magnitude } from "./support/compare.ts";
import { poisoned, results, upload } from "./support/floats.ts";
import { F32_TOLERANCES } from "./support/lane.ts";
import {
  type OnnxAttention,
  onnxAttention,
  onnxLogSoftmax,
  onnxMatmul,
  onnxMatmulInt8,
  onnxRmsNorm,
  onnxSiluMul,
} from "./support/onnx-ops.ts";
import { plainBlock, plainOpen } from "./support/oracle.ts";
import { Random, SEED } from "./support/random.ts";
import { makeSequence, ropeAngles, type Sequence, Stage, type StageShape } from "./support/stage.ts";

/** Two computations of f32 stand between our numbers and theirs, not one and f64. */
const BOTH = 2;
const DEVICES = [
  ["reference", () => openDevice({ kind: "reference" })],
  ["wasm", () => openDevice({ kind: "wasm", threads: 1 })],
] as const;
const HEADS = [
  { headDim: 16, kvHeadCount: 2, headCount: 4 },
  { headDim: 32, kvHeadCount: 2, headCount: 6 },
  { headDim: 64, kvHeadCount: 1, headCount: 4 },
  { headDim: 128, kvHeadCount: 2, headCount: 2 },
];
/** Two sealed blocks and an open one. */
const TOKENS = 150;

const shapeOf = (heads: (typeof HEADS)[number]): StageShape => ({
  ...{ layerCount: 1, ...heads, encoding: "f32", summaryKinds: ["min-max"] },
});

/** Runs one op with fresh, poisoned output. */
async function run(
  device: Device,
  outElements: number,
  inputs: readonly Float32Array[],
  record: (recorder: StepRecorder, out: DeviceBuffer, inputs: DeviceBuffer[]) => void,
): Promise<Float32Array> {
  const out = poisoned(device, "out", outElements);
  const buffers = inputs.map((values, index) => upload(device, `input ${index}`, values));
  const recorder = device.begin([]);
  record(recorder, out, buffers);
  await recorder.submit();
  const values = await results(device, out);
  for (const buffer of [out, ...buffers]) device.release(buffer);
  return values;
}

function attentionOf(shape: StageShape, sequence: Sequence, changes = {}): Promise<OnnxAttention> {
  const [layer] = sequence.layers;
  return onnxAttention({ ...shape, ...layer!, ...ropeAngles(shape.headDim), changes });
}

/** Sum of |x||w| for every product: what rounding errors are measured by. */
function scaleOf(x: Float32Array, w: Float32Array, inWidth: number): Float32Array {
  const [rows, outWidth] = [x.length / inWidth, w.length / inWidth];
  return Float32Array.from({ length: rows * outWidth }, (_, at) => {
    const [row, column] = [Math.floor(at / outWidth), at % outWidth];
    let sum = 0;
    for (let i = 0; i < inWidth; i++) sum += Math.abs(x[row * inWidth + i]! * w[column * inWidth + i]!);
    return sum;
  });
}

describe.each(DEVICES)(`%s beside onnxruntime (seed ${SEED})`, (name, open) => {
  markExercised("device", `${name}, held to onnxruntime`);
  let device: Device;
  beforeAll(async () => {
    device = await open();
  });
  afterAll(() => device.close());

  it.each<[MatrixEncoding, typeof onnxMatmul]>([
    ["f32", onnxMatmul],
    ["int8", onnxMatmulInt8],
  ])("matmul, %s", async (encoding, oracle) => {
    const random = new Random(SEED);
    for (const [rows, inWidth, outWidth] of [
      [1, 64, 33],
      [7, 96, 40],
      [33, 160, 8],
    ] as const) {
      const [x, w] = [random.normals(rows * inWidth), random.normals(outWidth * inWidth)];
      const matrix = device.matrix("w", encoding, { outWidth, inWidth }, w);
      const actual = await run(device, rows * outWidth, [x], (recorder, out, [input]) =>
        recorder.matmul({ out, x: input!, matrix, rows }),
      );
      const expected = await oracle(x, w, { rows, inWidth, outWidth });
      const relative = BOTH * F32_TOLERANCES.matmul;
      expectClose(actual, expected, { relative, scale: scaleOf(x, w, inWidth) }, `${rows} x ${inWidth} x ${outWidth}`);
    }
  });

  it("rmsNorm", async () => {
    const random = new Random(SEED);
    for (const [rows, width, eps] of [
      [1, 64, 1e-5],
      [5, 100, 1e-6],
      [3, 576, 1e-2],
    ] as const) {
      const [x, weight] = [random.normals(rows * width, 0.3), random.normals(width)];
      const actual = await run(device, x.length, [x, weight], (recorder, out, [input, scale]) =>
        recorder.rmsNorm({ out, x: input!, weight: scale!, rows, width, eps }),
      );
      const expected = await onnxRmsNorm(x, weight, { rows, width, eps });
      expectClose(actual, expected, { relative: BOTH * F32_TOLERANCES.elementwise }, `${rows} x ${width}`);
    }
  });

  it("siluMul", async () => {
    const random = new Random(SEED);
    const [rows, width] = [3, 131];
    const [gate, up] = [random.normals(rows * width, 4), random.normals(rows * width)];
    const actual = await run(device, gate.length, [gate, up], (recorder, out, [a, b]) =>
      recorder.siluMul({ out, gate: a!, up: b!, rows, width }),
    );
    expectClose(actual, await onnxSiluMul(gate, up), { relative: BOTH * F32_TOLERANCES.elementwise }, "siluMul");
  });

  it.each(HEADS)(
    "$headCount heads on $kvHeadCount of $headDim: RoPE, the cache and causal attention",
    async (heads) => {
      const shape = shapeOf(heads);
      const sequence = makeSequence(shape, TOKENS, SEED);
      const expected = await attentionOf(shape, sequence);
      const stage = new Stage(device, shape, { blockCapacity: 3 });
      // A prefill in two chunks that end within blocks, then one token alone.
      const outs: Float32Array[] = [];
      for (const [position, end] of [
        [0, 70],
        [70, TOKENS - 1],
        [TOKENS - 1, TOKENS],
      ] as const) {
        const result = await stage.run([{ sequence, position, rowCount: end - position }]);
        outs.push(result.out[0]![0]!);
      }
      const absolute = BOTH * F32_TOLERANCES.attention * magnitude(sequence.layers[0]!.v);
      expectClose(
        outs.flatMap((rows) => [...rows]),
        expected.out,
        { relative: 0, absolute },
        "attention",
      );
      const { keys, values } = await cacheOf(stage, sequence);
      const rotation = BOTH * F32_TOLERANCES.rotation * magnitude(sequence.layers[0]!.k);
      expectClose(keys, expected.keys, { relative: 0, absolute: rotation }, "keys");
      expectClose(values, expected.values, { relative: 0 }, "values");
    },
  );

  it("logprobs", async () => {
    const [rows, width] = [3, 300];
    const logits = new Random(SEED).normals(rows * width, 3);
    const expected = await onnxLogSoftmax(logits, { rows, width });
    const buffer = upload(device, "logits", logits);
    const recorder = device.begin([]);
    recorder.sample({ logits: buffer, width, rows: Array.from({ length: rows }, (_, row) => greedyRow(row)) });
    const { samples } = await recorder.submit();
    device.release(buffer);
    expect(samples).toHaveLength(rows);
    samples.forEach(({ tokenId, logprob, top }, row) => {
      const own = [...expected.subarray(row * width, (row + 1) * width)];
      const order = own.map((_, id) => id).sort((a, b) => own[b]! - own[a]!);
      expect([tokenId, ...top!.map(([id]) => id)]).toEqual([order[0], ...order.slice(0, 5)]);
      const told = [logprob!, ...top!.map(([, value]) => value)];
      const right = [own[order[0]!]!, ...order.slice(0, 5).map((id) => own[id]!)];
      expectClose(told, right, { relative: 0, absolute: F32_TOLERANCES.logprob }, `logprobs of row ${row}`);
    });
  });
});

describe("what onnxruntime says depends on what is asked of it", () => {
  it.each([
    ["RoPE on neighbouring channels", { rotary_interleaved: 1 }],
    ["another scale", { scale: { float: 0.2 } }],
    ["a window of 100 tokens", { local_window_size: 100 }],
    ["no RoPE", { do_rotary: 0 }],
  ])("%s is another result, far outside the tolerance", async (_, changes) => {
    const shape = shapeOf(HEADS[1]!);
    const sequence = makeSequence(shape, TOKENS, SEED);
    const [right, wrong] = [await attentionOf(shape, sequence), await attentionOf(shape, sequence, changes)];
    const absolute = 100 * F32_TOLERANCES.attention * magnitude(sequence.layers[0]!.v);
    expect(() => expectClose(wrong.out, right.out, { relative: 0, absolute })).toThrow(/instead of/);
  });
});

function greedyRow(row: number): SampleRow {
  return {
    ...{
      row,
      temperature: 0,
      topK: 0,
      topP: 1,
      minP: 0,
      frequencyPenalty: 0,
      presencePenalty: 0,
      repetitionPenalty: 1,
    },
    ...{ seenIds: new Uint32Array(0), seenCounts: new Uint32Array(0), seed: 0, position: 0, topLogprobs: 5 },
    ...{ biasIds: new Uint32Array(0), biasValues: new Float32Array(0) },
  };
}

/** Keys and values as they lie in the pool, sealed or open: `[kvHead, token, headDim]`. */
async function cacheOf(stage: Stage, sequence: Sequence): Promise<{ keys: number[]; values: number[] }> {
  const { blockIds, openSlots } = stage.sliceOf({ sequence, position: sequence.length - 1, rowCount: 1 });
  const sealedCount = Math.floor(sequence.length / 64);
  const ids = [...blockIds.subarray(0, sealedCount)];
  const sealed = await Promise.all(ids.map(async (id) => plainBlock(stage.shape, await stage.pool.readBlock(id))));
  const openCount = sequence.length - sealedCount * 64;
  const open = plainOpen(stage.shape, await stage.pool.readOpen(openSlots[0]!, openCount), 0, openCount);
  const parts = [...sealed, open];
  const flat = (name: "keys" | "values") =>
    Array.from({ length: stage.shape.kvHeadCount }, (_, head) =>
      parts.flatMap((part) => part[name][head]!.flat()),
    ).flat();
  return { keys: flat("keys"), values: flat("values") };
}
