/** Everything but attention: matrices, embeddings and row-wise ops. Shapes are checked by the recorder; addresses are of the heap. */
import { assert } from "../../protocol/assert.ts";
import { roundToF16 } from "../reference/quantize-rows.ts";
import { assertMatrixRows } from "../validate.ts";
import type { Arena } from "./heap.ts";
import type { Machine } from "./machine.ts";
import type { WasmMatrix } from "./memory.ts";
import { OP } from "./ops.ts";

/** Bytes of one record of 32 quantized inputs (assembly/matmul-int8.ts). */
const INPUT_BLOCK_BYTES = 80;
/** Weights are packed in pieces of about this size, so that packing needs little memory beside the result. */
const STAGE_BYTES = 4 * 1024 * 1024;
/** Rows of one part of a large product: their inputs stay in a core's cache. */
const PART_ROWS = 64;
/** What quantizing an input costs, in multiply-adds of a product. */
const QUANTIZE_WORK = 32;
/** The same of decoding an element of a table, of `silu(gate) * up`, and of an element of a norm. */
const EMBED_WORK = 64;
const SILU_WORK = 64;
const NORM_WORK = 16;
/** What looking at a logit costs, in the same. */
const ARGMAX_WORK = 8;
/** Products of one op; assembly/products.ts has their place among the arguments. */
export const PRODUCTS_MAX = 8;
/** Parts per thread: a late thread costs a part of the op, not the op. */
const PARTS_PER_THREAD = 4;

const PACK_OP = { f32: OP.packF32, bf16: OP.packBf16, f16: OP.packF32, int8: OP.packInt8, int4: OP.packInt4 } as const;
const EMBED_OP = {
  f32: OP.embedF32,
  bf16: OP.embedBf16,
  f16: OP.embedF32,
  int8: OP.embedInt8,
  int4: OP.embedInt4,
} as const;
const MATMUL_OP = {
  f32: OP.matmulF32,
  bf16: OP.matmulBf16,
  f16: OP.matmulF32,
  int8: OP.matmulInt8,
  int4: OP.matmulInt4,
} as const;

/** Packs rows from `firstRow` on; see `Device.writeRows`. */
export function packRows(machine: Machine, matrix: WasmMatrix, firstRow: number, data: Float32Array): void {
  const rowCount = assertMatrixRows(matrix, firstRow, data);
  const { inWidth } = matrix;
  const stageRows = Math.max(8, Math.floor(STAGE_BYTES / (inWidth * 32)) * 8);
  machine.opArena.clear();
  const stage = machine.opArena.take(Math.min(stageRows, rowCount) * inWidth * 4);
  for (let row = 0; row < rowCount; row += stageRows) {
    const rows = Math.min(stageRows, rowCount - row);
    const part = data.subarray(row * inWidth, (row + rows) * inWidth);
    machine.heap.floats.set(matrix.encoding === "f16" ? roundToF16(part) : part, stage / 4);
    const taskCount = Math.min(Math.ceil(rows / 8), machine.threads.threads * PARTS_PER_THREAD);
    machine.threads.run(PACK_OP[matrix.encoding], {
      taskCount,
      work: rows * inWidth,
      args: [matrix.at + ((firstRow + row) / 8) * matrix.panelBytes, stage, rows, inWidth, taskCount],
    });
  }
}

/** out[i] = table[tokens[i]]. */
export function embed(machine: Machine, outAt: number, table: WasmMatrix, tokens: Uint32Array): void {
  for (const token of tokens) assert(token < table.outWidth, `token ${token} is outside the table`);
  machine.opArena.clear();
  const tokensAt = takeWords(machine, tokens);
  const taskCount = rowParts(machine, tokens.length);
  machine.threads.queue(EMBED_OP[table.encoding], {
    taskCount,
    work: tokens.length * table.inWidth * EMBED_WORK,
    args: [outAt, table.at, tokensAt, tokens.length, table.inWidth, taskCount],
  });
}

