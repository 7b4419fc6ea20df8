/** Memory of the reference device: plain arrays, filled with NaN at birth so that a read before a write is seen. */
import { assert } from "../../protocol/assert.ts";
import type { DeviceBuffer, KvPool, KvPoolSpec, Matrix, MatrixEncoding, SummaryKind } from "../contract.ts";
import { BLOCK_TOKENS, PAGES_PER_BLOCK } from "../contract.ts";
import {
  assertPoolSpec,
  blockLayout,
  openHeadAt,
  openSlotBytes,
  openSlotValuesAt,
  summaryBytes,
  summaryHeadAt,
  summaryKindIndex,
  summaryLayers,
  summaryScalesAt,
} from "../layout.ts";
import { assertMatrixRows } from "../validate.ts";
import { quantizeRows, quantizeRowsInt4, roundToBf16, roundToF16, SCALE_GROUP } from "./quantize-rows.ts";

/** A buffer: its bytes, and the same memory as f32 elements. Filled with NaN at first. */
export class ReferenceBuffer implements DeviceBuffer {
  readonly label: string;
  readonly bytes: number;
  readonly data: Uint8Array<ArrayBuffer>;
  readonly floats: Float32Array<ArrayBuffer>;
  released = false;

  constructor(label: string, bytes: number) {
    assert(Number.isInteger(bytes) && bytes >= 0, `buffer ${label}: bytes must be an integer >= 0`);
    this.label = label;
    this.bytes = bytes;
    const memory = new ArrayBuffer(Math.ceil(bytes / 4) * 4);
    this.data = new Uint8Array(memory, 0, bytes).fill(0xff);
    this.floats = new Float32Array(memory);
  }
}

const ENCODINGS: readonly MatrixEncoding[] = ["f32", "bf16", "f16", "int8", "int4"];

/** Row-major weights: `floats` for f32, bf16 and f16, else `codes` `[outWidth, inWidth]` and `scales` `[outWidth, ceil(inWidth / 32)]`. */
export class ReferenceMatrix implements Matrix {
  readonly label: string;
  readonly outWidth: number;
  readonly inWidth: number;
  readonly encoding: MatrixEncoding;
  /** Whether weights are in `floats`. */
  readonly isFloat: boolean;
  readonly floats: Float32Array;
  readonly codes: Int8Array;
  readonly scales: Float32Array;
  readonly packedBytes: number;
  /** All of the above: floats, or scales and then codes. */
  readonly packed: Uint8Array<ArrayBuffer>;

  constructor(label: string, encoding: MatrixEncoding, shape: { outWidth: number; inWidth: number }) {
    const { outWidth, inWidth } = shape;
    for (const width of [outWidth, inWidth]) {
      assert(Number.isInteger(width) && width > 0, `matrix ${label}: widths must be positive integers`);
    }
    assert(ENCODINGS.includes(encoding), `unknown matrix encoding ${String(encoding)}`);
    const isFloat = encoding === "f32" || encoding === "bf16" || encoding === "f16";
    this.isFloat = isFloat;
    this.label = label;
    this.outWidth = outWidth;
    this.inWidth = inWidth;
    this.encoding = encoding;
    const codeCount = isFloat ? 0 : outWidth * inWidth;
    const floatCount = isFloat ? outWidth * inWidth : outWidth * Math.ceil(inWidth / SCALE_GROUP);
    const memory = new ArrayBuffer(floatCount * 4 + codeCount);
    const floats = new Float32Array(memory, 0, floatCount).fill(Number.NaN);
    this.packedBytes = memory.byteLength;
    this.packed = new Uint8Array(memory);
    this.floats = isFloat ? floats : new Float32Array(0);
    this.scales = isFloat ? new Float32Array(0) : floats;
    this.codes = new Int8Array(memory, floatCount * 4, codeCount);
  }

