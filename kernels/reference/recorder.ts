import { assert } from "../../protocol/assert.ts";
import { StepChoices } from "../choice.ts";
import type {
  DeviceBuffer,
  Sample,
  SampleRow,
  SelectionView,
  SliceTraffic,
  StepReadback,
  StepRecorder,
  StepSlice,
} from "../contract.ts";
import { sampleRow } from "../sample-row.ts";
import { ChosenBlocks, emptyTraffic, MissSet } from "../traffic.ts";
import { assertSlices, assertSlicesFit } from "../validate.ts";
import { append } from "./append.ts";
import { attend } from "./attend.ts";
import { copyRows, gatherRows } from "./copy-rows.ts";
import { embed } from "./embed.ts";
import { matmul } from "./matmul.ts";
import { floatsOf, ownMatrix, ownPool, type ReferencePool } from "./memory.ts";
import { rmsNorm } from "./rms-norm.ts";
import { type GroupSelection, recheck, select } from "./select.ts";
import { siluMul } from "./silu-mul.ts";

type Args<Op extends keyof StepRecorder> = Parameters<StepRecorder[Op]>[0];

/** Checks shapes and runs every op at once. */
export class ReferenceRecorder implements StepRecorder {
  readonly #slices: readonly StepSlice[];
  readonly #rowCount: number;
  readonly #onEnd: () => void;
  readonly #traffic: SliceTraffic[];
  readonly #misses = new MissSet();
  readonly #chosenBlocks: ChosenBlocks;
  readonly #choices: StepChoices;
  readonly #samples: Sample[] = [];
  readonly #checkedPools = new Set<ReferencePool>();
  #selected: { pool: ReferencePool; layer: number; groups: GroupSelection[] } | undefined;
  #ended = false;

  constructor(slices: readonly StepSlice[], onEnd: () => void) {
    assertSlices(slices);
    this.#slices = slices;
    this.#rowCount = slices.reduce((rows, slice) => rows + slice.rowCount, 0);
    this.#traffic = slices.map(emptyTraffic);
    this.#chosenBlocks = new ChosenBlocks(slices);
    this.#choices = new StepChoices(slices);
    this.#onEnd = onEnd;
  }

  embed({ out, table, tokens }: Args<"embed">): void {
    this.#assertOpen();
    embed(floatsOf(out, tokens.length * table.inWidth), ownMatrix(table), tokens);
  }

  rmsNorm({ out, x, weight, ...shape }: Args<"rmsNorm">): void {
    this.#assertOpen();
    assertDistinct(out, x);
    const elements = shape.rows * shape.width;
    rmsNorm(floatsOf(out, elements), floatsOf(x, elements), floatsOf(weight, shape.width), shape);
  }

  matmul({ out, x, matrix, rows, accumulate = false }: Args<"matmul">): void {
    this.#assertOpen();
    assertDistinct(out, x);
    const input = floatsOf(x, rows * matrix.inWidth);
    matmul(floatsOf(out, rows * matrix.outWidth), input, ownMatrix(matrix), rows, accumulate);
  }

  siluMul({ out, gate, up, rows, width }: Args<"siluMul">): void {
    this.#assertOpen();
    assertDistinct(out, up);
    const elements = rows * width;
    siluMul(floatsOf(out, elements), floatsOf(gate, elements), floatsOf(up, elements), elements);
  }

  copyRows({ out, x, ...shape }: Args<"copyRows">): void {
    this.#assertOpen();
    const overlap = Math.abs(shape.outRow - shape.xRow) < shape.rows;
    assert(out !== x || !overlap, "copyRows within a buffer needs ranges that do not overlap");
    const to = floatsOf(out, (shape.outRow + shape.rows) * shape.width);
    copyRows(to, floatsOf(x, (shape.xRow + shape.rows) * shape.width), shape);
  }

  gatherRows({ out, x, indices, width }: Args<"gatherRows">): void {
    this.#assertOpen();
    assertDistinct(out, x);
    gatherRows(floatsOf(out, indices.length * width), floatsOf(x, 0), indices, width);
  }

