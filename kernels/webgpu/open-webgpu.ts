/// <reference types="@webgpu/types" />
/** The GPU device: WGSL kernels through WebGPU, one submission and one readback per step. Imports nothing that only Node has, but Dawn, and that when there is no `navigator.gpu`. */
import { assert } from "../../protocol/assert.ts";
import type {
  Device,
  DeviceBuffer,
  DeviceReport,
  KvPool,
  KvPoolSpec,
  Matrix,
  MatrixEncoding,
  StepRecorder,
  StepSlice,
} from "../contract.ts";
import { blockLayout } from "../layout.ts";
import { assertPackedRange } from "../validate.ts";
import { wholeMatrix } from "../whole-matrix.ts";
import { type AdapterReport, adapterReport, openAdapter, requestAdapter } from "./adapter.ts";
import { ownBuffer, ownMatrix, WebGpuBuffer } from "./buffers.ts";
import { CommandList, type Grid, type KernelTime, StepBuffers } from "./command-list.ts";
import { type KernelFeature, matrixShapes, parseFeatures, type SettledLane, settleLane } from "./features.ts";
import { Gpu } from "./gpu.ts";
import type { Kernel } from "./kernel.ts";
import { WebGpuMatrix } from "./packed-matrix.ts";
import { Packer } from "./packer.ts";
import { assertHolds, type PoolLimits, WebGpuPool } from "./pool.ts";
import { WebGpuRecorder } from "./recorder.ts";

/** Writes wait in staging memory of the driver until something is submitted; a model's weights must not all wait there. */
const UNSUBMITTED_BYTES_MAX = 64 * 2 ** 20;

/** How the device is opened. */
export interface WebGpuDeviceOptions {
  /** Memory that buffers, matrices and pools may take together; WebGPU does not say what a GPU has. */
  memoryBytesMax?: number;
  /** Largest buffer of a matrix or pool; default: what the adapter binds at once. */
  bindingBytesMax?: number;
  /** Default: the best that the machine has. */
  adapter?: GPUAdapter;
  /** Optional features that kernels may use, where the adapter has them; default: what QUIRE_WEBGPU_FEATURES says, else all. */
  features?: readonly KernelFeature[];
}

/**
 * Opens the GPU device. The caller closes it.
 * @throws {NoAdapterError} where there is none.
 */
export async function openWebGpuDevice(options: WebGpuDeviceOptions = {}): Promise<WebGpuDevice> {
  const adapter = options.adapter ?? (await requestAdapter());
  const report = adapterReport(adapter);
  const device = await openAdapter(adapter);
  const wanted = options.features ?? parseFeatures(env("QUIRE_WEBGPU_FEATURES"));
  const settled = await settleLane(device, wanted, matrixShapes(adapter));
  return new WebGpuDevice(new Gpu(device, settled.lane), report, { ...options, settled });
}

/** An environment variable, where there is an environment; empty: not set. */
function env(name: string): string {
  const host = globalThis as { process?: { env?: Readonly<Record<string, string | undefined>> } };
  return host.process?.env?.[name] ?? "";
}

/** See `Device`. */
export class WebGpuDevice implements Device {
  readonly kind = "webgpu";
  readonly numericsId: string;
  readonly packingId = "webgpu-1";
  readonly report: DeviceReport;
  /** What the GPU is and can. */
  readonly adapter: AdapterReport;
  /** Optional features that kernels use. */
  readonly features: readonly KernelFeature[];
  readonly #gpu: Gpu;
  readonly #bindingBytesMax: number;
  readonly #buffers = new StepBuffers();
  readonly #doomed: GPUBuffer[] = [];
  readonly #packer: Packer;
  #running: WebGpuRecorder | undefined;
  #timed: KernelTime[] | undefined;
  #closed = false;
  #unsubmittedBytes = 0;