  /** Encodes rows; see `Device.writeRows`. */
  writeRows(firstRow: number, data: Float32Array): void {
    const rows = assertMatrixRows(this, firstRow, data);
    if (this.isFloat) {
      const rounded = this.encoding === "bf16" ? roundToBf16(data) : this.encoding === "f16" ? roundToF16(data) : data;
      this.floats.set(rounded, firstRow * this.inWidth);
      return;
    }
    const quantize = this.encoding === "int8" ? quantizeRows : quantizeRowsInt4;
    const { codes, scales } = quantize(data, rows, this.inWidth);
    this.codes.set(codes, firstRow * this.inWidth);
    this.scales.set(scales, firstRow * Math.ceil(this.inWidth / SCALE_GROUP));
  }
}

interface SummaryOfHead {
  layer: number;
  kvHead: number;
  bytes: Uint8Array;
}

/** A KV pool with an array for every block and slot. Ids out of range and bytes of the wrong length are assertions. */
export class ReferencePool implements KvPool {
  readonly spec: Readonly<KvPoolSpec>;
  readonly blockBytes: number;
  readonly openSlotBytes: number;
  readonly summaryBytes: number;
  readonly #blocks: Uint8Array<ArrayBuffer>[];
  readonly #open: Float32Array<ArrayBuffer>[];
  /** Per kind of the spec, per slot. */
  readonly #summaries: Uint8Array<ArrayBuffer>[][];

  constructor(spec: KvPoolSpec) {
    assertPoolSpec(spec);
    this.spec = { ...spec, summaryKinds: [...spec.summaryKinds] };
    this.blockBytes = blockLayout(spec).bytes;
    this.openSlotBytes = openSlotBytes(spec);
    this.summaryBytes = summaryBytes(spec);
    this.#blocks = poisoned(spec.blockCount, this.blockBytes);
    this.#open = poisoned(spec.openSlotCount, this.openSlotBytes).map((bytes) => new Float32Array(bytes.buffer));
    this.#summaries = spec.summaryKinds.map(() => poisoned(spec.summarySlotCount, this.summaryBytes));
  }

  /** The bytes of a block, not a copy. */
  block(blockId: number): Uint8Array<ArrayBuffer> {
    return entry(this.#blocks, blockId, "block");
  }

  /** Keys (`[64][headDim]`) of one layer and KV head of an open slot, not a copy. */
  openKeys(slot: number, layer: number, kvHead: number): Float32Array {
    return this.#openHead(slot, openHeadAt(this.spec, layer, kvHead));
  }

  /** Values, as {@link openKeys}. */
  openValues(slot: number, layer: number, kvHead: number): Float32Array {
    return this.#openHead(slot, openSlotValuesAt(this.spec) + openHeadAt(this.spec, layer, kvHead));
  }

  /** The summaries of one KV head of a slot: codes `[4 pages][2][headDim]` and scales `[4 pages][2]`, not copies. */
  summary(slot: number, kind: SummaryKind, layer: number, kvHead: number): { codes: Int8Array; scales: Float32Array } {
    const { buffer } = this.#summary(slot, kind);
    const at = summaryHeadAt(this.spec, layer, kvHead);
    const codeCount = summaryScalesAt(this.spec.headDim);
    return {
      codes: new Int8Array(buffer, at, codeCount),
      scales: new Float32Array(buffer, at + codeCount, PAGES_PER_BLOCK * 2),
    };
  }

  /** Puts what `summarizeKeys` made of one KV head into a slot. */
  setSummary(slot: number, kind: SummaryKind, { layer, kvHead, bytes }: SummaryOfHead): void {
    this.#summary(slot, kind).set(bytes, summaryHeadAt(this.spec, layer, kvHead));
  }

  async readBlock(blockId: number): Promise<Uint8Array<ArrayBuffer>> {
    return this.block(blockId).slice();
  }

  writeBlock(blockId: number, bytes: Uint8Array): void {
    assert(bytes.length === this.blockBytes, `a block has ${this.blockBytes} bytes, not ${bytes.length}`);
    this.block(blockId).set(bytes);
  }

  async readSummary(slot: number, kind: SummaryKind): Promise<Uint8Array<ArrayBuffer>> {
    return this.#summary(slot, kind).slice();
  }

  writeSummary(slot: number, kind: SummaryKind, bytes: Uint8Array, layer?: number): void {
    const { from } = summaryLayers(this.spec, bytes, layer);
    this.#summary(slot, kind).set(bytes, summaryHeadAt(this.spec, from, 0));
  }

  async readOpen(slot: number, tokenCount: number): Promise<Uint8Array<ArrayBuffer>> {
    const out = new Float32Array(this.#openElements(tokenCount));
    this.#eachOpenHead(slot, tokenCount, (head, at) => out.set(head, at));
    return new Uint8Array(out.buffer);
  }

  writeOpen(slot: number, tokenCount: number, bytes: Uint8Array): void {
    const elements = this.#openElements(tokenCount);
    assert(bytes.length === elements * 4, `${tokenCount} open tokens have ${elements * 4} bytes, not ${bytes.length}`);
    const from = new Float32Array(bytes.slice().buffer);
    this.#eachOpenHead(slot, tokenCount, (head, at) => head.set(from.subarray(at, at + head.length)));
  }

  #summary(slot: number, kind: SummaryKind): Uint8Array<ArrayBuffer> {
    const slots = this.#summaries[summaryKindIndex(this.spec, kind)] as Uint8Array<ArrayBuffer>[];
    return entry(slots, slot, "summary slot");
  }

  #openHead(slot: number, at: number): Float32Array {
    return entry(this.#open, slot, "open slot").subarray(at, at + BLOCK_TOKENS * this.spec.headDim);
  }

  #openElements(tokenCount: number): number {
    assert(tokenCount >= 0 && tokenCount <= BLOCK_TOKENS, `an open slot cannot hold ${tokenCount} tokens`);
    return 2 * this.spec.layerCount * this.spec.kvHeadCount * tokenCount * this.spec.headDim;
  }