  append({ pool, layer, headCount, q, k, v, rope }: Args<"append">): void {
    const own = this.#poolFor(pool, layer, headCount);
    const queries = this.#rowCount * headCount * pool.spec.headDim;
    const keys = this.#rowCount * pool.spec.kvHeadCount * pool.spec.headDim;
    const angles = (rope.positionCount * pool.spec.headDim) / 2;
    const buffers = { q: floatsOf(q, queries), k: floatsOf(k, keys), v: floatsOf(v, keys) };
    const table = {
      cos: floatsOf(rope.cos, angles),
      sin: floatsOf(rope.sin, angles),
      positionCount: rope.positionCount,
    };
    append({ pool: own, layer, headCount, ...buffers, ...table }, this.#slices);
  }

  select({ pool, layer, headCount, q }: Args<"select">): void {
    const own = this.#poolFor(pool, layer, headCount);
    const queries = floatsOf(q, this.#rowCount * headCount * pool.spec.headDim);
    const counters = {
      ...{ misses: this.#misses, chosenBlocks: this.#chosenBlocks },
      ...{ choices: this.#choices, traffic: this.#traffic },
    };
    const previous =
      this.#selected?.pool === own && this.#selected.layer === layer - 1 ? this.#selected.groups : undefined;
    const groups = select({ pool: own, layer, headCount, q: queries }, this.#slices, counters, previous);
    this.#selected = { pool: own, layer, groups };
  }

  attend({ pool, layer, headCount, q, out }: Args<"attend">): void {
    const own = this.#poolFor(pool, layer, headCount);
    assertDistinct(out, q);
    const selected = this.#selected;
    assert(selected?.pool === own && selected.layer === layer, `attend at layer ${layer} without its select`);
    const elements = this.#rowCount * headCount * pool.spec.headDim;
    const args = { pool: own, layer, headCount, q: floatsOf(q, elements), out: floatsOf(out, elements) };
    attend(args, this.#slices, selected.groups, this.#traffic);
  }

  sample({ logits, width, rows }: Args<"sample">): void {
    this.#assertOpen();
    for (const row of rows) this.#samples.push(this.#sampleOne(logits, width, row));
  }

  hasMissed(sliceIndex: number): boolean {
    return this.#misses.hasSlice(sliceIndex);
  }

  report(): StepReadback {
    this.#assertOpen();
    return {
      ...{ samples: this.#samples, misses: this.#misses.list(), traffic: this.#traffic.map((each) => ({ ...each })) },
      ...this.#chosenBlocks.list(),
      ...this.#choices.list(),
    };
  }

  recheck(): void {
    this.#assertOpen();
    if (this.#selected === undefined) return;
    const { layer, groups } = this.#selected;
    this.#misses.forget(layer);
    recheck(layer, groups, this.#slices, this.#misses);
  }

  async submit(): Promise<StepReadback> {
    const readback = this.report();
    this.#ended = true;
    this.#onEnd();
    return readback;
  }

  /** What the last `select` chose. */
  selectionViews(): SelectionView[] {
    return (this.#selected?.groups ?? []).map(({ sliceIndex, groupIndex, kvHead, pages, tokenMasks }) => ({
      sliceIndex,
      group: groupIndex,
      kvHead,
      ...(pages === undefined ? {} : { pages: [...pages] }),
      ...(tokenMasks === undefined ? {} : { tokenMasks: [...tokenMasks] }),
    }));
  }

  #sampleOne(logits: DeviceBuffer, width: number, row: SampleRow): Sample {
    const all = floatsOf(logits, (row.row + 1) * width);
    return sampleRow(all.subarray(row.row * width, (row.row + 1) * width), row);
  }

  #poolFor(pool: Args<"append">["pool"], layer: number, headCount: number): ReferencePool {
    this.#assertOpen();
    const own = ownPool(pool);
    assert(layer >= 0 && layer < own.spec.layerCount, `layer ${layer} is out of range`);
    assert(headCount > 0 && headCount % own.spec.kvHeadCount === 0, "headCount must be a multiple of kvHeadCount");
    if (!this.#checkedPools.has(own)) assertSlicesFit(own.spec, this.#slices);
    this.#checkedPools.add(own);
    return own;
  }

  #assertOpen(): void {
    assert(!this.#ended, "the step was submitted");
  }
}

function assertDistinct(out: DeviceBuffer, input: DeviceBuffer): void {
  assert(out !== input, `${out.label} cannot be both input and output of this op`);
}
