/// <reference types="@webgpu/types" />
/**
 * Products of the same rows by matrices that follow each other (queries, keys and values; gate and up) as one dispatch: a product waits for the next op. Where
 * that is another one of the same rows, by a matrix of the same encoding and width, into another buffer, it joins; before anything else what waits runs.
 */
import type { MatrixEncoding } from "../contract.ts";
import type { Arena, CommandList } from "./command-list.ts";
import type { Gpu } from "./gpu.ts";
import type { Kernel, Lane } from "./kernel.ts";
import type { MatrixPart, WebGpuMatrix } from "./packed-matrix.ts";
import type { Dispatch, ProductInput, ProductInputs, WaitingOp } from "./product-inputs.ts";
import { GATED_BUFFERS, gatedFfn } from "./wgsl/gated-ffn.ts";
import { GEMM_TILE, GEMV_ROWS, GEMV_TWO_GROUPS_MIN, gemm, gemv } from "./wgsl/matmul.ts";
import { hasScales, MATRICES_MAX, type MatrixCount, storageBuffersOf } from "./wgsl/matmul-common.ts";
import { gemmByMatrices, MATRIX_COLUMNS, MATRIX_ROWS } from "./wgsl/matmul-matrix.ts";

/** `out = x . matrix^T`, or added to it; all f32, `x` `[rows, inWidth]`, `out` `[rows, outWidth]`. */
export interface Product {
  x: GPUBuffer;
  out: GPUBuffer;
  matrix: WebGpuMatrix;
  rows: number;
  accumulate: boolean;
}

/** Products of one input that wait, all of whole matrices. */
interface Waiting {
  first: Product;
  inputs: ProductInput;
  members: { out: GPUBuffer; part: MatrixPart }[];
}

/** Of one step. */
export class Products {
  readonly #gpu: Gpu;
  readonly #list: CommandList;
  readonly #inputs: ProductInputs;
  #waiting: Waiting | undefined;

  constructor(gpu: Gpu, list: CommandList, inputs: ProductInputs) {
    this.#gpu = gpu;
    this.#list = list;
    this.#inputs = inputs;
  }

  /** A product has been recorded and not been dispatched. */
  get isWaiting(): boolean {
    return this.#waiting !== undefined;
  }

  /** `out` is neither `x` nor of another step. */
  multiply(product: Product): void {
    const { x, out, matrix, rows, accumulate } = product;
    const [part] = matrix.parts;
    const isWhole = matrix.parts.length === 1 && part !== undefined;
    if (isWhole && this.#joins(product)) {
      this.#waiting?.members.push({ out, part });
    } else {
      this.flush();
      const inputs = this.#inputs.enter(matrix, x, rows);
      if (isWhole) this.#waiting = { first: product, inputs, members: [{ out, part }] };
      else for (const each of matrix.parts) this.#multiplyPart({ matrix, out, rows, accumulate }, inputs, each);
    }
    this.#inputs.written(out);
  }

  /** Dispatches what waits: before any op but a product that joins, and before the end of the step. */
  flush(): void {
    const waiting = this.#waiting;
    if (waiting === undefined) return;
    this.#waiting = undefined;
    const [alone] = waiting.members;
    if (waiting.members.length === 1 && alone !== undefined) {
      this.#multiplyPart(waiting.first, waiting.inputs, alone.part);
      return;
    }
    const { kernel, params, buffers, grid } = this.#together(waiting);
    this.#list.dispatch(kernel, params, buffers, grid);
  }

