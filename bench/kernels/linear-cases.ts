/** Cases of everything but attention: matrices, norms, activations, embeddings, sampling. */
import type { Device, DeviceBuffer, Matrix, MatrixEncoding } from "../../kernels/contract.ts";
import type { ModelConfig } from "../../models/contract.ts";
import { drawNormal } from "../decode/fill-random.ts";
import { seededRandom } from "../random.ts";
import type { KernelCase } from "./kernel-case.ts";

const COPIES_MAX = 96;
/** Bytes of a weight: of int8 and int4 a code, and a f32 scale for 32 of them. */
const WEIGHT_BYTES: Readonly<Record<MatrixEncoding, number>> = {
  f32: 4,
  bf16: 2,
  f16: 2,
  int8: 36 / 32,
  int4: 20 / 32,
};

/** What cases are made of. */
export interface CaseInput {
  device: Device;
  config: ModelConfig;
  seed: number;
  /** Rows of a prefill chunk. */
  rows: number;
  /** Rows of a decode step. */
  batch: number;
  /** Encodings of the weights whose products are timed. */
  encodings: readonly MatrixEncoding[];
  /** Copies of a matrix take turns until together they have so many bytes: more than a cache holds. */
  copiesBytes: number;
  /** Makes a matrix; default: of seeded normal values, packed by the host. */
  matrix?: (name: string, encoding: MatrixEncoding, shape: MatrixShape) => Promise<Matrix>;
}

type MatrixShape = Pick<Matrix, "outWidth" | "inWidth">;

/** Weight products at the rows of a decode step and of a chunk, then the row-wise ops. */
export async function linearCases(input: CaseInput): Promise<KernelCase[]> {
  const { width, ffnWidth, headCount, kvHeadCount, headDim, vocabularySize } = input.config;
  const matrices: [string, number, number][] = [
    ["query", headCount * headDim, width],
    ["key", kvHeadCount * headDim, width],
    ["gate", ffnWidth, width],
    ["down", width, ffnWidth],
    ["head", vocabularySize, width],
  ];
  const decodeRows = [...new Set([1, input.batch])];
  const cases: KernelCase[] = [];
  for (const encoding of input.encodings) {
    for (const [name, outWidth, inWidth] of matrices) {
      const rowCounts = name === "head" ? decodeRows : [...decodeRows, input.rows];
      cases.push(...(await matmulCases(input, { name, encoding, outWidth, inWidth, rowCounts })));
    }
  }
  const table = await matrixOf(input, "table", "int8", {
    outWidth: input.config.vocabularySize,
    inWidth: input.config.width,
  });
  for (const rows of [...decodeRows, input.rows]) cases.push(...rowCases(input, rows, table));
  return [...cases, sampleCase(input)];
}

async function matrixOf(input: CaseInput, name: string, encoding: MatrixEncoding, shape: MatrixShape): Promise<Matrix> {
  if (input.matrix !== undefined) return input.matrix(name, encoding, shape);
  return input.device.matrix(name, encoding, shape, normals(input, shape.outWidth * shape.inWidth));
}

async function matmulCases(
  input: CaseInput,
  {
    name,
    encoding,
    outWidth,
    inWidth,
    rowCounts,
  }: { name: string; encoding: MatrixEncoding; rowCounts: number[] } & MatrixShape,
): Promise<KernelCase[]> {
  const { device, copiesBytes } = input;
  const matrixBytes = outWidth * inWidth * WEIGHT_BYTES[encoding];
  const copyCount = Math.min(COPIES_MAX, Math.ceil(copiesBytes / matrixBytes));
  const copies: Matrix[] = [];
  while (copies.length < copyCount) copies.push(await matrixOf(input, name, encoding, { outWidth, inWidth }));
  return rowCounts.map((rows): KernelCase => {
    const x = filled(input, `${name}.x`, rows * inWidth);
    const out = device.buffer(`${name}.out`, rows * outWidth * 4);
    return {
      op: `matmul ${encoding} (${name})`,
      size: `${rows} x ${outWidth} x ${inWidth}`,
      slices: [],
      record: (recorder, turn) => recorder.matmul({ out, x, matrix: copies[turn % copyCount]!, rows }),
      work: () => ({
        bytes: matrixBytes + rows * (inWidth + outWidth) * 4,
        ops: 2 * rows * outWidth * inWidth,
        arithmetic: encoding === "int8" || encoding === "int4" ? "int8" : "f32",
      }),
    };
  });
}

function rowCases(input: CaseInput, rows: number, table: Matrix): KernelCase[] {
  const { device, config } = input;
  const { width, ffnWidth, normEps: eps, vocabularySize } = config;
  const x = filled(input, "x", rows * width);
  const normed = device.buffer("normed", rows * width * 4);
  const weight = filled(input, "norm", width);
  const gate = filled(input, "gate", rows * ffnWidth);
  const up = filled(input, "up", rows * ffnWidth);
  const acted = device.buffer("acted", rows * ffnWidth * 4);
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
      work: () => ({ bytes: rows * width * (4 + WEIGHT_BYTES.int8), ops: rows * width, arithmetic: "f32" }),
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
