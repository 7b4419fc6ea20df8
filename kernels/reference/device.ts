/** The scalar device: the definition of every op in plain TypeScript, and the oracle of the conformance suite. Slow on purpose. */
import { assert } from "../../protocol/assert.ts";
import type {
  Device,
  DeviceBuffer,
  DeviceReport,
  KvPool,
  KvPoolSpec,
  Matrix,
  MatrixEncoding,
  SelectionView,
  StepRecorder,
  StepSlice,
} from "../contract.ts";
import { assertPackedRange } from "../validate.ts";
import { wholeMatrix } from "../whole-matrix.ts";
import { ownBuffer, ownMatrix, ReferenceBuffer, ReferenceMatrix, ReferencePool } from "./memory.ts";
import { ReferenceRecorder } from "./recorder.ts";

/** Opens the reference device. It needs nothing and keeps nothing outside itself. */
export function openReferenceDevice({ memoryBytesMax = 2 ** 32 }: { memoryBytesMax?: number } = {}): Device {
  return new ReferenceDevice(memoryBytesMax);
}

class ReferenceDevice implements Device {
  readonly kind = "reference";
  readonly numericsId = "reference-2";
  readonly packingId = "reference-1";
  readonly report: DeviceReport;
  #running: ReferenceRecorder | undefined;
  #closed = false;

  constructor(memoryBytesMax: number) {
    this.report = { kind: "reference", description: "scalar TypeScript", threadCount: 1, memoryBytesMax };
  }

  buffer(label: string, bytes: number): DeviceBuffer {
    this.#assertUsable();
    return new ReferenceBuffer(label, bytes);
  }

  release(buffer: DeviceBuffer): void {
    ownBuffer(buffer).released = true;
  }

  write(buffer: DeviceBuffer, byteOffset: number, data: Uint8Array): void {
    this.#assertUsable();
    this.#range(buffer, byteOffset, data.length).set(data);
  }

  async read(buffer: DeviceBuffer, byteOffset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    this.#assertUsable();
    return this.#range(buffer, byteOffset, bytes).slice();
  }

  matrix(
    label: string,
    encoding: MatrixEncoding,
    shape: { outWidth: number; inWidth: number },
    data: Float32Array,
  ): Matrix {
    return wholeMatrix(this, { label, encoding, ...shape }, data);
  }

  emptyMatrix(label: string, encoding: MatrixEncoding, shape: { outWidth: number; inWidth: number }): Matrix {
    this.#assertUsable();
    return new ReferenceMatrix(label, encoding, shape);
  }

  writeRows(matrix: Matrix, firstRow: number, data: Float32Array): void {
    this.#assertUsable();
    ownMatrix(matrix).writeRows(firstRow, data);
  }

  async readPacked(matrix: Matrix, byteOffset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    this.#assertUsable();
    assertPackedRange(matrix, byteOffset, bytes);
    return ownMatrix(matrix).packed.slice(byteOffset, byteOffset + bytes);
  }

  writePacked(matrix: Matrix, byteOffset: number, data: Uint8Array): void {
    this.#assertUsable();
    assertPackedRange(matrix, byteOffset, data.length);
    ownMatrix(matrix).packed.set(data, byteOffset);
  }

  kvPool(spec: KvPoolSpec): KvPool {
    this.#assertUsable();
    return new ReferencePool(spec);
  }

  begin(slices: readonly StepSlice[]): StepRecorder {
    this.#assertUsable();
    assert(this.#running === undefined, "one step at a time: the last one was not submitted");
    this.#running = new ReferenceRecorder(slices, () => {
      this.#running = undefined;
    });
    return this.#running;
  }

  debugSelection(recorder: StepRecorder): SelectionView[] {
    assert(recorder instanceof ReferenceRecorder, "the recorder is of another device");
    return recorder.selectionViews();
  }

  async close(): Promise<void> {
    this.#closed = true;
  }

  #range(buffer: DeviceBuffer, byteOffset: number, bytes: number): Uint8Array<ArrayBuffer> {
    const { data, label } = ownBuffer(buffer);
    const inside = byteOffset >= 0 && byteOffset + bytes <= data.length;
    assert(inside, `buffer ${label}: bytes ${byteOffset}..${byteOffset + bytes} are outside of ${data.length}`);
    return data.subarray(byteOffset, byteOffset + bytes);
  }

  #assertUsable(): void {
    assert(!this.#closed, "the device was closed");
  }
}
