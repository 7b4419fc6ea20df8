/// <reference types="@webgpu/types" />
/** Records one step: checks every op as the other devices do, and turns it into dispatches. */
import { assert } from "../../protocol/assert.ts";
import {
  type DeviceBuffer,
  type KvEncoding,
  NOT_RESIDENT,
  type StepReadback,
  type StepRecorder,
  type StepSlice,
  type SummaryKind,
} from "../contract.ts";
import { layerRole } from "../page-range.ts";
import { assertSlices, sealedByStep } from "../validate.ts";
import { memoryOf, ownBuffer, ownMatrix, ownPool } from "./buffers.ts";
import { CommandList, type KernelTime, type StepBuffers } from "./command-list.ts";
import type { Gpu } from "./gpu.ts";
import type { Kernel } from "./kernel.ts";
import type { WebGpuPool } from "./pool.ts";
import { type Dispatch, ProductInputs } from "./product-inputs.ts";
import { Products } from "./products.ts";
import { readSamples, type SamplePlace, sampleBatch } from "./sampling.ts";
import { queryFormOf, recordAttend, recordSelect } from "./selection.ts";
import { StepLayout } from "./step-layout.ts";
import { StepReport } from "./step-report.ts";
import { APPEND, seal, summarize } from "./wgsl/append.ts";
import { appendQueries } from "./wgsl/append-queries.ts";
import { writeCentres } from "./wgsl/centres.ts";
import { summarizePageKeys } from "./wgsl/page-keys.ts";
import { summarizeResidualSigns } from "./wgsl/residual-signs.ts";
import { rmsNorm } from "./wgsl/rms-norm.ts";
import {
  COPY,
  COPY_WITHIN,
  COPY4,
  embed,
  GATHER_ROWS,
  SILU_MUL,
  SILU_MUL_IN_PLACE,
  SILU_MUL_QUANTIZE,
} from "./wgsl/row-ops.ts";
import { ADJUST_LOGITS, CHOOSE_TOKEN, LOGPROBS, TRUNCATE } from "./wgsl/sample.ts";
import { Addresses, type Words } from "./words.ts";

type Args<Op extends keyof StepRecorder> = Parameters<StepRecorder[Op]>[0];

/** Largest head that the work group memory of append and attend holds; page scores go up to the contract's 512. */
const HEAD_DIM_MAX = 256;
/** Threads of one row of the grid of an elementwise kernel. */
const ROW_THREADS = 65_536;

/** What a recorder works on; all of it outlives the step. */
export interface RecorderParts {
  gpu: Gpu;
  buffers: StepBuffers;
  onEnd: () => void;
  /** Collects the time of every dispatch, which then runs alone. */
  timed?: KernelTime[];
}

/** See `StepRecorder`. Nothing runs before `submit`. */
export class WebGpuRecorder implements StepRecorder {
  readonly #parts: RecorderParts;
  readonly #slices: readonly StepSlice[];
  readonly #rowCount: number;
  readonly #list: CommandList;
  readonly #inputs: ProductInputs;
  readonly #products: Products;
  readonly #tables: Words;
  readonly #outcome = new Addresses();
  readonly #report: StepReport;
  readonly #samples: SamplePlace[] = [];
  readonly #layouts = new Map<WebGpuPool, StepLayout>();
  #selected: { layout: StepLayout; layer: number } | undefined;
  /** Queries whose form for page scores lies in scratch, as long as no command follows. */
  #quantized: { layout: StepLayout; layer: number; q: GPUBuffer; commandCount: number } | undefined;
  #scratchWords = 0;
  #ended = false;

  constructor(parts: RecorderParts, slices: readonly StepSlice[]) {
    assertSlices(slices);
    this.#parts = parts;
    this.#slices = slices;
    this.#rowCount = slices.reduce((rows, slice) => rows + slice.rowCount, 0);
    this.#list = new CommandList(parts.gpu, parts.buffers);
    this.#tables = parts.buffers.words;
    this.#inputs = new ProductInputs(this.#list, parts.buffers);
    this.#products = new Products(parts.gpu, this.#list, this.#inputs);
    this.#report = new StepReport(slices);
  }

  /** Whether an upload has to wait for ops recorded before. Of a submitted step it need not: the queue keeps the order. */
  get hasCommands(): boolean {
    return !this.#ended && (this.#inputs.isWaiting || this.#products.isWaiting || !this.#list.isEmpty);
  }

  /** Copies bytes into a buffer between the ops. */
  upload(to: GPUBuffer, byteOffset: number, data: Uint8Array): void {
    this.#flush();
    this.#list.upload(to, byteOffset, data);
    this.#inputs.written();
  }

