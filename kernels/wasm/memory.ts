/** What the device hands out: buffers, matrices and KV pools, each a place in the heap. */
import { assert } from "../../protocol/assert.ts";
import { COARSE_KINDS } from "../coarse.ts";
import {
  BLOCK_TOKENS,
  type DeviceBuffer,
  type KvPool,
  type KvPoolSpec,
  type Matrix,
  type MatrixEncoding,
  type SummaryKind,
} from "../contract.ts";
import {
  assertPoolSpec,
  type BlockLayout,
  blockCentreBytes,
  blockLayout,
  openHeadAt,
  openSlotBytes,
  openSlotValuesAt,
  summaryBytes,
  summaryHeadBytes,
  summaryKindIndex,
  summaryLayers,
} from "../layout.ts";
import { assertPackedRange } from "../validate.ts";
import type { WasmHeap } from "./heap.ts";

/** Memory at `at`, zero at first; -1 once released. */
export class WasmBuffer implements DeviceBuffer {
  readonly heap: WasmHeap;
  readonly label: string;
  readonly bytes: number;
  at: number;

  constructor(heap: WasmHeap, label: string, bytes: number) {
    assert(Number.isInteger(bytes) && bytes >= 0, `buffer ${label}: bytes must be an integer >= 0`);
    this.heap = heap;
    this.label = label;
    this.bytes = bytes;
    this.at = heap.allocateZeroed(bytes);
  }

  /** A view of a part; good until the next allocation. */
  range(byteOffset: number, bytes: number): Uint8Array<SharedArrayBuffer> {
    const inside = byteOffset >= 0 && bytes >= 0 && byteOffset + bytes <= this.bytes;
    assert(inside, `buffer ${this.label}: bytes ${byteOffset}..${byteOffset + bytes} are outside of ${this.bytes}`);
    return this.heap.bytes.subarray(this.at + byteOffset, this.at + byteOffset + bytes);
  }
}

/** Bytes of 8 outputs; the layouts are those of assembly/matmul-*.ts. */
const PANEL_BYTES: Readonly<Record<MatrixEncoding, (inWidth: number) => number>> = {
  f32: (inWidth) => inWidth * 32,
  bf16: (inWidth) => inWidth * 16,
  f16: (inWidth) => inWidth * 32, // As f32: WebAssembly has no f16.
  int8: (inWidth) => Math.ceil(inWidth / 32) * 288,
  int4: (inWidth) => Math.ceil(inWidth / 32) * 160,
};

/** Packed weights at `at`. */
export class WasmMatrix implements Matrix {
  readonly heap: WasmHeap;
  readonly label: string;
  readonly outWidth: number;
  readonly inWidth: number;
  readonly encoding: MatrixEncoding;
  /** Bytes of 8 outputs. */
  readonly panelBytes: number;
  readonly packedBytes: number;
  readonly at: number;

  constructor(heap: WasmHeap, label: string, encoding: MatrixEncoding, shape: { outWidth: number; inWidth: number }) {
    for (const width of [shape.outWidth, shape.inWidth]) {
      assert(Number.isInteger(width) && width > 0, `matrix ${label}: widths must be positive integers`);
    }
    assert(Object.hasOwn(PANEL_BYTES, encoding), `unknown matrix encoding ${String(encoding)}`);
    this.heap = heap;
    this.label = label;
    this.outWidth = shape.outWidth;
    this.inWidth = shape.inWidth;
    this.encoding = encoding;
    this.panelBytes = PANEL_BYTES[encoding](shape.inWidth);
    this.packedBytes = Math.ceil(shape.outWidth / 8) * this.panelBytes;
    this.at = heap.allocate(this.packedBytes);
  }

  /** A view of packed bytes; good until the next allocation. */
  packed(byteOffset: number, bytes: number): Uint8Array<SharedArrayBuffer> {
    assertPackedRange(this, byteOffset, bytes);
    return this.heap.bytes.subarray(this.at + byteOffset, this.at + byteOffset + bytes);
  }
}

/** What a pool asks of its device. */
export interface PoolHost {
  /** Called before memory is read or written: ops that were recorded before must have run. */
  settle(): void;
  /** Runs the op that makes a block's centres in `taskCount` KV heads; arguments as in assembly/append.ts. */
  writeCentres(taskCount: number, args: readonly number[]): void;
}

