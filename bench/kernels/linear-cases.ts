/** Cases of everything but attention: matrices, norms, activations, embeddings, sampling. */
import type { Device, DeviceBuffer } from "../../kernels/contract.ts";
import type { ModelConfig } from "../../models/contract.ts";
import { drawNormal } from "../decode/fill-random.ts";
import { seededRandom } from "../random.ts";
import type { KernelCase } from "./kernel-case.ts";

/** Copies of a matrix take turns until together they are larger than a cache. */
const COPIES_BYTES = 96 * 1024 * 1024;
const COPIES_MAX = 96;
/** Bytes of an int8 weight: a code, and a f32 scale for 32 of them. */
const INT8_BYTES = 36 / 32;

/** What cases are made of. */
export interface CaseInput {
  device: Device;
  config: ModelConfig;
  seed: number;
  /** Rows of a prefill chunk. */
  rows: number;
}

/** Weight products at 1 row and at a chunk, then the row-wise ops. */
export function linearCases(input: CaseInput): KernelCase[] {
  const { width, ffnWidth, headCount, kvHeadCount, headDim, vocabularySize } = input.config;
  const matrices: [string, number, number][] = [
    ["query", headCount * headDim, width],
    ["key", kvHeadCount * headDim, width],
    ["gate", ffnWidth, width],
    ["down", width, ffnWidth],
    ["head", vocabularySize, width],
  ];
  return [
    ...matrices.flatMap(([name, outWidth, inWidth]) => {
      const rowCounts = name === "head" ? [1] : [1, input.rows];
      return matmulCases(input, { name, outWidth, inWidth, rowCounts });
    }),
    ...[1, input.rows].flatMap((rows) => rowCases(input, rows)),
    sampleCase(input),
  ];
}

function matmulCases(
  input: CaseInput,
  { name, outWidth, inWidth, rowCounts }: { name: string; outWidth: number; inWidth: number; rowCounts: number[] },
): KernelCase[] {
  const { device } = input;
  const matrixBytes = outWidth * inWidth * INT8_BYTES;
  const copyCount = Math.min(COPIES_MAX, Math.ceil(COPIES_BYTES / matrixBytes));
  const values = normals(input, outWidth * inWidth);
  const copies = Array.from({ length: copyCount }, () => device.matrix(name, "int8", { outWidth, inWidth }, values));
  return rowCounts.map((rows): KernelCase => {
    const x = filled(input, `${name}.x`, rows * inWidth);
    const out = device.buffer(`${name}.out`, rows * outWidth * 4);
    return {
      op: `matmul int8 (${name})`,
      size: `${rows} x ${outWidth} x ${inWidth}`,
      slices: [],
      record: (recorder, turn) => recorder.matmul({ out, x, matrix: copies[turn % copyCount]!, rows }),
      work: () => ({
        bytes: matrixBytes + rows * (inWidth + outWidth) * 4,
        ops: 2 * rows * outWidth * inWidth,
        arithmetic: "int8",
      }),
    };
  });
}

function rowCases(input: CaseInput, rows: number): KernelCase[] {
  const { device, config } = input;
  const { width, ffnWidth, normEps: eps, vocabularySize } = config;
  const x = filled(input, "x", rows * width);
  const normed = device.buffer("normed", rows * width * 4);
  const weight = filled(input, "norm", width);
  const gate = filled(input, "gate", rows * ffnWidth);
  const up = filled(input, "up", rows * ffnWidth);
  const acted = device.buffer("acted", rows * ffnWidth * 4);
  const table = device.matrix(
    "table",
    "int8",
    { outWidth: vocabularySize, inWidth: width },
    normals(input, vocabularySize * width),
  );
  const random = seededRandom(input.seed, 9);
  const tokens = Uint32Array.from({ length: rows }, () => Math.floor(random() * vocabularySize));
  return [
    {
      ...{ op: "rmsNorm", size: `${rows} x ${width}`, slices: [] },
      record: (recorder) => recorder.rmsNorm({ out: normed, x, weight, rows, width, eps }),
      work: () => ({ bytes: (2 * rows + 1) * width * 4, ops: 4 * rows * width, arithmetic: "f32" }),
    },
    {
      ...{ op: "siluMul", size: `${rows} x ${ffnWidth}`, slices: [] },
      record: (recorder) => recorder.siluMul({ out: acted, gate, up, rows, width: ffnWidth }),
      work: () => ({ bytes: 3 * rows * ffnWidth * 4, ops: 5 * rows * ffnWidth, arithmetic: "f32" }),
    },
    {
      ...{ op: "embed int8", size: `${rows} x ${width}`, slices: [] },
      record: (recorder) => recorder.embed({ out: normed, table, tokens }),
      work: () => ({ bytes: rows * width * (4 + INT8_BYTES), ops: rows * width, arithmetic: "f32" }),
    },
  ];
}

function sampleCase(input: CaseInput): KernelCase {
  const width = input.config.vocabularySize;
  const logits = filled(input, "logits", width);
  const row = {
    ...{ row: 0, temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0, position: 0 },
    ...{ frequencyPenalty: 0, presencePenalty: 0, repetitionPenalty: 1 },
    ...{ seenIds: new Uint32Array(), seenCounts: new Uint32Array() },
    ...{ biasIds: new Uint32Array(), biasValues: new Float32Array() },
  };
  return {
    ...{ op: "sample (greedy)", size: `${width}`, slices: [] },
    record: (recorder) => recorder.sample({ logits, width, rows: [row] }),
    work: () => ({ bytes: width * 4, ops: width, arithmetic: "f32" }),
  };
}

/** A buffer of seeded normal values. */
export function filled(input: CaseInput, label: string, length: number): DeviceBuffer {
  const buffer = input.device.buffer(label, length * 4);
  input.device.write(buffer, 0, new Uint8Array(normals(input, length).buffer));
  return buffer;
}

/** Seeded normal values; long ones repeat, since only their spread matters. */
function normals({ seed }: CaseInput, length: number): Float32Array<ArrayBuffer> {
  const random = seededRandom(seed, 8);
  const some = Float32Array.from({ length: Math.min(length, 65_537) }, () => drawNormal(random));
  return Float32Array.from({ length }, (_, i) => some[i % some.length]!);
}
