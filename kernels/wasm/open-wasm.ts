/** The CPU device: WebAssembly SIMD on one shared memory and a pool of threads. */
import { readFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
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
import { wholeMatrix } from "../whole-matrix.ts";
import { Arena, HEAP_BYTES_MAX, WasmHeap } from "./heap.ts";
import { packRows } from "./linear-ops.ts";
import type { Machine } from "./machine.ts";
import { copyOf, ownBuffer, ownMatrix, WasmBuffer, WasmMatrix, WasmPool } from "./memory.ts";
import { OP } from "./ops.ts";
import { type StepArenas, WasmRecorder } from "./recorder.ts";
import { ThreadPool } from "./thread-pool.ts";

const THREADS_DEFAULT_MAX = 8;
const THREADS_MAX = 64;
const STALL_MS_MAX = 20_000;
/** Some microseconds of one thread: less is not worth waking anybody. */
const SHARED_WORK_MIN = 150_000;
/** What making a block's centre costs per channel, in multiply-adds of a product. */
const CENTRE_WORK = 16;

/** How the device is opened. */
export interface WasmDeviceOptions {
  /** The caller's thread included; default: the cores there are, at most 8. 1 starts no worker. */
  threads?: number;
  /** Memory of everything together, at most 4 GiB less 64 KiB, which is the default. It is taken as it is needed. */
  memoryBytesMax?: number;
  /** Ops of fewer multiply-adds (or as costly steps) run on the caller's thread alone; results do not depend on it. */
  sharedWorkMin?: number;
}

/**
 * Opens the CPU device and starts its threads. Ops run in order, at the latest when their results are looked at, and block the caller's thread; a thread that traps or dies
 * makes `submit` reject with a `DeviceLostError`, from then on always. The caller closes the device; one left open does not keep the process.
 */
export async function openWasmDevice({
  threads = Math.min(availableParallelism(), THREADS_DEFAULT_MAX),
  memoryBytesMax = HEAP_BYTES_MAX,
  sharedWorkMin = SHARED_WORK_MIN,
}: WasmDeviceOptions = {}): Promise<Device> {
  assert(Number.isInteger(threads) && threads >= 1 && threads <= THREADS_MAX, `threads must be 1..${THREADS_MAX}`);
  const heap = new WasmHeap(memoryBytesMax);
  const module = await loadKernels();
  const pool = await ThreadPool.start({ heap, module, threads, stallMsMax: STALL_MS_MAX, sharedWorkMin });
  return new WasmDevice({ heap, threads: pool, opArena: new Arena(heap, () => pool.finish()) });
}

/** Compiles the committed module. */
export async function loadKernels(): Promise<WebAssembly.Module> {
  return WebAssembly.compile(await readFile(new URL("./quire-kernels.wasm", import.meta.url)));
}

class WasmDevice implements Device {
  readonly kind = "wasm";
  readonly numericsId = "wasm-4";
  /** Goes up with any layout of assembly/matmul-*.ts. */
  readonly packingId = "wasm-2";
  readonly report: DeviceReport;
  readonly #machine: Machine;
  readonly #arenas: StepArenas;
  #running: WasmRecorder | undefined;
  #closed = false;

  constructor(machine: Machine) {
    this.#machine = machine;
    this.#arenas = { step: new Arena(machine.heap), selection: new Arena(machine.heap) };
    const { threads } = machine.threads;
    this.report = {
      kind: "wasm",
      description: `WebAssembly SIMD, ${threads} thread${threads === 1 ? "" : "s"}`,
      threadCount: threads,
      memoryBytesMax: machine.heap.bytesMax,
    };
  }

  buffer(label: string, bytes: number): DeviceBuffer {
    this.#assertUsable();
    return new WasmBuffer(this.#machine.heap, label, bytes);
  }

  release(buffer: DeviceBuffer): void {
    this.#running?.flush();
    const own = ownBuffer(this.#machine.heap, buffer);
    this.#machine.heap.release(own.at);
    own.at = -1;
  }

  write(buffer: DeviceBuffer, byteOffset: number, data: Uint8Array): void {
    this.#assertUsable();
    this.#running?.flush();
    ownBuffer(this.#machine.heap, buffer).range(byteOffset, data.length).set(data);
  }

  async read(buffer: DeviceBuffer, byteOffset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    this.#assertUsable();
    this.#running?.flush();
    return copyOf(ownBuffer(this.#machine.heap, buffer).range(byteOffset, bytes));
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
    return new WasmMatrix(this.#machine.heap, label, encoding, shape);
  }

  writeRows(matrix: Matrix, firstRow: number, data: Float32Array): void {
    this.#assertUsable();
    packRows(this.#machine, ownMatrix(this.#machine.heap, matrix), firstRow, data);
  }

  async readPacked(matrix: Matrix, byteOffset: number, bytes: number): Promise<Uint8Array<ArrayBuffer>> {
    this.#assertUsable();
    return copyOf(ownMatrix(this.#machine.heap, matrix).packed(byteOffset, bytes));
  }

  writePacked(matrix: Matrix, byteOffset: number, data: Uint8Array): void {
    this.#assertUsable();
    ownMatrix(this.#machine.heap, matrix).packed(byteOffset, data.length).set(data);
  }

  kvPool(spec: KvPoolSpec): KvPool {
    this.#assertUsable();
    const { heap, threads } = this.#machine;
    return new WasmPool(heap, spec, {
      settle: () => this.#running?.flush(),
      writeCentres: (taskCount, args) => {
        threads.ensureScratch(spec.headDim * 4);
        threads.run(OP.blockCentres, { taskCount, work: taskCount * spec.headDim * CENTRE_WORK, args });
      },
    });
  }

  begin(slices: readonly StepSlice[]): StepRecorder {
    this.#assertUsable();
    assert(this.#running === undefined, "one step at a time: the last one was not submitted");
    this.#running = new WasmRecorder(this.#machine, this.#arenas, slices, () => {
      this.#running = undefined;
    });
    return this.#running;
  }

  debugSelection(recorder: StepRecorder): SelectionView[] {
    assert(recorder instanceof WasmRecorder, "the recorder is of another device");
    return recorder.selectionViews();
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#machine.threads.close();
  }

  #assertUsable(): void {
    assert(!this.#closed, "the device was closed");
  }
}
