/// <reference types="@webgpu/types" />
/**
 * Inputs of products as their kernels read them: quantized, padded, or as they are. An op whose result may be such an input waits for the next op: where
 * that is a product of the same rows by an int8 or int4 matrix, one kernel does both, else the op runs as it is.
 */
import type { Arena, CommandList, Grid, StepBuffers } from "./command-list.ts";
import type { Kernel } from "./kernel.ts";
import type { WebGpuMatrix } from "./packed-matrix.ts";
import { PAD_ROWS, QUANTIZE_ROWS } from "./wgsl/quantize-rows.ts";

/** A dispatch as `CommandList` takes it. */
export interface Dispatch {
  kernel: Kernel;
  params: Readonly<Record<string, number>>;
  buffers: readonly (GPUBuffer | Arena)[];
  grid: Grid;
}

/** An op that writes `rows` rows of `width` elements into `out`. */
export interface WaitingOp {
  out: GPUBuffer;
  rows: number;
  width: number;
  alone: readonly Dispatch[];
  /** The op with the quantization of its result; codes and scales are its last bindings. `blocks`: of a padded row. */
  quantizing: (blocks: number) => Dispatch;
  /** It reads rows of this kind itself, so its result goes elsewhere. */
  reads?: ProductInput;
}

/** Where a product finds its input. */
export interface ProductInput {
  rows: GPUBuffer | Arena;
  /** Of int8 and int4 products. */
  scales: Arena;
}

/** Rows that a kernel made for products. */
interface Made extends ProductInput {
  rows: Arena;
}

/** Of one step. */
export class ProductInputs {
  readonly #list: CommandList;
  #waiting: WaitingOp | undefined;
  /** The rows that were quantized, or padded, last, and where they lie. */
  #entered: { x: GPUBuffer; rows: number; width: number; isInteger: boolean; made: Made } | undefined;
  readonly #places: readonly [Made, Made];

  constructor(list: CommandList, buffers: StepBuffers) {
    this.#list = list;
    const { inputs, inputScales, nextInputs, nextInputScales } = buffers;
    this.#places = [
      { rows: inputs, scales: inputScales },
      { rows: nextInputs, scales: nextInputScales },
    ];
  }

  /** An op has been recorded and not been dispatched. */
  get isWaiting(): boolean {
    return this.#waiting !== undefined;
  }

  /** Takes an op instead of its dispatch. None may be waiting. */
  wait(op: WaitingOp): void {
    this.written(op.out);
    this.#waiting = op;
  }

  /** Dispatches what waits, as it is: before any op but a product, and before the end of the step. */
  flush(): void {
    const op = this.#waiting;
    if (op === undefined) return;
    this.#waiting = undefined;
    for (const { kernel, params, buffers, grid } of op.alone) this.#list.dispatch(kernel, params, buffers, grid);
  }

  /** The rows of a product's input as its kernels read them; made once for products that follow each other. */
  enter(matrix: WebGpuMatrix, x: GPUBuffer, rows: number): ProductInput {
    const width = matrix.inWidth;
    const isInteger = matrix.hasScales;
    const op = this.#waiting;
    const fuses = isInteger && op?.out === x && op.rows === rows && op.width === width;
    if (!fuses) this.flush();
    const [first, second] = this.#places;
    if (!isInteger && width === matrix.paddedWidth) return { rows: x, scales: first.scales };
    const known = this.#entered;
    const isKnown = known?.x === x && known.rows === rows && known.width === width && known.isInteger === isInteger;
    if (isKnown) return known.made;
    const made = fuses && op.reads?.rows === first.rows ? second : first;
    const blocks = matrix.paddedWidth / 32;
    made.rows.need(rows * matrix.paddedWidth * (isInteger ? 1 : 4));
    if (isInteger) made.scales.need(rows * blocks * 8);
    const to = [made.rows, made.scales];
    if (fuses) {
      this.#waiting = undefined;
      const { kernel, params, buffers, grid } = op.quantizing(blocks);
      this.#list.dispatch(kernel, params, [...buffers, ...to], grid);
    } else if (isInteger) {
      this.#list.dispatch(QUANTIZE_ROWS, { width, blocks }, [x, ...to], [Math.ceil(blocks / 8), rows]);
    } else {
      const grid = [Math.ceil(matrix.paddedWidth / 64), rows] as const;
      this.#list.dispatch(PAD_ROWS, { width, padded_width: matrix.paddedWidth }, [x, made.rows], grid);
    }
    this.#entered = { x, rows, width, isInteger, made };
    return made;
  }

  /** What was made of this buffer's rows is true no more. Default: of any buffer. */
  written(buffer?: GPUBuffer): void {
    if (buffer === undefined || this.#entered?.x === buffer) this.#entered = undefined;
  }
}