  constructor(gpu: Gpu, adapter: AdapterReport, options: WebGpuDeviceOptions & { settled: SettledLane }) {
    const { memoryBytesMax = 2 ** 40, bindingBytesMax, settled } = options;
    this.#gpu = gpu;
    this.#packer = new Packer(gpu);
    this.adapter = adapter;
    this.features = settled.used;
    const { maxStorageBufferBindingSize, maxBufferSize } = gpu.device.limits;
    this.#bindingBytesMax = Math.min(bindingBytesMax ?? maxBufferSize, maxStorageBufferBindingSize, maxBufferSize);
    // Two GPUs, or two drivers, may round a square root or an exponential differently.
    const name = [adapter.vendor, adapter.architecture].filter((word) => word !== "").join("-") || "unknown";
    this.numericsId = `webgpu-4-${name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`;
    const uses = settled.used.length === 0 ? "no optional features" : settled.used.join(", ");
    const description = [`WebGPU, ${adapter.description} (${uses})`, ...settled.notes].join("; ");
    this.report = { kind: "webgpu", description, threadCount: 1, memoryBytesMax };
  }

  buffer(label: string, bytes: number): DeviceBuffer {
    this.#assertUsable();
    assert(Number.isInteger(bytes) && bytes >= 0, `buffer ${label}: bytes must be an integer >= 0`);
    return new WebGpuBuffer(label, bytes, this.#gpu.storage(label, bytes));
  }

  release(buffer: DeviceBuffer): void {
    const own = ownBuffer(buffer);
    own.released = true;
    if (this.#running === undefined) this.#gpu.destroy(own.memory);
    else this.#doomed.push(own.memory);
  }

  write(buffer: DeviceBuffer, byteOffset: number, data: Uint8Array): void {
    this.#assertUsable();
    const own = ownBuffer(buffer);
    assertRange(own, byteOffset, data.length);
    this.#write(own.memory, byteOffset, data);
  }

  async read(buffer: DeviceBuffer, byteOffset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    this.#assertUsable();
    const own = ownBuffer(buffer);
    assertRange(own, byteOffset, bytes);
    return this.#gpu.read(own.memory, byteOffset, bytes);
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
    return new WebGpuMatrix(this.#gpu, label, encoding, { ...shape, bindingBytesMax: this.#bindingBytesMax });
  }

  writeRows(matrix: Matrix, firstRow: number, data: Float32Array): void {
    this.#assertUsable();
    const own = ownMatrix(matrix);
    if (own.hasScales) this.#packer.pack(own, firstRow, data as Float32Array<ArrayBuffer>);
    else own.packRows(firstRow, data, ({ buffer, byteOffset }, bytes) => this.#write(buffer, byteOffset, bytes));
  }

  async readPacked(matrix: Matrix, byteOffset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    this.#assertUsable();
    assertPackedRange(matrix, byteOffset, bytes);
    const out = new Uint8Array(bytes);
    let at = 0;
    for (const run of ownMatrix(matrix).runsWithin(byteOffset, bytes)) {
      out.set(await this.#gpu.read(run.buffer, run.byteOffset, run.bytes), at);
      at += run.bytes;
    }
    return out;
  }

  writePacked(matrix: Matrix, byteOffset: number, data: Uint8Array): void {
    this.#assertUsable();
    assertPackedRange(matrix, byteOffset, data.length);
    let at = 0;
    for (const run of ownMatrix(matrix).runsWithin(byteOffset, data.length)) {
      this.#write(run.buffer, run.byteOffset, data.subarray(at, at + run.bytes));
      at += run.bytes;
    }
  }

  kvPool(spec: KvPoolSpec): KvPool {
    this.#assertUsable();
    return new WebGpuPool(this.#gpu, spec, {
      ...this.#poolLimits,
      write: (buffer, byteOffset, data) => this.#write(buffer, byteOffset, data),
    });
  }

  /** Before anything is loaded for it. @throws {QuireError} as {@link kvPool} does. */
  assertPoolFits(spec: KvPoolSpec): void {
    assertHolds(spec, this.#poolLimits, blockLayout(spec).bytes);
  }

  get #poolLimits(): PoolLimits {
    const { maxStorageBuffersPerShaderStage } = this.#gpu.device.limits;
    return { storageBuffersMax: maxStorageBuffersPerShaderStage, bindingBytesMax: this.#bindingBytesMax };
  }

  async allocated(): Promise<void> {
    this.#assertUsable();
    await this.#gpu.allocated();
  }

  /** Kernels compiled so far; each is when a step first needs it. */
  get kernelCount(): number {
    return this.#gpu.pipelineCount;
  }

  begin(slices: readonly StepSlice[]): StepRecorder {
    this.#assertUsable();
    assert(this.#running === undefined, "one step at a time: the last one was not submitted");
    const onEnd = (): void => {
      this.#running = undefined;
      for (const buffer of this.#doomed.splice(0)) this.#gpu.destroy(buffer);
    };
    const timed = this.#timed === undefined ? {} : { timed: this.#timed };
    this.#running = new WebGpuRecorder({ gpu: this.#gpu, buffers: this.#buffers, onEnd, ...timed }, slices);
    return this.#running;
  }

  /**
   * From now on the time of every dispatch is added to `times` (undefined: no more); steps are slower. Without the feature timestamp-query it
   * is what the host sees, a submission included.
   */
  time(times: KernelTime[] | undefined): void {
    this.#timed = times;
  }

  /** From now on `onSpan` hears how long the GPU took over each step, from its first command to its last. Needs the feature timestamp-query. */
  timeSteps(onSpan: ((ns: number) => void) | undefined): void {
    assert(
      onSpan === undefined || this.adapter.features.includes("timestamp-query"),
      "the adapter has no timestamp-query",
    );
    this.#buffers.onSpan = onSpan;
  }

  /** Runs a kernel of the caller's own by itself, for benchmarks: over memory of this device, in the order of the kernel's bindings. */
  async runKernel(
    kernel: Kernel,
    params: Readonly<Record<string, number>>,
    buffers: readonly GPUBuffer[],
    grid: Grid,
  ): Promise<void> {
    this.#assertUsable();
    assert(this.#running === undefined, "a kernel of one's own does not run within a step");
    const list = new CommandList(this.#gpu, this.#buffers);
    list.dispatch(kernel, params, buffers, grid);
    await list.submit(this.#buffers.words, 0, this.#timed);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#gpu.close();
  }

  /** Ordered with the ops of a running step. Words are written whole; what lies behind the data within its last word becomes 0. */
  #write(buffer: GPUBuffer, byteOffset: number, data: Uint8Array): void {
    assert(byteOffset % 4 === 0, `${buffer.label}: a write begins at byte ${byteOffset}, not at a multiple of 4`);
    let whole = data;
    if (data.length % 4 !== 0) {
      whole = new Uint8Array(Math.ceil(data.length / 4) * 4);
      whole.set(data);
    }
    if (this.#running?.hasCommands) {
      this.#running.upload(buffer, byteOffset, whole);
      return;
    }
    const { queue } = this.#gpu.device;
    queue.writeBuffer(buffer, byteOffset, whole as Uint8Array<ArrayBuffer>);
    this.#unsubmittedBytes += whole.length;
    if (this.#unsubmittedBytes < UNSUBMITTED_BYTES_MAX) return;
    this.#unsubmittedBytes = 0;
    queue.submit([]);
  }

  #assertUsable(): void {
    assert(!this.#closed, "the device was closed");
  }
}

function assertRange({ label, bytes }: DeviceBuffer, byteOffset: number, count: number): void {
  const isInside = byteOffset >= 0 && count >= 0 && byteOffset + count <= bytes;
  assert(isInside, `buffer ${label}: bytes ${byteOffset}..${byteOffset + count} are outside of ${bytes}`);
}
