/// <reference types="@webgpu/types" />
/**
 * Matrices as the GPU keeps them. Rows are cut into blocks of 32 inputs, and the blocks of a row are dealt to 8 lanes: with
 * `steps = ceil(blocks / 8)`, lane l has blocks l * steps + s for s = 0 .. steps - 1. 8 rows make a group; for every group and step the 64
 * (row, lane) pairs lie beside each other, so that 64 threads read without a gap:
 *
 * f32: vec4f [group][step][8][64]; bf16, f16: vec4u [group][step][4][64]; int8: vec4u [group][step][2][64]; int4: vec4u [group][step][64];
 * scales of int8 and int4: f32 [group][step][64]. int4: byte b of word w holds input 4 w + b in its low half, as code + 8, and input
 * 16 + 4 w + b in its high half. Padding is 0.
 */
import { assert } from "../../protocol/assert.ts";
import { MATRIX_ROW_GROUP, type Matrix, type MatrixEncoding } from "../contract.ts";
import { f16Bits, roundToBf16, roundToF16, SCALE_GROUP } from "../reference/quantize-rows.ts";
import { assertMatrixRows } from "../validate.ts";
import type { Gpu } from "./gpu.ts";
import { hasScales } from "./wgsl/matmul-common.ts";

const LANES = 8;
const PLACES = LANES * MATRIX_ROW_GROUP;

/** Bytes of one (row, lane, step). */
const BLOCK_BYTES: Record<MatrixEncoding, number> = { f32: 128, bf16: 64, f16: 64, int8: 32, int4: 16 };

/** Rows of a matrix in buffers of their own, because a binding is limited. */
export interface MatrixPart {
  firstRow: number;
  rowCount: number;
  weights: GPUBuffer;
  /** int8 and int4 only. */
  scales: GPUBuffer | undefined;
}

/** A run of packed bytes in one buffer. */
export interface PackedRun {
  buffer: GPUBuffer;
  byteOffset: number;
  bytes: number;
}

/** See `Matrix`. The packed form is that of every part in turn: weights, then scales. */
export class WebGpuMatrix implements Matrix {
  readonly label: string;
  readonly outWidth: number;
  readonly inWidth: number;
  readonly encoding: MatrixEncoding;
  readonly packedBytes: number;
  /** Blocks of 32 inputs that one lane has of a row. */
  readonly steps: number;
  readonly parts: readonly MatrixPart[];

  /** `bindingBytesMax`: largest buffer of a part. */
  constructor(
    gpu: Gpu,
    label: string,
    encoding: MatrixEncoding,
    { outWidth, inWidth, bindingBytesMax }: { outWidth: number; inWidth: number; bindingBytesMax: number },
  ) {
    for (const width of [outWidth, inWidth]) {
      assert(Number.isInteger(width) && width > 0, `matrix ${label}: widths must be positive integers`);
    }
    assert(encoding in BLOCK_BYTES, `unknown matrix encoding ${String(encoding)}`);
    this.label = label;
    this.outWidth = outWidth;
    this.inWidth = inWidth;
    this.encoding = encoding;
    this.steps = Math.ceil(Math.ceil(inWidth / SCALE_GROUP) / LANES);
    const groupBytes = this.#groupBytes();
    const groupsMax = Math.floor(bindingBytesMax / groupBytes);
    assert(
      groupsMax > 0,
      `matrix ${label}: ${MATRIX_ROW_GROUP} rows are more than a binding of ${bindingBytesMax} bytes`,
    );
    const parts: MatrixPart[] = [];
    for (let firstRow = 0; firstRow < outWidth; firstRow += groupsMax * MATRIX_ROW_GROUP) {
      const rowCount = Math.min(outWidth - firstRow, groupsMax * MATRIX_ROW_GROUP);
      const groups = Math.ceil(rowCount / MATRIX_ROW_GROUP);
      const scales = this.hasScales ? gpu.storage(`${label} scales`, groups * this.steps * PLACES * 4) : undefined;
      parts.push({ firstRow, rowCount, weights: gpu.storage(label, groups * groupBytes), scales });
    }
    this.parts = parts;
    this.packedBytes = this.runs().reduce((bytes, run) => bytes + run.bytes, 0);
  }

  get hasScales(): boolean {
    return hasScales(this.encoding);
  }

  /** Inputs of a row with their padding. */
  get paddedWidth(): number {
    return this.steps * LANES * SCALE_GROUP;
  }

