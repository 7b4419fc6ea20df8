/** A step on the CPU device: every op is checked when it is recorded, and queued. */
import { assert } from "../../protocol/assert.ts";
import { QuireError } from "../../protocol/errors.ts";
import { StepChoices } from "../choice.ts";
import type {
  DeviceBuffer,
  KvPool,
  Sample,
  SampleRow,
  SelectionView,
  SliceTraffic,
  StepReadback,
  StepRecorder,
  StepSlice,
} from "../contract.ts";
import { layerKey, layerRole } from "../page-range.ts";
import { isPlainArgmax, sampleRow } from "../sample-row.ts";
import { ChosenBlocks, emptyTraffic, MissSet } from "../traffic.ts";
import { assertSlices, assertSlicesFit } from "../validate.ts";
import { append, writeRowTable } from "./append.ts";
import { type AttendTiles, attend, prepareTiles } from "./attend.ts";
import type { Arena } from "./heap.ts";
import { argmaxRows, embed, gatherRows, matmuls, PRODUCTS_MAX, type Product, rmsNorm, siluMul } from "./linear-ops.ts";
import type { Machine } from "./machine.ts";
import { floatsAt, ownBuffer, ownMatrix, ownPool, type WasmPool } from "./memory.ts";
import { countLayer, recountLayer, type SelectCounters, select, viewsOf } from "./select.ts";
import { type LayerBatch, prepareGroups, prepareLayers, refreshTables, type StepGroups } from "./selection-batch.ts";

type Args<Op extends keyof StepRecorder> = Parameters<StepRecorder[Op]>[0];

/** Memory that lasts for a step, and for one selection within it. */
export interface StepArenas {
  step: Arena;
  selection: Arena;
}

/** What layers that plans treat alike have in common. */
interface Batch {
  batch: LayerBatch;
  tiles: AttendTiles;
}

/** A layer that has selected: its choices are counted when its ops have run. */
interface Selected extends Batch {
  step: StepGroups;
  layer: number;
  /** How often was attended to what it chose, before it was counted. */
  attendCount: number;
  isCounted: boolean;
}

/** Products of one input that wait for each other: threads meet once for all of them. */
interface PendingProducts {
  x: number;
  rows: number;
  products: Product[];
}

/**
 * Checks shapes (a wrong one throws at once) and has ops run, in order, at the latest when their results are looked at. Products wait as
 * long as others of the same input follow. When a thread fails, later ops do nothing and `submit` rejects.
 */
export class WasmRecorder implements StepRecorder {
  readonly #machine: Machine;
  readonly #arenas: StepArenas;
  readonly #slices: readonly StepSlice[];
  readonly #rowCount: number;
  readonly #rowTable: number;
  readonly #onEnd: () => void;
  readonly #counters: SelectCounters & { traffic: SliceTraffic[] };
  readonly #samples: Sample[] = [];
  readonly #checkedPools = new Set<WasmPool>();
  /** Of the pools that were selected from, usually one; batches by what plans make of a layer, usually one. */
  readonly #laidOut: { step: StepGroups; batches: Map<string, Batch> }[] = [];
  #selected: Selected | undefined;
  readonly #uncounted: Selected[] = [];
  #pending: PendingProducts | undefined;
  #failure: QuireError | undefined;
  #ended = false;

  constructor(machine: Machine, arenas: StepArenas, slices: readonly StepSlice[], onEnd: () => void) {
    assertSlices(slices);
    this.#machine = machine;
    this.#arenas = arenas;
    this.#slices = slices;
    this.#rowCount = slices.reduce((rows, slice) => rows + slice.rowCount, 0);
    this.#counters = {
      ...{ misses: new MissSet(), chosenBlocks: new ChosenBlocks(slices) },
      ...{ choices: new StepChoices(slices), traffic: slices.map(emptyTraffic) },
    };
    this.#onEnd = onEnd;
    arenas.step.clear();
    this.#rowTable = arenas.step.take(Math.max(8, this.#rowCount * 8));
    writeRowTable(machine.heap.words, this.#rowTable, slices);
  }

