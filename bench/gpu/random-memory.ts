/** Matrices and pools full of seeded noise, without packing or quantizing any of it: speed does not depend on what the codes say. */
import { BLOCK_TOKENS, type KvPool, type Matrix, type MatrixEncoding, type StepSlice } from "../../kernels/contract.ts";
import { blockLayout, summaryHeadBytes, summaryScalesAt } from "../../kernels/layout.ts";
import { ownMatrix } from "../../kernels/webgpu/buffers.ts";
import type { WebGpuDevice } from "../../kernels/webgpu/open-webgpu.ts";
import { policyNamed } from "../../models/selection/registry.ts";
import type { SelectionConfiguration } from "../../protocol/generate.ts";
import { seededRandom } from "../random.ts";
import type { GpuShape } from "./sizes.ts";

const SCALE = 0.01;

/** A matrix whose packed form repeats `noise` (whole words) under one scale, or, in f32 and bf16, made of small weights. */
export function randomMatrix(
  device: WebGpuDevice,
  encoding: MatrixEncoding,
  shape: { outWidth: number; inWidth: number },
  noise: Uint8Array<ArrayBuffer>,
): Matrix {
  const matrix = device.emptyMatrix("random", encoding, shape);
  let codes = noise.subarray(0, matrix.packedBytes);
  // Exponents of f32 and bf16 noise would reach infinity: every 16-bit half becomes a small positive number.
  if (encoding === "f32" || encoding === "bf16") {
    codes = codes.slice();
    const halves = new Uint16Array(codes.buffer);
    for (let at = 0; at < halves.length; at++) halves[at] = 0x3c00 | ((halves[at] as number) & 0xff);
  }
  const scales = new Uint8Array(new Float32Array(noise.length / 4).fill(SCALE).buffer);
  const own = ownMatrix(matrix);
  let at = 0;
  for (const [index, { bytes }] of own.runs().entries()) {
    const source = own.hasScales && index % 2 === 1 ? scales : codes;
    for (let done = 0; done < bytes; done += codes.length) {
      const count = Math.min(codes.length, bytes - done);
      device.writePacked(matrix, at + done, source.subarray(0, count));
    }
    at += bytes;
  }
  return matrix;
}

/** Seeded bytes; the length is a multiple of 4. */
export function randomBytes(count: number, seed: number): Uint8Array<ArrayBuffer> {
  const random = seededRandom(seed);
  return new Uint8Array(Uint32Array.from({ length: Math.ceil(count / 4) }, () => random() * 2 ** 32).buffer);
}

/** A pool for `batch` sequences of `contextTokens`, filled with noise in int8, each block and each summary its own. */
export interface RandomKv {
  pool: KvPool;
  layerCount: number;
  /** Decode rows of the first `batch` sequences behind a full context. */
  slices(policy: SelectionConfiguration, budgetTokens: number, batch: number): StepSlice[];
  contextTokens: number;
}

/** Makes the pool; a sequence's row is the last of its last block but one, so nothing is sealed. */
export function randomKv(
  device: WebGpuDevice,
  shape: GpuShape,
  {
    batch,
    contextTokens,
    layerCount,
    seed,
  }: { batch: number; contextTokens: number; layerCount: number; seed: number },
): RandomKv {
  const { kvHeadCount, headDim } = shape;
  const blockCapacity = contextTokens / BLOCK_TOKENS + 1;
  const spec = { layerCount, kvHeadCount, headDim, encoding: "int8", summaryKinds: ["min-max"] } as const;
  const blockCount = batch * blockCapacity * layerCount;
  const pool = device.kvPool({ ...spec, blockCount, openSlotCount: batch, summarySlotCount: batch * blockCapacity });
  const layout = blockLayout(spec);
  const noise = randomBytes(pool.blockBytes + 4096, seed);
  for (let id = 0; id < blockCount; id++) {
    const block = noise.slice((id * 4) % 4096, ((id * 4) % 4096) + pool.blockBytes);
    const floats = new Float32Array(block.buffer);
    floats.fill(SCALE, layout.keyScalesAt / 4, layout.valuesAt / 4);
    floats.fill(SCALE, layout.valueScalesAt / 4, layout.bytes / 4);
    pool.writeBlock(id, block);
  }
  const headBytes = summaryHeadBytes(headDim);
  for (let slot = 0; slot < batch * blockCapacity; slot++) {
    const summary = noise.slice((slot * 12) % 4096, ((slot * 12) % 4096) + pool.summaryBytes);
    const floats = new Float32Array(summary.buffer);
    for (let head = 0; head < layerCount * kvHeadCount; head++) {
      floats.fill(SCALE, (head * headBytes + summaryScalesAt(headDim)) / 4, ((head + 1) * headBytes) / 4);
    }
    pool.writeSummary(slot, "min-max", summary);
  }
  const place = (sequence: number) => ({
    blockIds: Int32Array.from(
      { length: layerCount * blockCapacity },
      (_, at) => sequence * layerCount * blockCapacity + at,
    ),
    blockCapacity,
    summarySlots: Int32Array.from({ length: blockCapacity }, (_, at) => sequence * blockCapacity + at),
    openSlots: Int32Array.of(sequence),
  });
  const places = Array.from({ length: batch }, (_, sequence) => place(sequence));
  return {
    ...{ pool, layerCount, contextTokens },
    slices: (policy, budgetTokens, count) =>
      places.slice(0, count).map((at) => ({
        ...at,
        position: contextTokens,
        rowCount: 1,
        groupStarts: Int32Array.of(0),
        plan: policyNamed(policy).plan(budgetTokens),
      })),
  };
}
