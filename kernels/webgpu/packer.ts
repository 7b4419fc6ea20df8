/// <reference types="@webgpu/types" />
/** Packs rows of int8 and int4 matrices on the GPU: the host only hands over what it read. */
import { MATRIX_ROW_GROUP } from "../contract.ts";
import { assertMatrixRows } from "../validate.ts";
import type { Gpu } from "./gpu.ts";
import { PARAMS_STRIDE, writeParams } from "./kernel.ts";
import type { MatrixPart, WebGpuMatrix } from "./packed-matrix.ts";
import { packRows } from "./wgsl/pack-rows.ts";

/** Rows are handed over in pieces of about so much. */
const PIECE_BYTES = 32 * 2 ** 20;

/** Of one device. */
export class Packer {
  readonly #gpu: Gpu;
  readonly #words = new Uint32Array(PARAMS_STRIDE / 4);
  readonly #floats = new Float32Array(this.#words.buffer);
  #params: GPUBuffer | undefined;
  #input: GPUBuffer | undefined;

  constructor(gpu: Gpu) {
    this.#gpu = gpu;
  }

  /** See `Device.writeRows`; for int8 and int4. Ordered with all that is submitted; `data` is not kept. */
  pack(matrix: WebGpuMatrix, firstRow: number, data: Float32Array<ArrayBuffer>): void {
    const end = firstRow + assertMatrixRows(matrix, firstRow, data);
    const width = matrix.inWidth;
    const rowsMax = Math.max(1, Math.floor(PIECE_BYTES / (width * 4 * MATRIX_ROW_GROUP))) * MATRIX_ROW_GROUP;
    for (const part of matrix.parts) {
      const partEnd = Math.min(end, part.firstRow + part.rowCount);
      for (let row = Math.max(firstRow, part.firstRow); row < partEnd; row += rowsMax) {
        const rows = Math.min(rowsMax, partEnd - row);
        const input = this.#inputOf(rows * width * 4);
        this.#gpu.device.queue.writeBuffer(input, 0, data, (row - firstRow) * width, rows * width);
        this.#dispatch(matrix, part, { input, row, rows });
      }
    }
  }

  #dispatch(
    { encoding, inWidth, steps }: WebGpuMatrix,
    part: MatrixPart,
    { input, row, rows }: { input: GPUBuffer; row: number; rows: number },
  ): void {
    const { device } = this.#gpu;
    const pipeline = this.#gpu.pipelineOf(packRows(encoding as "int8" | "int4"));
    const params = { rows, width: inWidth, steps, group_first: (row - part.firstRow) / MATRIX_ROW_GROUP };
    writeParams(pipeline.fields, params, { words: this.#words, floats: this.#floats }, 0);
    this.#params ??= this.#gpu.uniforms(PARAMS_STRIDE);
    device.queue.writeBuffer(this.#params, 0, this.#words);
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline.pipeline);
    pass.setBindGroup(0, this.#gpu.bind(pipeline, this.#params, [input, part.weights, part.scales as GPUBuffer]), [0]);
    pass.dispatchWorkgroups(steps, Math.ceil(rows / MATRIX_ROW_GROUP));
    pass.end();
    device.queue.submit([encoder.finish()]);
  }

  #inputOf(bytes: number): GPUBuffer {
    if (this.#input !== undefined && this.#input.size >= bytes) return this.#input;
    if (this.#input !== undefined) this.#gpu.destroy(this.#input);
    this.#input = this.#gpu.storage("rows to pack", bytes);
    return this.#input;
  }
}