/** out[i] = x[indices[i]], rows of `width` elements; the indices are written to `arena`, which lasts for the step, so nothing that waits need run for them. */
export function gatherRows(
  machine: Machine,
  arena: Arena,
  at: { out: number; x: number },
  { indices, width }: { indices: Uint32Array; width: number },
): void {
  const indicesAt = arena.take(indices.length * 4);
  machine.heap.words.set(indices, indicesAt / 4);
  const taskCount = rowParts(machine, indices.length);
  machine.threads.queue(OP.gatherRows, {
    taskCount,
    work: indices.length * width,
    args: [at.out, at.x, indicesAt, indices.length, width, taskCount],
  });
}

/** out = x / sqrt(mean(x^2) + eps) * weight, per row. */
export function rmsNorm(
  machine: Machine,
  at: { out: number; x: number; weight: number },
  { rows, width, eps }: { rows: number; width: number; eps: number },
): void {
  const taskCount = rowParts(machine, rows);
  machine.threads.queue(OP.rmsNorm, {
    taskCount,
    work: rows * width * NORM_WORK,
    args: [at.out, at.x, at.weight, rows, width, taskCount],
    floats: [[6, eps]],
  });
}

/** out = silu(gate) * up. */
export function siluMul(machine: Machine, at: { out: number; gate: number; up: number }, elements: number): void {
  const taskCount = rowParts(machine, elements);
  machine.threads.queue(OP.siluMul, {
    taskCount,
    work: elements * SILU_WORK,
    args: [at.out, at.gate, at.up, elements, taskCount],
  });
}

/** One product of an op: `out (+)= x . matrix^T`. */
export interface Product {
  out: number;
  matrix: WasmMatrix;
  accumulate: boolean;
}

/** Products of the same `x` (at most {@link PRODUCTS_MAX}, matrices of one encoding and input width). */
export function matmuls(machine: Machine, x: number, rows: number, products: readonly Product[]): void {
  const { threads } = machine;
  const { encoding, inWidth } = (products[0] as Product).matrix;
  const isQuantized = encoding === "int8" || encoding === "int4";
  const inputs = isQuantized ? quantizedInputs(machine, x, inWidth, rows) : x;
  const parts = Math.ceil(rows / PART_ROWS);
  let panelQuads = 0;
  let outWidth = 0;
  const args = [inputs, rows, inWidth, parts, 0, products.length, 0, 0];
  for (const { out, matrix, accumulate } of products) {
    args.push(out, matrix.at, matrix.outWidth, accumulate ? 1 : 0);
    panelQuads += Math.ceil(matrix.outWidth / 32);
    outWidth += matrix.outWidth;
  }
  const panelParts = Math.max(1, Math.min(panelQuads, Math.ceil((threads.threads * PARTS_PER_THREAD) / parts)));
  args[4] = panelParts;
  threads.queue(MATMUL_OP[encoding], { taskCount: parts * panelParts, work: rows * outWidth * inWidth, args });
}

/** Of each row of `count` values the index of the largest, the lower of equals; NaN counts as -Infinity. Everything that waits has run then. */
export function argmaxRows(machine: Machine, arena: Arena, rowsAt: readonly number[], count: number): Uint32Array {
  const table = arena.take(rowsAt.length * 4);
  machine.heap.words.set(rowsAt, table / 4);
  machine.threads.queue(OP.argmax, {
    taskCount: rowsAt.length,
    work: rowsAt.length * count * ARGMAX_WORK,
    args: [table, count],
  });
  machine.threads.finish();
  return new Uint32Array(machine.heap.words.buffer, table, rowsAt.length);
}

function quantizedInputs(machine: Machine, x: number, inWidth: number, rows: number): number {
  machine.opArena.clear();
  const records = machine.opArena.take(rows * Math.ceil(inWidth / 32) * INPUT_BLOCK_BYTES);
  const taskCount = rowParts(machine, rows);
  machine.threads.queue(OP.quantizeRows, {
    taskCount,
    work: rows * inWidth * QUANTIZE_WORK,
    args: [records, x, rows, inWidth, taskCount],
  });
  return records;
}

/** Takes room for words and writes them, when nothing that waits works there any more. */
function takeWords(machine: Machine, words: Uint32Array): number {
  machine.threads.finish();
  const at = machine.opArena.take(words.length * 4);
  machine.heap.words.set(words, at / 4);
  return at;
}

function rowParts(machine: Machine, rows: number): number {
  return Math.min(rows, machine.threads.threads * PARTS_PER_THREAD);
}