  embed({ out, table, tokens }: Args<"embed">): void {
    const outAt = this.#floats(out, tokens.length * table.inWidth);
    const own = ownMatrix(this.#machine.heap, table);
    this.#run(() => embed(this.#machine, outAt, own, tokens));
  }

  rmsNorm({ out, x, weight, rows, width, eps }: Args<"rmsNorm">): void {
    assertDistinct(out, x);
    const elements = rows * width;
    const at = { out: this.#floats(out, elements), x: this.#floats(x, elements), weight: this.#floats(weight, width) };
    this.#run(() => rmsNorm(this.#machine, at, { rows, width, eps }));
  }

  matmul({ out, x, matrix, rows, accumulate = false }: Args<"matmul">): void {
    assertDistinct(out, x);
    const outAt = this.#floats(out, rows * matrix.outWidth);
    const xAt = this.#floats(x, rows * matrix.inWidth);
    const product = { out: outAt, matrix: ownMatrix(this.#machine.heap, matrix), accumulate };
    const before = this.#pending;
    if (before !== undefined && before.x === xAt && before.rows === rows && joins(before.products, product)) {
      before.products.push(product);
      return;
    }
    this.#run(() => {
      this.#pending = { x: xAt, rows, products: [product] };
    });
  }

  siluMul({ out, gate, up, rows, width }: Args<"siluMul">): void {
    assertDistinct(out, up);
    const elements = rows * width;
    const at = { out: this.#floats(out, elements), gate: this.#floats(gate, elements), up: this.#floats(up, elements) };
    this.#run(() => siluMul(this.#machine, at, elements));
  }

  copyRows({ out, outRow, x, xRow, rows, width }: Args<"copyRows">): void {
    const isApart = out !== x || Math.abs(outRow - xRow) >= rows;
    assert(isApart, "copyRows within a buffer needs ranges that do not overlap");
    const outAt = this.#floats(out, (outRow + rows) * width) + outRow * width * 4;
    const xAt = this.#floats(x, (xRow + rows) * width) + xRow * width * 4;
    this.#run(() => {
      this.#machine.threads.finish();
      this.#machine.heap.bytes.copyWithin(outAt, xAt, xAt + rows * width * 4);
    });
  }

  gatherRows({ out, x, indices, width }: Args<"gatherRows">): void {
    assertDistinct(out, x);
    const rowCount = Math.floor(ownBuffer(this.#machine.heap, x).bytes / (width * 4));
    for (const index of indices) assert(index < rowCount, `row ${index} is outside the buffer`);
    const outAt = this.#floats(out, indices.length * width);
    const xAt = this.#floats(x, 0);
    this.#run(() => gatherRows(this.#machine, this.#arenas.step, { out: outAt, x: xAt }, { indices, width }));
  }

  append({ pool, layer, headCount, q, k, v, rope }: Args<"append">): void {
    const own = this.#poolFor(pool, layer, headCount);
    const { headDim, kvHeadCount } = own.spec;
    for (const slice of this.#slices) {
      assert(slice.position + slice.rowCount <= rope.positionCount, "a row lies beyond the RoPE table");
    }
    const keys = this.#rowCount * kvHeadCount * headDim;
    const angles = (rope.positionCount * headDim) / 2;
    const at = {
      q: this.#floats(q, this.#rowCount * headCount * headDim),
      k: this.#floats(k, keys),
      v: this.#floats(v, keys),
      cos: this.#floats(rope.cos, angles),
      sin: this.#floats(rope.sin, angles),
    };
    const args = { pool: own, layer, headCount, ...at, rowTable: this.#rowTable, rowCount: this.#rowCount };
    this.#run(() => append(this.#machine, args, this.#slices));
  }

  select({ pool, layer, headCount, q }: Args<"select">): void {
    const own = this.#poolFor(pool, layer, headCount);
    const queries = this.#floats(q, this.#rowCount * headCount * own.spec.headDim);
    const args = { layer, q: queries, arena: this.#arenas.selection };
    this.#counters.choices.begin(own.spec);
    const before = this.#selected;
    this.#selected = undefined;
    this.#run(() => {
      const selected: Selected = { ...this.#batchOf(own, headCount, layer), layer, attendCount: 0, isCounted: false };
      const isBehind = before?.step === selected.step && before.layer === layer - 1;
      const takesOver = selected.batch.roles.includes("takes-over");
      assert(isBehind || !takesOver, "a layer that takes over a choice comes right behind the one that made it");
      select(this.#machine, selected.step, selected.batch, args, this.#counters);
      this.#uncounted.push(selected);
      if (!selected.step.isUnattended) this.#count();
      this.#selected = selected;
    });
  }

  attend({ pool, layer, headCount, q, out }: Args<"attend">): void {
    const own = this.#poolFor(pool, layer, headCount);
    assertDistinct(out, q);
    const elements = this.#rowCount * headCount * own.spec.headDim;
    const args = { layer, q: this.#floats(q, elements), out: this.#floats(out, elements) };
    this.#run(() => {
      const selected = this.#selected;
      const isSame = selected?.step.pool === own && selected.step.headCount === headCount && selected.layer === layer;
      assert(isSame, `attend at layer ${layer} without its select`);
      attend(this.#machine, selected.step, selected.tiles, args);
      if (selected.isCounted) this.#addRead(selected.step, 1);
      else selected.attendCount++;
    });
  }

  sample({ logits, width, rows }: Args<"sample">): void {
    const at = rows.map(({ row }) => this.#floats(logits, (row + 1) * width) + row * width * 4);
    this.#run(() => {
      const largest = argmaxRows(
        this.#machine,
        this.#arenas.step,
        at.filter((_, index) => isPlainArgmax(rows[index] as SampleRow)),
        width,
      );
      let next = 0;
      for (const [index, row] of rows.entries()) {
        const from = (at[index] as number) / 4;
        if (isPlainArgmax(row)) this.#samples.push({ tokenId: largest[next++] as number });
        else this.#samples.push(sampleRow(this.#machine.heap.floats.subarray(from, from + width), row));
      }
    });
  }

  hasMissed(sliceIndex: number): boolean {
    // Where every block is there, nothing can be missing, and the layers need not be waited for.
    if (!this.#ended && this.#laidOut.some(({ step }) => !step.isUnattended)) this.flush();
    return this.#counters.misses.hasSlice(sliceIndex);
  }

  report(): StepReadback {
    assert(!this.#ended, "the step was submitted");
    this.flush();
    return this.#readback();
  }

  recheck(): void {
    this.flush();
    this.#run(() => {
      for (const { step } of this.#laidOut) refreshTables(this.#machine, step);
      const selected = this.#selected;
      if (selected === undefined) return;
      this.#counters.misses.forget(selected.layer);
      recountLayer(this.#machine, selected.step, selected.batch, selected.layer, this.#counters);
    });
  }

  async submit(): Promise<StepReadback> {
    assert(!this.#ended, "the step was submitted");
    try {
      this.flush();
    } finally {
      this.#ended = true;
      this.#onEnd();
    }
    return this.#readback();
  }

  #readback(): StepReadback {
    const failure = this.#failure ?? this.#machine.threads.failure;
    if (failure !== undefined) throw failure;
    for (const { step } of this.#laidOut) this.#mergeBitmaps(step);
    const { misses, traffic, chosenBlocks, choices } = this.#counters;
    return {
      ...{ samples: this.#samples, misses: misses.list(), traffic: traffic.map((each) => ({ ...each })) },
      ...chosenBlocks.list(),
      ...choices.list(),
    };
  }

  /** What the last `select` chose, ascending by (slice, group, KV head). */
  selectionViews(): SelectionView[] {
    if (!this.#ended) this.flush();
    const selected = this.#selected;
    return selected === undefined ? [] : viewsOf(this.#machine, selected.step, selected.batch);
  }

  /** What layers like this one have in common, laid out when the first of them selects. */
  #batchOf(pool: WasmPool, headCount: number, layer: number): { step: StepGroups } & Batch {
    const { step: arena } = this.#arenas;
    let known = this.#laidOut.find(({ step }) => step.pool === pool && step.headCount === headCount);
    if (known === undefined) {
      known = {
        step: prepareGroups(this.#machine, arena, { pool, headCount, slices: this.#slices }),
        batches: new Map(),
      };
      this.#laidOut.push(known);
    }
    const key = this.#slices.map(({ plan }) => layerKey(plan, layer, pool.spec.kvHeadCount)).join();
    let entry = known.batches.get(key);
    if (entry === undefined) {
      const { step } = known;
      const roles = this.#slices.map(({ plan }) => layerRole(plan, layer));
      const tiles = prepareTiles(this.#machine, arena, step, { roles, layer });
      entry = { batch: prepareLayers(this.#machine, arena, step, { roles, layer }), tiles };
      known.batches.set(key, entry);
    }
    return { step: known.step, ...entry };
  }

  #mergeBitmaps({ places, pool }: StepGroups): void {
    places.forEach(({ bitmapAt, bitmapWords }, index) => {
      if (bitmapAt === 0) return;
      const words = pool.spec.layerCount * bitmapWords;
      this.#counters.chosenBlocks.merge(index, this.#machine.heap.words.subarray(bitmapAt / 4, bitmapAt / 4 + words));
    });
  }

  /** Runs what waits. For whoever looks at memory, or writes to it, beside the step. */
  flush(): void {
    this.#run(() => this.#count());
  }

  /** Runs what waits, and adds up what was chosen. */
  #count(): void {
    this.#machine.threads.finish();
    for (const selected of this.#uncounted.splice(0)) {
      countLayer(this.#machine, selected.step, selected.batch, selected.layer, this.#counters);
      this.#addRead(selected.step, selected.attendCount);
      selected.isCounted = true;
    }
  }

  /** Adds the K and V of the layer counted last, `times` times. */
  #addRead({ groups }: StepGroups, times: number): void {
    for (const { sliceIndex, kvBytes } of groups) {
      (this.#counters.traffic[sliceIndex] as SliceTraffic).kvBytes += kvBytes * times;
    }
  }

  /** Has the products that wait, then work of this step done, unless a thread has failed; a failure is kept for `submit`. */
  #run(work: () => void): void {
    assert(!this.#ended, "the step was submitted");
    if (this.#failure !== undefined) return;
    try {
      const pending = this.#pending;
      this.#pending = undefined;
      if (pending !== undefined) matmuls(this.#machine, pending.x, pending.rows, pending.products);
      work();
    } catch (error) {
      if (!(error instanceof QuireError)) throw error;
      this.#failure = error;
    }
  }

  #floats(buffer: DeviceBuffer, elements: number): number {
    return floatsAt(this.#machine.heap, buffer, elements);
  }

  #poolFor(pool: KvPool, layer: number, headCount: number): WasmPool {
    const own = ownPool(this.#machine.heap, pool);
    assert(layer >= 0 && layer < own.spec.layerCount, `layer ${layer} is out of range`);
    assert(headCount > 0 && headCount % own.spec.kvHeadCount === 0, "headCount must be a multiple of kvHeadCount");
    if (!this.#checkedPools.has(own)) assertSlicesFit(own.spec, this.#slices);
    this.#checkedPools.add(own);
    return own;
  }
}

function assertDistinct(out: DeviceBuffer, input: DeviceBuffer): void {
  assert(out !== input, `${out.label} cannot be both input and output of this op`);
}

/** Whether a product may run beside others of its input: matrices alike, no output twice. */
function joins(products: readonly Product[], { out, matrix }: Product): boolean {
  const [first] = products;
  if (first === undefined || products.length >= PRODUCTS_MAX) return false;
  const isAlike = first.matrix.encoding === matrix.encoding && first.matrix.inWidth === matrix.inWidth;
  return isAlike && products.every((other) => other.out !== out);
}
