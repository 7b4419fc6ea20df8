/** Sequences with made-up queries, keys and values, and a stage that runs them through append, select and attend on a device. */
import type {
  Device,
  DeviceBuffer,
  KvEncoding,
  KvPool,
  KvRounding,
  RopeTable,
  SelectionPlan,
  SelectionView,
  StepReadback,
  StepSlice,
  SummaryKind,
} from "../../../kernels/contract.ts";
import { BLOCK_TOKENS, NOT_RESIDENT } from "../../../kernels/contract.ts";
import { poisoned, results, upload } from "./floats.ts";
import { Random } from "./random.ts";

/** The shape of a model's attention and of its pool. */
export interface StageShape {
  layerCount: number;
  headCount: number;
  kvHeadCount: number;
  headDim: number;
  encoding: KvEncoding;
  rounding?: KvRounding;
  summaryKinds: readonly SummaryKind[];
}

/** Pre-RoPE rows of every position of a sequence, per layer: q `[length, headCount, headDim]`, k and v `[length, kvHeadCount, headDim]`. */
export interface Sequence {
  length: number;
  layers: { q: Float32Array; k: Float32Array; v: Float32Array }[];
}

/** Random rows; keys of one 16-token page lean in one direction, so that pages differ in score as they do in real text. */
export function makeSequence(shape: StageShape, length: number, seed: number): Sequence {
  const random = new Random(seed);
  const keyWidth = shape.kvHeadCount * shape.headDim;
  const layers = Array.from({ length: shape.layerCount }, () => {
    const k = random.normals(length * keyWidth);
    for (let page = 0; page * 16 < length; page++) {
      const lean = random.normals(keyWidth);
      for (let at = page * 16 * keyWidth; at < Math.min(length, (page + 1) * 16) * keyWidth; at++) {
        k[at] = k[at]! + lean[at % keyWidth]!;
      }
    }
    return { q: random.normals(length * shape.headCount * shape.headDim), k, v: random.normals(length * keyWidth) };
  });
  return { length, layers };
}

/** One slice of a step, by sequence. */
export interface Part {
  sequence: Sequence;
  position: number;
  rowCount: number;
  plan?: SelectionPlan;
  groupStarts?: number[];
  /** Logical blocks that the device is told are not there, in every layer or in the one given. */
  absent?: { block: number; layer?: number }[];
  /** Default true. */
  reportBlocks?: boolean;
  /** As in a slice. */
  voters?: "all" | "first";
  choice?: Uint8Array | undefined;
  reportChoice?: boolean;
}

/** All that a step gave, cut by part. */
export interface StageResult {
  /** Per part and layer, f32 `[rowCount, headCount, headDim]`. */
  out: Float32Array[][];
  /** Post-RoPE, as `out`. */
  q: Float32Array[][];
  readback: StepReadback;
  /** Per layer; empty where the device does not show them. */
  views: SelectionView[][];
  missedAtOnce: (boolean | undefined)[];
}

interface Place {
  blockIds: Int32Array;
  summarySlots: Int32Array;
  openSlots: Int32Array;
  blockCapacity: number;
}

const ROPE_POSITIONS = 2800;

/** A pool on a device, and where each sequence lives in it (ids in random order, as after a long run). */
export class Stage {
  readonly device: Device;
  readonly shape: StageShape;
  readonly pool: KvPool;
  readonly rope: RopeTable;
  readonly #places = new Map<Sequence, Place>();
  readonly #freeBlocks: number[];
  readonly #freeSlots: number[];

  /** `blockCapacity`: logical blocks of all sequences together. */
  constructor(
    device: Device,
    shape: StageShape,
    { blockCapacity, seed = 1 }: { blockCapacity: number; seed?: number },
  ) {
    this.device = device;
    this.shape = shape;
    const random = new Random(seed);
    const blockCount = blockCapacity * shape.layerCount;
    this.pool = device.kvPool({
      ...{ layerCount: shape.layerCount, kvHeadCount: shape.kvHeadCount, headDim: shape.headDim },
      ...{ encoding: shape.encoding, summaryKinds: shape.summaryKinds },
      ...(shape.rounding === undefined ? {} : { rounding: shape.rounding }),
      ...{ blockCount, openSlotCount: blockCapacity, summarySlotCount: blockCapacity },
    });
    this.#freeBlocks = random.permutation(blockCount);
    this.#freeSlots = random.permutation(blockCapacity);
    this.rope = ropeTable(device, shape.headDim);
  }