/** Blocks, open slots and summaries of each kind, each in one piece, zero at first: another tenant's bytes never show. */
export class WasmPool implements KvPool {
  readonly heap: WasmHeap;
  readonly spec: Readonly<KvPoolSpec>;
  readonly layout: BlockLayout;
  readonly blockBytes: number;
  readonly openSlotBytes: number;
  readonly summaryBytes: number;
  readonly blocksAt: number;
  readonly openAt: number;
  /** One per kind of the spec: `[layer][kvHead][slot]`, so that scoring a layer's KV head reads slot after slot. */
  readonly summariesAt: readonly number[];
  /** Bytes from one KV head's summaries to the next one's. */
  readonly summaryHeadStride: number;
  /** As `summariesAt`, of centres of blocks; 0 for kinds that have none. */
  readonly centresAt: readonly number[];
  readonly centreHeadStride: number;
  readonly #host: PoolHost;

  constructor(heap: WasmHeap, spec: KvPoolSpec, host: PoolHost) {
    assertPoolSpec(spec);
    this.heap = heap;
    this.#host = host;
    this.spec = { ...spec, summaryKinds: [...spec.summaryKinds] };
    this.layout = blockLayout(spec);
    this.blockBytes = this.layout.bytes;
    this.openSlotBytes = openSlotBytes(spec);
    this.summaryBytes = summaryBytes(spec);
    this.blocksAt = heap.allocateZeroed(spec.blockCount * this.blockBytes);
    this.openAt = heap.allocateZeroed(spec.openSlotCount * this.openSlotBytes);
    this.summaryHeadStride = spec.summarySlotCount * summaryHeadBytes(spec.headDim);
    this.summariesAt = spec.summaryKinds.map(() => heap.allocateZeroed(spec.summarySlotCount * this.summaryBytes));
    this.centreHeadStride = spec.summarySlotCount * blockCentreBytes(spec.headDim);
    const centreBytes = spec.layerCount * spec.kvHeadCount * this.centreHeadStride;
    this.centresAt = spec.summaryKinds.map((kind) =>
      COARSE_KINDS.includes(kind) ? heap.allocateZeroed(centreBytes) : 0,
    );
  }