  /** Calls with the first tokens of every layer and head, keys then values, and where they lie in the compact form. */
  #eachOpenHead(slot: number, tokenCount: number, visit: (head: Float32Array, at: number) => void): void {
    const { layerCount, kvHeadCount, headDim } = this.spec;
    const length = tokenCount * headDim;
    let at = 0;
    for (const part of ["openKeys", "openValues"] as const) {
      for (let layer = 0; layer < layerCount; layer++) {
        for (let kvHead = 0; kvHead < kvHeadCount; kvHead++) {
          visit(this[part](slot, layer, kvHead).subarray(0, length), at);
          at += length;
        }
      }
    }
  }
}

function poisoned(count: number, bytes: number): Uint8Array<ArrayBuffer>[] {
  return Array.from({ length: count }, () => new Uint8Array(bytes).fill(0xff));
}

function entry<T>(entries: readonly T[], index: number, what: string): T {
  const found = entries[index];
  assert(found !== undefined, `${what} ${index} is out of range`);
  return found;
}

/** Checks that a buffer is of this device and holds `elements` f32 values, and returns them (not a copy). */
export function floatsOf(buffer: DeviceBuffer, elements: number): Float32Array<ArrayBuffer> {
  const own = ownBuffer(buffer);
  assert(own.bytes >= elements * 4, `buffer ${own.label}: ${own.bytes} bytes cannot hold ${elements} elements`);
  return own.floats;
}

/** @throws {AssertionError} for a buffer of another device or one already released. */
export function ownBuffer(buffer: DeviceBuffer): ReferenceBuffer {
  assert(buffer instanceof ReferenceBuffer, `buffer ${buffer.label} is of another device`);
  assert(!buffer.released, `buffer ${buffer.label} was released`);
  return buffer;
}

/** @throws {AssertionError} for a pool of another device. */
export function ownPool(pool: KvPool): ReferencePool {
  assert(pool instanceof ReferencePool, "the pool is of another device");
  return pool;
}

/** @throws {AssertionError} for a matrix of another device. */
export function ownMatrix(matrix: Matrix): ReferenceMatrix {
  assert(matrix instanceof ReferenceMatrix, `matrix ${matrix.label} is of another device`);
  return matrix;
}