  /**
   * Takes the products by two int8 or int4 matrices that wait, where they are `gate` and `up` of few rows: what waits then for the product behind is them and
   * the activation; `alone` of the products only. Else undefined, and nothing changes.
   */
  gate({
    gate,
    up,
    rows,
    width,
  }: {
    gate: GPUBuffer;
    up: GPUBuffer;
    rows: number;
    width: number;
  }): WaitingOp | undefined {
    const waiting = this.#waiting;
    if (waiting?.members.length !== 2) return undefined;
    const { first, inputs, members } = waiting;
    const [one, other] = [gate, up].map((out) => members.find((member) => member.out === out)?.part);
    const { encoding, steps } = first.matrix;
    const few = GEMV_ROWS.find((each) => rows <= each);
    if (one?.rowCount !== width || other?.rowCount !== width || few === undefined) return undefined;
    if (!hasScales(encoding) || first.rows !== rows || first.accumulate) return undefined;
    if (this.#gpu.device.limits.maxStorageBuffersPerShaderStage < GATED_BUFFERS) return undefined;
    this.#waiting = undefined;
    return {
      ...{ out: gate, rows, width, reads: inputs },
      alone: [this.#together(waiting)],
      quantizing: (blocks) => ({
        kernel: gatedFfn(encoding, few),
        params: { rows, steps, width, blocks },
        buffers: [...inputBuffers(first.matrix, inputs), ...partBuffers(one), gate, ...partBuffers(other), up],
        grid: [blocks, Math.ceil(rows / few)],
      }),
    };
  }

  #together({ first, inputs, members }: Waiting): Dispatch {
    const { rows, accumulate, matrix } = first;
    const matrices = members.length as MatrixCount;
    const width = members.reduce((sum, { part }) => sum + part.rowCount, 0);
    const shape = { encoding: matrix.encoding, rows, width, matrices };
    const { kernel, columns, rowsPerGroup } = productKernel(shape, this.#gpu.lane);
    const buffers = inputBuffers(matrix, inputs);
    const widths = [0, 0, 0];
    const begins = [0, 0, 0];
    let groups = 0;
    members.forEach(({ out, part }, index) => {
      widths[index] = part.rowCount;
      begins[index] = groups;
      groups += Math.ceil(part.rowCount / columns);
      buffers.push(...partBuffers(part), out);
    });
    const [width_0 = 0, width_1 = 0, width_2 = 0] = widths;
    const [, begin_1 = 0, begin_2 = 0] = begins;
    const places = { width_0, width_1, width_2, begin_1, begin_2 };
    const params = { rows, steps: matrix.steps, accumulate: accumulate ? 1 : 0, ...places };
    return { kernel, params, buffers, grid: [groups, Math.ceil(rows / rowsPerGroup)] };
  }

  #joins({ x, out, matrix, rows, accumulate }: Product): boolean {
    if (this.#waiting === undefined) return false;
    const { first, members } = this.#waiting;
    const isLike =
      first.x === x &&
      first.rows === rows &&
      first.accumulate === accumulate &&
      first.matrix.encoding === matrix.encoding &&
      first.matrix.inWidth === matrix.inWidth;
    if (!isLike || members.length === MATRICES_MAX || members.some((member) => member.out === out)) return false;
    const { maxStorageBuffersPerShaderStage, maxComputeWorkgroupsPerDimension } = this.#gpu.device.limits;
    // A work group has 8 rows of a matrix at least.
    const groupsMax = [...members.map(({ part }) => part.rowCount), matrix.outWidth].reduce(
      (sum, width) => sum + Math.ceil(width / 8),
      0,
    );
    return (
      storageBuffersOf(matrix.encoding, members.length + 1) <= maxStorageBuffersPerShaderStage &&
      groupsMax <= maxComputeWorkgroupsPerDimension
    );
  }

  #multiplyPart({ matrix, out, rows, accumulate }: Omit<Product, "x">, inputs: ProductInput, part: MatrixPart): void {
    const { firstRow, rowCount } = part;
    const shape = { encoding: matrix.encoding, rows, width: rowCount, matrices: 1 as const };
    const { kernel, columns, rowsPerGroup } = productKernel(shape, this.#gpu.lane);
    const params = {
      ...{ rows, out_width: matrix.outWidth, out_first: firstRow, part_width: rowCount },
      ...{ steps: matrix.steps, accumulate: accumulate ? 1 : 0 },
    };
    const buffers = [...inputBuffers(matrix, inputs), ...partBuffers(part), out];
    this.#list.dispatch(kernel, params, buffers, [Math.ceil(rowCount / columns), Math.ceil(rows / rowsPerGroup)]);
  }
}

function inputBuffers({ hasScales }: WebGpuMatrix, { rows, scales }: ProductInput): (GPUBuffer | Arena)[] {
  return hasScales ? [rows, scales] : [rows];
}

function partBuffers({ weights, scales }: MatrixPart): GPUBuffer[] {
  return scales === undefined ? [weights] : [weights, scales];
}

/** What is multiplied: `rows` of the input by so many matrices (or one part of one) that have `width` rows together. */
interface ProductShape {
  encoding: MatrixEncoding;
  rows: number;
  width: number;
  matrices: MatrixCount;
}

/** The kernel of a product, and the rows of the matrix and of the input that a work group takes. All give the same bits. */
function productKernel(
  { encoding, rows, width, matrices }: ProductShape,
  { matrix }: Lane,
): { kernel: Kernel; columns: number; rowsPerGroup: number } {
  const few = GEMV_ROWS.find((each) => rows <= each);
  if (few !== undefined) {
    const groups = hasScales(encoding) && few > 1 && width >= GEMV_TWO_GROUPS_MIN ? 2 : 1;
    return { kernel: gemv(encoding, few, groups, matrices), columns: 8 * groups, rowsPerGroup: few };
  }
  if (matrix !== undefined && hasScales(encoding)) {
    return { kernel: gemmByMatrices(encoding, matrix, matrices), columns: MATRIX_COLUMNS, rowsPerGroup: MATRIX_ROWS };
  }
  return { kernel: gemm(encoding, matrices), columns: GEMM_TILE, rowsPerGroup: GEMM_TILE };
}