  /** Where a sequence is; reserved on first sight. */
  place(sequence: Sequence): Place {
    const known = this.#places.get(sequence);
    if (known !== undefined) return known;
    const blockCapacity = Math.ceil(sequence.length / BLOCK_TOKENS);
    const take = (from: number[], count: number): Int32Array => {
      if (from.length < count) throw new RangeError("the stage is too small for its sequences");
      return Int32Array.from(from.splice(0, count));
    };
    const slots = take(this.#freeSlots, blockCapacity);
    const place = {
      blockIds: take(this.#freeBlocks, this.shape.layerCount * blockCapacity),
      summarySlots: slots,
      openSlots: slots,
      blockCapacity,
    };
    this.#places.set(sequence, place);
    return place;
  }

  /** Appends positions `[0, end)` without attending to anything. */
  async fill(sequence: Sequence, end: number): Promise<void> {
    if (end > 0) await this.#run([{ sequence, position: 0, rowCount: end }], false);
  }

  /** One step: per layer append, select, attend. */
  run(parts: readonly Part[]): Promise<StageResult> {
    return this.#run(parts, true);
  }

  sliceOf(part: Part): StepSlice {
    const { blockIds, summarySlots, openSlots, blockCapacity } = this.place(part.sequence);
    const first = Math.floor(part.position / BLOCK_TOKENS);
    const end = Math.floor((part.position + part.rowCount - 1) / BLOCK_TOKENS) + 1;
    const visible = blockIds.slice();
    for (const { block, layer } of part.absent ?? []) {
      for (let each = 0; each < this.shape.layerCount; each++) {
        if (layer === undefined || layer === each) visible[each * blockCapacity + block] = NOT_RESIDENT;
      }
    }
    return {
      position: part.position,
      rowCount: part.rowCount,
      blockIds: visible,
      blockCapacity,
      summarySlots,
      openSlots: openSlots.slice(first, end),
      groupStarts: Int32Array.from(part.groupStarts ?? [0]),
      plan: part.plan ?? { kind: "dense" },
      reportBlocks: part.reportBlocks ?? true,
      ...(part.voters === undefined ? {} : { voters: part.voters }),
      ...(part.choice === undefined ? {} : { choice: part.choice }),
      ...(part.reportChoice === undefined ? {} : { reportChoice: part.reportChoice }),
    };
  }

  /** Queries, keys and values of a step's rows on the device, per layer. */
  upload(parts: readonly Part[]): Record<"q" | "k" | "v", DeviceBuffer[]> {
    const { headCount, kvHeadCount, headDim } = this.shape;
    const ofLayers = (name: "q" | "k" | "v") =>
      Array.from({ length: this.shape.layerCount }, (_, layer) =>
        upload(this.device, name, gatherRows(parts, layer, name, (name === "q" ? headCount : kvHeadCount) * headDim)),
      );
    return { q: ofLayers("q"), k: ofLayers("k"), v: ofLayers("v") };
  }

  async #run(parts: readonly Part[], attends: boolean): Promise<StageResult> {
    const { device, pool, shape } = this;
    const { headCount, headDim } = shape;
    const elements = parts.reduce((rows, part) => rows + part.rowCount, 0) * headCount * headDim;
    const recorder = device.begin(parts.map((part) => this.sliceOf(part)));
    const buffers: { q: DeviceBuffer; out: DeviceBuffer }[] = [];
    const views: SelectionView[][] = [];
    for (let layer = 0; layer < shape.layerCount; layer++) {
      const q = upload(device, "q", gatherRows(parts, layer, "q", headCount * headDim));
      const k = upload(device, "k", gatherRows(parts, layer, "k", shape.kvHeadCount * headDim));
      const v = upload(device, "v", gatherRows(parts, layer, "v", shape.kvHeadCount * headDim));
      const out = poisoned(device, "attention output", attends ? elements : 0);
      recorder.append({ pool, layer, headCount, q, k, v, rope: this.rope });
      if (attends) {
        recorder.select({ pool, layer, headCount, q });
        views.push(device.debugSelection?.(recorder) ?? []);
        recorder.attend({ pool, layer, headCount, q, out });
      }
      buffers.push({ q, out });
      device.release(k);
      device.release(v);
    }
    const missedAtOnce = parts.map((_, index) => recorder.hasMissed(index));
    const readback = await recorder.submit();
    const split = (all: Float32Array): Float32Array[] => splitRows(parts, all, headCount * headDim);
    const out: Float32Array[][] = parts.map(() => []);
    const rotated: Float32Array[][] = parts.map(() => []);
    for (const buffer of buffers) {
      split(await results(device, buffer.out)).forEach((rows, index) => void out[index]!.push(rows));
      const q = new Float32Array((await device.read(buffer.q, 0, elements * 4)).buffer);
      split(q).forEach((rows, index) => void rotated[index]!.push(rows));
      device.release(buffer.q);
      device.release(buffer.out);
    }
    return { out, q: rotated, readback, views, missedAtOnce };
  }
}

function gatherRows(parts: readonly Part[], layer: number, name: "q" | "k" | "v", width: number): Float32Array {
  const rows = parts.map(({ sequence, position, rowCount }) =>
    sequence.layers[layer]![name].subarray(position * width, (position + rowCount) * width),
  );
  const all = new Float32Array(rows.reduce((length, each) => length + each.length, 0));
  let at = 0;
  for (const each of rows) {
    all.set(each, at);
    at += each.length;
  }
  return all;
}

function splitRows(parts: readonly Part[], all: Float32Array, width: number): Float32Array[] {
  let row = 0;
  return parts.map((part) => {
    const rows = all.slice(row * width, (row + part.rowCount) * width);
    row += part.rowCount;
    return rows;
  });
}

/** cos and sin of `position / 10000^(2i/headDim)`, as f32. */
export function ropeAngles(headDim: number): { cos: Float32Array; sin: Float32Array } {
  const half = headDim / 2;
  const cos = new Float32Array(ROPE_POSITIONS * half);
  const sin = new Float32Array(ROPE_POSITIONS * half);
  for (let channel = 0; channel < half; channel++) {
    const wave = 10_000 ** ((2 * channel) / headDim);
    for (let position = 0; position < ROPE_POSITIONS; position++) {
      cos[position * half + channel] = Math.cos(position / wave);
      sin[position * half + channel] = Math.sin(position / wave);
    }
  }
  return { cos, sin };
}

function ropeTable(device: Device, headDim: number): RopeTable {
  const { cos, sin } = ropeAngles(headDim);
  return { cos: upload(device, "cos", cos), sin: upload(device, "sin", sin), positionCount: ROPE_POSITIONS };
}
