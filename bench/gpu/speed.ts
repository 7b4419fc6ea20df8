/** The cases: copy bandwidth, products, attention dense and selected, whole decode steps. */
import type { Matrix, MatrixEncoding } from "../../kernels/contract.ts";
import type { WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { randomBytes, randomKv, randomMatrix } from "./random-memory.ts";
import type { GpuSizes } from "./sizes.ts";
import { type GpuCase, type GpuRow, timeCase } from "./timing.ts";

/** What every case needs; `ms` is the time per case. A pool lives as long as its device, so cases with pools want a fresh one. */
export interface SpeedInput {
  device: WebGpuDevice;
  sizes: GpuSizes;
  ms: number;
  seed: number;
  /** Noise that matrices are filled with, piece by piece. */
  bytes: Uint8Array<ArrayBuffer>;
}

/** Reads and writes of a large copy. */
export function copyCase({ device, sizes }: SpeedInput): GpuCase {
  const [x, out] = ["from", "to"].map((label) => device.buffer(label, sizes.copyBytes));
  const width = sizes.copyBytes / 4;
  return {
    ...{ name: `copy ${sizes.copyBytes / 2 ** 20} MiB`, slices: [] },
    record: (recorder) => recorder.copyRows({ out: out!, outRow: 0, x: x!, xRow: 0, rows: 1, width }),
    bytes: () => 2 * sizes.copyBytes,
  };
}

/** A product of random codes. Bytes: the packed matrix, inputs and outputs. */
export function productCase(
  { device, seed, bytes }: SpeedInput,
  encoding: MatrixEncoding,
  { outWidth, inWidth, rows }: { outWidth: number; inWidth: number; rows: number },
): GpuCase {
  const matrix = randomMatrix(device, encoding, { outWidth, inWidth }, bytes);
  const x = noise(device, rows * inWidth, seed);
  const out = device.buffer("product", rows * outWidth * 4);
  return {
    ...{ name: `${encoding} ${inWidth} to ${outWidth}, ${rows} rows`, slices: [] },
    record: (recorder) => recorder.matmul({ out, x, matrix, rows }),
    bytes: () => matrix.packedBytes + rows * (inWidth + outWidth) * 4,
    ops: 2 * rows * inWidth * outWidth,
  };
}

/** f32 noise in a buffer. */
export function noise(device: WebGpuDevice, elements: number, seed: number) {
  const codes = new Int8Array(randomBytes(elements, seed).buffer);
  const values = Float32Array.from({ length: elements }, (_, at) => (codes[at] as number) / 64);
  const buffer = device.buffer("noise", elements * 4);
  device.write(buffer, 0, new Uint8Array(values.buffer));
  return buffer;
}

/** Decode attention over one layer of a random pool: dense, and selected. Bytes are those that the device counted, per KV head. */
export async function attentionRows(input: SpeedInput, contextTokens: number): Promise<GpuRow[]> {
  const { device, sizes, seed, ms } = input;
  const { headCount, headDim } = sizes.shape;
  const kv = randomKv(device, sizes.shape, { batch: sizes.batch, contextTokens, layerCount: 1, seed });
  const q = noise(device, sizes.batch * headCount * headDim, seed);
  const out = device.buffer("attended", sizes.batch * headCount * headDim * 4);
  const rows: GpuRow[] = [];
  for (const policy of ["dense", "quest"] as const) {
    const common = { pool: kv.pool, layer: 0, headCount, q };
    const item: GpuCase = {
      name: `attention, ${policy}, ${contextTokens} tokens, batch ${sizes.batch}`,
      slices: kv.slices(policy, sizes.budgetTokens, sizes.batch),
      record(recorder) {
        recorder.select(common);
        recorder.attend({ ...common, out });
      },
      bytes: ({ traffic }) => traffic.reduce((sum, each) => sum + each.kvBytes + each.metadataBytes, 0),
    };
    rows.push(await timeCase(device, item, ms));
  }
  return rows;
}

/** A decode step of all layers, with its wall time. */
export interface StepRow extends GpuRow {
  /** Least time from `begin` to the samples, without timestamps. */
  wallMs: number;
}

/** Weights of one layer. */
interface LayerWeights {
  qkv: Matrix[];
  attentionOut: Matrix;
  gateUp: Matrix[];
  down: Matrix;
}

/** Whole decode steps in int4 (embeddings int8), dense and selected. */
export async function stepRows(
  input: SpeedInput,
  { batch, contextTokens }: { batch: number; contextTokens: number },
): Promise<StepRow[]> {
  const { device, sizes, seed, ms, bytes } = input;
  const { shape } = sizes;
  const { width, ffnWidth, headCount, kvHeadCount, headDim, layerCount, vocabularySize } = shape;
  const queryWidth = headCount * headDim;
  const keyWidth = kvHeadCount * headDim;
  const make = (outWidth: number, inWidth: number, encoding: MatrixEncoding = "int4") =>
    randomMatrix(device, encoding, { outWidth, inWidth }, bytes);
  const layers = Array.from(
    { length: layerCount },
    (): LayerWeights => ({
      qkv: [make(queryWidth, width), make(keyWidth, width), make(keyWidth, width)],
      attentionOut: make(width, queryWidth),
      gateUp: [make(ffnWidth, width), make(ffnWidth, width)],
      down: make(width, ffnWidth),
    }),
  );
  const table = make(vocabularySize, width, "int8");
  const kv = randomKv(device, shape, { batch, contextTokens, layerCount, seed });
  const floats = (label: string, elements: number) => device.buffer(label, batch * elements * 4);
  const [x, h, q, k, v] = [
    floats("x", width),
    floats("h", width),
    floats("q", queryWidth),
    floats("k", keyWidth),
    floats("v", keyWidth),
  ];
  const [attended, gate, up, logits] = [
    floats("a", queryWidth),
    floats("gate", ffnWidth),
    floats("up", ffnWidth),
    floats("logits", vocabularySize),
  ];
  const weight = noise(device, width, seed);
  const angles = { cos: noise(device, ((contextTokens + 64) * headDim) / 2, seed), positionCount: contextTokens + 64 };
  const rope = { ...angles, sin: angles.cos };
  const norm = { x, out: h, weight, rows: batch, width, eps: 1e-5 };
  const rowsOf: StepRow[] = [];
  for (const policy of ["dense", "quest"] as const) {
    const item: GpuCase = {
      name: `decode step, ${policy}, ${contextTokens} tokens, batch ${batch}`,
      slices: kv.slices(policy, sizes.budgetTokens, batch),
      record(recorder) {
        recorder.embed({ out: x, table, tokens: new Uint32Array(batch).fill(7) });
        layers.forEach(({ qkv, attentionOut, gateUp, down }, layer) => {
          const common = { pool: kv.pool, layer, headCount, q };
          recorder.rmsNorm(norm);
          for (const [at, out] of [q, k, v].entries()) recorder.matmul({ out, x: h, matrix: qkv[at]!, rows: batch });
          recorder.append({ ...common, k, v, rope });
          recorder.select(common);
          recorder.attend({ ...common, out: attended });
          recorder.matmul({ out: x, x: attended, matrix: attentionOut, rows: batch, accumulate: true });
          recorder.rmsNorm(norm);
          for (const [at, out] of [gate, up].entries())
            recorder.matmul({ out, x: h, matrix: gateUp[at]!, rows: batch });
          recorder.siluMul({ out: gate, gate, up, rows: batch, width: ffnWidth });
          recorder.matmul({ out: x, x: gate, matrix: down, rows: batch, accumulate: true });
        });
        recorder.rmsNorm(norm);
        recorder.matmul({ out: logits, x: h, matrix: table, rows: batch });
        const row = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 1, position: contextTokens };
        const penalties = { frequencyPenalty: 0, presencePenalty: 0, repetitionPenalty: 1 };
        const lists = { seenIds: none, seenCounts: none, biasIds: none, biasValues: new Float32Array(0) };
        const rows = Array.from({ length: batch }, (_, index) => ({ row: index, ...row, ...penalties, ...lists }));
        recorder.sample({ logits, width: vocabularySize, rows });
      },
      bytes: ({ traffic }) =>
        traffic.reduce((sum, each) => sum + each.kvBytes + each.metadataBytes, 0) +
        [...layers.flatMap((each) => [...each.qkv, each.attentionOut, ...each.gateUp, each.down]), table].reduce(
          (sum, matrix) => sum + matrix.packedBytes,
          0,
        ),
    };
    const timed = await timeCase(device, item, ms);
    rowsOf.push({ ...timed, wallMs: await wallTime(device, item, ms) });
  }
  return rowsOf;
}

const none = new Uint32Array(0);

async function wallTime(device: WebGpuDevice, item: GpuCase, ms: number): Promise<number> {
  let best = Number.POSITIVE_INFINITY;
  const endMs = performance.now() + ms;
  for (let count = 0; count < 2 || performance.now() < endMs; count++) {
    const startMs = performance.now();
    const recorder = device.begin(item.slices);
    item.record(recorder);
    await recorder.submit();
    best = Math.min(best, performance.now() - startMs);
  }
  return best;
}