  async readBlock(blockId: number): Promise<Uint8Array<ArrayBuffer>> {
    return copyOf(this.#block(blockId));
  }

  writeBlock(blockId: number, bytes: Uint8Array): void {
    assert(bytes.length === this.blockBytes, `a block has ${this.blockBytes} bytes, not ${bytes.length}`);
    this.#block(blockId).set(bytes);
  }

  async readSummary(slot: number, kind: SummaryKind): Promise<Uint8Array<ArrayBuffer>> {
    const out = new Uint8Array(this.summaryBytes);
    this.#eachSummaryHead(slot, kind, (head, at) => out.set(head, at));
    return out;
  }

  writeSummary(slot: number, kind: SummaryKind, bytes: Uint8Array, layer?: number): void {
    const { from, to } = summaryLayers(this.spec, bytes, layer);
    const { headDim, kvHeadCount } = this.spec;
    const heads = { first: from * kvHeadCount, end: to * kvHeadCount };
    this.#eachSummaryHead(slot, kind, (head, at) => head.set(bytes.subarray(at, at + head.length)), heads);
    const index = summaryKindIndex(this.spec, kind);
    const centresAt = this.centresAt[index] as number;
    if (centresAt === 0) return;
    const summariesAt = (this.summariesAt[index] as number) + slot * summaryHeadBytes(headDim);
    this.#host.writeCentres(heads.end - heads.first, [
      ...[summariesAt + heads.first * this.summaryHeadStride, this.summaryHeadStride],
      ...[centresAt + slot * blockCentreBytes(headDim) + heads.first * this.centreHeadStride, this.centreHeadStride],
      headDim,
    ]);
  }

  async readOpen(slot: number, tokenCount: number): Promise<Uint8Array<ArrayBuffer>> {
    const out = new Uint8Array(this.#openBytes(tokenCount));
    this.#eachOpenHead(slot, tokenCount, (head, at) => out.set(head, at));
    return out;
  }

  writeOpen(slot: number, tokenCount: number, bytes: Uint8Array): void {
    const expected = this.#openBytes(tokenCount);
    assert(bytes.length === expected, `${tokenCount} open tokens have ${expected} bytes, not ${bytes.length}`);
    this.#eachOpenHead(slot, tokenCount, (head, at) => head.set(bytes.subarray(at, at + head.length)));
  }

  #block(blockId: number): Uint8Array<SharedArrayBuffer> {
    assertIndex(blockId, this.spec.blockCount, "block");
    this.#host.settle();
    const at = this.blocksAt + blockId * this.blockBytes;
    return this.heap.bytes.subarray(at, at + this.blockBytes);
  }

  /** Calls with every layer's KV heads of a slot, and where they lie in the contract's form. */
  #eachSummaryHead(
    slot: number,
    kind: SummaryKind,
    visit: (head: Uint8Array<SharedArrayBuffer>, at: number) => void,
    { first, end } = { first: 0, end: this.spec.layerCount * this.spec.kvHeadCount },
  ): void {
    assertIndex(slot, this.spec.summarySlotCount, "summary slot");
    this.#host.settle();
    const headBytes = summaryHeadBytes(this.spec.headDim);
    const slotAt = (this.summariesAt[summaryKindIndex(this.spec, kind)] as number) + slot * headBytes;
    for (let head = first; head < end; head++) {
      const at = slotAt + head * this.summaryHeadStride;
      visit(this.heap.bytes.subarray(at, at + headBytes), (head - first) * headBytes);
    }
  }

  #openBytes(tokenCount: number): number {
    const inside = Number.isInteger(tokenCount) && tokenCount >= 0 && tokenCount <= BLOCK_TOKENS;
    assert(inside, `an open slot cannot hold ${tokenCount} tokens`);
    return 2 * this.spec.layerCount * this.spec.kvHeadCount * tokenCount * this.spec.headDim * 4;
  }

  /** Calls with the first tokens of every layer and head, keys then values, and where they lie in the compact form. */
  #eachOpenHead(
    slot: number,
    tokenCount: number,
    visit: (head: Uint8Array<SharedArrayBuffer>, at: number) => void,
  ): void {
    assertIndex(slot, this.spec.openSlotCount, "open slot");
    this.#host.settle();
    const headBytes = tokenCount * this.spec.headDim * 4;
    let to = 0;
    for (const part of [0, openSlotValuesAt(this.spec)]) {
      for (let layer = 0; layer < this.spec.layerCount; layer++) {
        for (let kvHead = 0; kvHead < this.spec.kvHeadCount; kvHead++) {
          const at = this.openAt + slot * this.openSlotBytes + (part + openHeadAt(this.spec, layer, kvHead)) * 4;
          visit(this.heap.bytes.subarray(at, at + headBytes), to);
          to += headBytes;
        }
      }
    }
  }
}

/** Bytes outside the shared memory. */
export function copyOf(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const copy = new Uint8Array(bytes.length);
  copy.set(bytes);
  return copy;
}

function assertIndex(index: number, count: number, what: string): void {
  assert(Number.isInteger(index) && index >= 0 && index < count, `${what} ${index} is out of range`);
}

/** @throws {AssertionError} for a buffer of another device or one already released. */
export function ownBuffer(heap: WasmHeap, buffer: DeviceBuffer): WasmBuffer {
  const isOwn = buffer instanceof WasmBuffer && buffer.heap === heap;
  assert(isOwn, `buffer ${buffer.label} is of another device`);
  assert(buffer.at >= 0, `buffer ${buffer.label} was released`);
  return buffer;
}

/** The address of a buffer that holds at least `elements` f32 values. */
export function floatsAt(heap: WasmHeap, buffer: DeviceBuffer, elements: number): number {
  const own = ownBuffer(heap, buffer);
  assert(own.bytes >= elements * 4, `buffer ${own.label}: ${own.bytes} bytes cannot hold ${elements} elements`);
  return own.at;
}

/** @throws {AssertionError} for a pool of another device. */
export function ownPool(heap: WasmHeap, pool: KvPool): WasmPool {
  assert(pool instanceof WasmPool && pool.heap === heap, "the pool is of another device");
  return pool;
}

/** @throws {AssertionError} for a matrix of another device. */
export function ownMatrix(heap: WasmHeap, matrix: Matrix): WasmMatrix {
  assert(matrix instanceof WasmMatrix && matrix.heap === heap, `matrix ${matrix.label} is of another device`);
  return matrix;
}