  /** The buffers of the packed form, in order. */
  runs(): PackedRun[] {
    return this.parts.flatMap(({ rowCount, weights, scales }) => {
      const groups = Math.ceil(rowCount / MATRIX_ROW_GROUP);
      const codes = { buffer: weights, byteOffset: 0, bytes: groups * this.#groupBytes() };
      if (scales === undefined) return [codes];
      return [codes, { buffer: scales, byteOffset: 0, bytes: groups * this.steps * PLACES * 4 }];
    });
  }

  /** The pieces of `[byteOffset, byteOffset + bytes)` of the packed form. */
  runsWithin(byteOffset: number, bytes: number): PackedRun[] {
    let at = 0;
    const runs: PackedRun[] = [];
    for (const run of this.runs()) {
      const start = Math.max(byteOffset, at);
      const end = Math.min(byteOffset + bytes, at + run.bytes);
      if (start < end) runs.push({ buffer: run.buffer, byteOffset: start - at, bytes: end - start });
      at += run.bytes;
    }
    return runs;
  }

  /** Packs rows of floats; calls `put` with each buffer's bytes. See `Device.writeRows`; int8 and int4 are packed by packer.ts. */
  packRows(firstRow: number, data: Float32Array, put: (run: PackedRun, bytes: Uint8Array) => void): void {
    const rows = assertMatrixRows(this, firstRow, data);
    for (const part of this.parts) {
      const start = Math.max(firstRow, part.firstRow);
      const end = Math.min(firstRow + rows, part.firstRow + part.rowCount);
      if (start >= end) continue;
      const piece = data.subarray((start - firstRow) * this.inWidth, (end - firstRow) * this.inWidth);
      const weights = this.#pack(piece, end - start);
      const group = (start - part.firstRow) / MATRIX_ROW_GROUP;
      const byteOffset = group * this.#groupBytes();
      put({ buffer: part.weights, byteOffset, bytes: weights.length }, weights);
    }
  }

  #groupBytes(): number {
    return this.steps * PLACES * BLOCK_BYTES[this.encoding];
  }

  #pack(data: Float32Array, rows: number): Uint8Array {
    const places = Math.ceil(rows / MATRIX_ROW_GROUP) * this.steps * PLACES;
    const weights = new Uint8Array(places * BLOCK_BYTES[this.encoding]);
    if (this.encoding === "f32") this.#packFloats(data, rows, weights);
    else this.#packHalves(this.encoding === "bf16" ? bf16Bits(data) : f16Bits(roundToF16(data)), rows, weights);
    return weights;
  }

  /** Index of a block of a (row, lane, step). */
  #place(row: number, block: number): number {
    const group = Math.floor(row / MATRIX_ROW_GROUP);
    const place = (row % MATRIX_ROW_GROUP) * LANES + Math.floor(block / this.steps);
    return (group * this.steps + (block % this.steps)) * PLACES + place;
  }

  /** Index of the 16 bytes numbered `vector` of a block, of `vectors` in all. */
  #vector(row: number, block: number, vector: number, vectors: number): number {
    const place = this.#place(row, block);
    return (Math.floor(place / PLACES) * vectors + vector) * PLACES + (place % PLACES);
  }

  #packFloats(data: Float32Array, rows: number, weights: Uint8Array): void {
    const floats = new Float32Array(weights.buffer);
    for (let row = 0; row < rows; row++) {
      for (let k = 0; k < this.inWidth; k++) {
        const i = k % SCALE_GROUP;
        const vector = this.#vector(row, Math.floor(k / SCALE_GROUP), i >> 2, 8);
        floats[vector * 4 + (i & 3)] = data[row * this.inWidth + k] as number;
      }
    }
  }

  #packHalves(bits: Uint16Array, rows: number, weights: Uint8Array): void {
    const halves = new Uint16Array(weights.buffer);
    for (let row = 0; row < rows; row++) {
      for (let k = 0; k < this.inWidth; k++) {
        const i = k % SCALE_GROUP;
        const vector = this.#vector(row, Math.floor(k / SCALE_GROUP), i >> 3, 4);
        halves[vector * 8 + (i & 7)] = bits[row * this.inWidth + k] as number;
      }
    }
  }
}

/** The upper halves of values rounded to bf16. */
function bf16Bits(data: Float32Array): Uint16Array {
  return Uint16Array.from(new Uint32Array(roundToBf16(data).buffer), (word) => word >>> 16);
}