  embed({ out, table, tokens }: Args<"embed">): void {
    this.#assertOpen();
    const matrix = ownMatrix(table);
    const to = memoryOf(out, tokens.length * matrix.inWidth);
    for (const token of tokens) {
      assert(token < matrix.outWidth, `token ${token} is outside a table of ${matrix.outWidth}`);
    }
    const tokensAt = this.#tables.push(tokens);
    for (const { firstRow, rowCount, weights, scales } of matrix.parts) {
      const params = { width: matrix.inWidth, steps: matrix.steps, tokens_at: tokensAt, row_first: firstRow };
      const buffers = [weights, ...(scales === undefined ? [] : [scales]), this.#parts.buffers.tables, to];
      const grid = [Math.ceil(matrix.inWidth / 64), tokens.length] as const;
      this.#run({ kernel: embed(matrix.encoding), params: { ...params, row_count: rowCount }, buffers, grid }, to);
    }
  }

  rmsNorm({ out, x, weight, rows, width, eps }: Args<"rmsNorm">): void {
    this.#assertOpen();
    assertDistinct(out, x);
    const to = memoryOf(out, rows * width);
    const buffers = [memoryOf(x, rows * width), memoryOf(weight, width), to];
    const norm = (blocks: number): Dispatch => {
      return { kernel: rmsNorm(width, blocks > 0), params: { width, blocks, eps }, buffers, grid: [rows] };
    };
    this.#inputs.wait({ out: to, rows, width, alone: [norm(0)], quantizing: norm });
  }

  matmul({ out, x, matrix, rows, accumulate = false }: Args<"matmul">): void {
    assert(!this.#ended, "the step was submitted");
    assertDistinct(out, x);
    const own = ownMatrix(matrix);
    const to = memoryOf(out, rows * own.outWidth);
    this.#products.multiply({ x: memoryOf(x, rows * own.inWidth), out: to, matrix: own, rows, accumulate });
  }

  siluMul({ out, gate, up, rows, width }: Args<"siluMul">): void {
    assert(!this.#ended, "the step was submitted");
    assertDistinct(out, up);
    const count = rows * width;
    const [to, from, other] = [memoryOf(out, count), memoryOf(gate, count), memoryOf(up, count)];
    if (to !== from) {
      this.#flush();
      this.#run({ ...elementwise(SILU_MUL, { count }), buffers: [from, other, to] }, to);
      return;
    }
    const buffers = [other, to];
    const alone = { ...elementwise(SILU_MUL_IN_PLACE, { count }), buffers };
    const gated = this.#products.gate({ gate: to, up: other, rows, width });
    this.#flush();
    if (gated !== undefined) {
      this.#inputs.wait({ ...gated, alone: [...gated.alone, alone] });
      return;
    }
    this.#inputs.wait({
      ...{ out: to, rows, width },
      alone: [alone],
      quantizing: (blocks) => {
        return { kernel: SILU_MUL_QUANTIZE, params: { width, blocks }, buffers, grid: [Math.ceil(blocks / 8), rows] };
      },
    });
  }

  copyRows({ out, x, outRow, xRow, rows, width }: Args<"copyRows">): void {
    this.#assertOpen();
    const overlap = Math.abs(outRow - xRow) < rows;
    assert(out !== x || !overlap, "copyRows within a buffer needs ranges that do not overlap");
    const to = memoryOf(out, (outRow + rows) * width);
    const from = memoryOf(x, (xRow + rows) * width);
    const [count, fromAt, toAt] = [rows * width, xRow * width, outRow * width];
    const isWide = to !== from && [count, fromAt, toAt].every((elements) => elements % 4 === 0);
    const unit = isWide ? 4 : 1;
    const params = { count: count / unit, from_at: fromAt / unit, to_at: toAt / unit };
    const kernel = to === from ? COPY_WITHIN : isWide ? COPY4 : COPY;
    this.#run({ ...elementwise(kernel, params), buffers: to === from ? [to] : [from, to] }, to);
  }

  gatherRows({ out, x, indices, width }: Args<"gatherRows">): void {
    this.#assertOpen();
    assertDistinct(out, x);
    const to = memoryOf(out, indices.length * width);
    const from = ownBuffer(x);
    for (const index of indices) {
      assert((index + 1) * width * 4 <= from.bytes, `row ${index} is outside the buffer`);
    }
    const params = { width, indices_at: this.#tables.push(indices) };
    const grid = [Math.ceil(width / 64), indices.length] as const;
    this.#run({ kernel: GATHER_ROWS, params, buffers: [from.memory, this.#parts.buffers.tables, to], grid }, to);
  }

  append({ pool, layer, headCount, q, k, v, rope }: Args<"append">): void {
    const layout = this.#layoutFor(pool, layer, headCount);
    const { kvHeadCount, headDim } = pool.spec;
    assertHead(headDim);
    for (const { position, rowCount } of this.#slices) {
      assert(position + rowCount <= rope.positionCount, "a row lies beyond the RoPE table");
    }
    const keys = this.#rowCount * kvHeadCount * headDim;
    const angles = (rope.positionCount * headDim) / 2;
    const to = memoryOf(q, this.#rowCount * headCount * headDim);
    const own = layout.pool;
    const buffers = [to, memoryOf(k, keys), memoryOf(v, keys), memoryOf(rope.cos, angles), memoryOf(rope.sin, angles)];
    const open = own.open[layer] as GPUBuffer;
    const half = headDim / 2;
    const heads = headCount + kvHeadCount;
    const params = { head_count: headCount, kv_head_count: kvHeadCount, half, rows_at: layout.rowsAt };
    const all = [...buffers, this.#parts.buffers.tables, open];
    const form = queryFormOf(layout.listsOf(layer));
    if (form === undefined) {
      const grid = [Math.ceil((heads * half) / 64), this.#rowCount] as const;
      this.#run({ kernel: APPEND, params, buffers: all, grid }, to);
    } else {
      const { codesAt, scalesAt, turnedAt } = layout;
      const places = { codes_at: codesAt, scales_at: scalesAt, turned_at: turnedAt };
      const kernel = appendQueries(headDim, form);
      const into = [...all, this.#parts.buffers.scratch];
      this.#run({ kernel, params: { ...params, ...places }, buffers: into, grid: [heads, this.#rowCount] }, to);
    }
    this.#sealBlocks(own, layer, open);
    if (form !== undefined) this.#quantized = { layout, layer, q: to, commandCount: this.#list.count };
  }

  select({ pool, layer, headCount, q }: Args<"select">): void {
    const layout = this.#layoutFor(pool, layer, headCount);
    const queries = memoryOf(q, this.#rowCount * headCount * pool.spec.headDim);
    const isBehind = this.#selected?.layout === layout && this.#selected.layer === layer - 1;
    for (const { slice, range } of layout.groups) {
      const takesOver = !range.everything && layerRole(slice.plan, layer) === "takes-over";
      assert(isBehind || !takesOver, "a layer that takes over a choice comes right behind the one that made it");
    }
    this.#report.noteSelect(layout, layer);
    const hasCodes =
      this.#quantized?.layout === layout &&
      this.#quantized.layer === layer &&
      this.#quantized.q === queries &&
      this.#quantized.commandCount === this.#list.count;
    recordSelect({ list: this.#list, buffers: this.#parts.buffers, layout, layer, q: queries }, hasCodes);
    this.#selected = { layout, layer };
  }

  attend({ pool, layer, headCount, q, out }: Args<"attend">): void {
    const layout = this.#layoutFor(pool, layer, headCount);
    assertDistinct(out, q);
    assertHead(pool.spec.headDim);
    const isSelected = this.#selected?.layout === layout && this.#selected.layer === layer;
    assert(isSelected, `attend at layer ${layer} without its select`);
    const elements = this.#rowCount * headCount * pool.spec.headDim;
    const to = memoryOf(out, elements);
    this.#report.noteAttend(layout, layer);
    const source = { list: this.#list, buffers: this.#parts.buffers, layout, layer, q: memoryOf(q, elements) };
    const merge = recordAttend(source, to);
    if (merge === undefined) this.#inputs.written(to);
    else this.#inputs.wait(merge);
  }

  sample({ logits, width, rows }: Args<"sample">): void {
    this.#assertOpen();
    const from = memoryOf(logits, rows.reduce((end, { row }) => Math.max(end, row + 1), 0) * width);
    if (rows.length === 0) return;
    const scratch = new Addresses();
    scratch.take(this.#scratchWords);
    const batch = sampleBatch(rows, width, { tables: this.#tables, scratch, outcome: this.#outcome });
    const { buffers } = this.#parts;
    buffers.scratch.need(scratch.end * 4);
    const params = { jobs_at: batch.jobsAt, width };
    const grid = [batch.count] as const;
    this.#list.dispatch(ADJUST_LOGITS, params, [from, buffers.tables, buffers.scratch], grid);
    if (!batch.isGreedy) this.#list.dispatch(TRUNCATE, params, [buffers.tables, buffers.scratch], grid);
    this.#list.dispatch(CHOOSE_TOKEN, params, [buffers.tables, buffers.scratch, buffers.outcome], grid);
    if (batch.wantsLogprobs) this.#list.dispatch(LOGPROBS, params, [from, buffers.tables, buffers.outcome], grid);
    this.#samples.push(...batch.places);
  }

  report(): undefined {
    return undefined;
  }

  recheck(): void {}

  hasMissed(): undefined {
    return undefined;
  }

  async submit(): Promise<StepReadback> {
    this.#assertOpen();
    this.#ended = true;
    try {
      this.#parts.gpu.assertSound();
      const bytes = await this.#list.submit(this.#tables, this.#outcome.end * 4, this.#parts.timed);
      const outcome = new Uint32Array(bytes.buffer);
      return { samples: readSamples(this.#samples, outcome), ...this.#report.read(outcome) };
    } finally {
      this.#parts.onEnd();
    }
  }

  #sealBlocks(pool: WebGpuPool, layer: number, open: GPUBuffer): void {
    const { tables } = this.#parts.buffers;
    const { kvHeadCount, headDim, encoding, rounding, summaryKinds } = pool.spec;
    const sealed = pool.blockParts.map((): number[] => []);
    for (const slice of this.#slices) {
      const { first, end } = sealedByStep(slice);
      for (let block = first; block < end; block++) {
        const id = slice.blockIds[layer * slice.blockCapacity + block] as number;
        const wordsAt = ((id % pool.blocksPerPart) * pool.blockBytes) / 4;
        const summarySlot = slice.summarySlots[block] ?? NOT_RESIDENT;
        sealed[Math.floor(id / pool.blocksPerPart)]?.push(
          slice.openSlots[block - first] as number,
          wordsAt,
          summarySlot,
        );
      }
    }
    sealed.forEach((entries, part) => {
      if (entries.length === 0) return;
      const blocks = pool.blockParts[part] as GPUBuffer;
      const params = { sealed_at: this.#tables.push(entries), kv_head_count: kvHeadCount };
      const grid = [entries.length / 3, kvHeadCount] as const;
      this.#list.dispatch(seal(encoding, rounding, headDim), params, [open, blocks, tables], grid);
      for (const kind of summaryKinds) {
        const buffers = [blocks, pool.summaries(kind, layer), tables];
        this.#list.dispatch(summarizeKind(kind, encoding, headDim), params, buffers, grid);
        const centres = pool.centres(kind, layer);
        if (centres === undefined) continue;
        this.#list.dispatch(writeCentres(headDim), params, [pool.summaries(kind, layer), centres, tables], grid);
      }
    });
  }

  #run({ kernel, params, buffers, grid }: Dispatch, written: GPUBuffer): void {
    this.#list.dispatch(kernel, params, buffers, grid);
    this.#inputs.written(written);
  }

  #layoutFor(pool: Args<"append">["pool"], layer: number, headCount: number): StepLayout {
    this.#assertOpen();
    const own = ownPool(pool);
    assert(layer >= 0 && layer < own.spec.layerCount, `layer ${layer} is out of range`);
    assert(headCount > 0 && headCount % own.spec.kvHeadCount === 0, "headCount must be a multiple of kvHeadCount");
    const known = this.#layouts.get(own);
    if (known !== undefined) {
      assert(known.headCount === headCount, "headCount changes within a step");
      return known;
    }
    const parts = { pool: own, headCount, slices: this.#slices, tables: this.#tables, outcome: this.#outcome };
    const layout = new StepLayout(parts);
    this.#layouts.set(own, layout);
    this.#scratchWords = Math.max(this.#scratchWords, layout.scratchWords);
    this.#parts.buffers.scratch.need(layout.scratchWords * 4);
    return layout;
  }

  /** Of every op but products: what waits for one runs before it. */
  #assertOpen(): void {
    assert(!this.#ended, "the step was submitted");
    this.#flush();
  }

  #flush(): void {
    this.#products.flush();
    this.#inputs.flush();
  }
}

/** An elementwise kernel over `count` elements. */
function elementwise(
  kernel: Kernel,
  params: Readonly<Record<string, number>> & { count: number },
): Omit<Dispatch, "buffers"> {
  const perRow = Math.min(ROW_THREADS, Math.ceil(params.count / 64) * 64);
  const grid = [perRow / 64, params.count === 0 ? 0 : Math.ceil(params.count / perRow)] as const;
  return { kernel, params: { ...params, row_threads: perRow }, grid };
}

function summarizeKind(kind: SummaryKind, encoding: KvEncoding, headDim: number): Kernel {
  if (kind === "representatives" || kind === "sign-bits") return summarizePageKeys(kind, encoding, headDim);
  if (kind === "residual-signs") return summarizeResidualSigns(encoding, headDim);
  return summarize(kind, encoding, headDim);
}

function assertDistinct(out: DeviceBuffer, input: DeviceBuffer): void {
  assert(out !== input, `${out.label} cannot be both input and output of this op`);
}

function assertHead(headDim: number): void {
  assert(headDim <= HEAD_DIM_MAX, `headDim ${headDim} is more than the ${HEAD_DIM_MAX} of this device`);
}
