/** The caller's thread and its workers, all running one WebAssembly module on one memory. See assembly/pool.ts for the protocol. */
import { Worker } from "node:worker_threads";
import { assert } from "../../protocol/assert.ts";
import { QuireError } from "../../protocol/errors.ts";
import { DeviceLostError } from "../device-lost.ts";
import type { WasmHeap } from "./heap.ts";
import type { WorkerStart } from "./worker.ts";

/** Offsets in the control page, as assembly/control.ts has them. */
const GENERATION = 192;
const STOPPED = 384;
const FAILED = 448;
const FINISHED = 128;
const ARG_COUNT_MAX = 48;
const SCRATCH = 1024;
const SCRATCH_BYTES = 1028;

const STOP_MS_MAX = 2_000;
/** Words of a queued op before its arguments. */
const QUEUED_WORDS = 4;
/** Some 300 ops: the layers of a small model. */
const QUEUE_BYTES = 32_768;

/** What the module exports. */
export interface KernelExports {
  runQueue(at: number, end: number, workerCount: number, stallSlices: number): number;
  workerLoop(thread: number): void;
  /** Once per memory, before any op. */
  writeExpTable(): void;
}

/** How a pool is started. */
export interface ThreadPoolOptions {
  heap: WasmHeap;
  module: WebAssembly.Module;
  /** The caller's thread included. */
  threads: number;
  /** How long an op may go without finishing a task before a worker is taken for dead. */
  stallMsMax: number;
  /** Ops of less work than this run on the caller's thread alone. */
  sharedWorkMin: number;
}

/** An op and what it works on. */
export interface Launch {
  taskCount: number;
  /** Multiply-adds or the like: decides whether other threads are asked. */
  work: number;
  /** Integers and addresses. */
  args: readonly number[];
  /** Argument index and an f32 that stands there. */
  floats?: readonly [number, number][];
}

/**
 * Runs ops on all threads, one at a time, in order. They may wait in a queue, so that the host prepares many at once: between two ops it
 * would find its own code and data gone from the cores' caches each time. After a failure nothing more runs.
 */
export class ThreadPool {
  readonly threads: number;
  readonly #heap: WasmHeap;
  readonly #runQueue: KernelExports["runQueue"];
  readonly #stallSlices: number;
  readonly #sharedWorkMin: number;
  readonly #workers: Worker[] = [];
  readonly #queueAt: number;
  readonly #queue: Int32Array<SharedArrayBuffer>;
  readonly #queueFloats: Float32Array<SharedArrayBuffer>;
  #queuedWords = 0;
  #scratchAt = 0;
  #scratchBytes = 0;
  #failure: QuireError | undefined;
  #closing = false;

  private constructor({ heap, module, threads, stallMsMax, sharedWorkMin }: ThreadPoolOptions) {
    this.threads = threads;
    this.#heap = heap;
    this.#sharedWorkMin = sharedWorkMin;
    this.#stallSlices = Math.max(1, Math.ceil(stallMsMax / 100));
    const kernels = kernelExports(new WebAssembly.Instance(module, { env: { memory: heap.memory } }));
    kernels.writeExpTable();
    this.#runQueue = kernels.runQueue;
    this.#queueAt = heap.allocate(QUEUE_BYTES);
    // A view of this buffer stays good when the memory grows: nothing moves.
    this.#queue = new Int32Array(heap.bytes.buffer, this.#queueAt, QUEUE_BYTES / 4);
    this.#queueFloats = new Float32Array(heap.bytes.buffer, this.#queueAt, QUEUE_BYTES / 4);
  }

  /** Starts the workers and waits until they can take part. */
  static async start(options: ThreadPoolOptions): Promise<ThreadPool> {
    const pool = new ThreadPool(options);
    const ready: Promise<void>[] = [];
    for (let thread = 1; thread < options.threads; thread++) ready.push(pool.#startWorker(options.module, thread));
    try {
      await Promise.all(ready);
    } catch (error) {
      await pool.close();
      throw error;
    }
    return pool;
  }

  /** Why the pool runs nothing more; undefined while it is well. */
  get failure(): QuireError | undefined {
    return this.#failure;
  }

  /**
   * Runs an op behind those that wait, and returns when all its tasks are finished.
   * @throws {DeviceLostError} when a thread trapped or died, now or earlier.
   */
  run(op: number, launch: Launch): void {
    this.queue(op, launch);
    this.finish();
  }

  /**
   * Has an op run behind those that wait, at the latest when {@link finish} is called. Until then the host neither reads nor writes what it
   * touches.
   * @throws {DeviceLostError} As {@link run}.
   */
  queue(op: number, { taskCount, work, args, floats = [] }: Launch): void {
    if (this.#failure !== undefined) throw this.#failure;
    if (taskCount === 0) return;
    const argWords = Math.ceil(args.length / 4) * 4;
    assert(argWords <= ARG_COUNT_MAX, "an op has too many arguments");
    if ((this.#queuedWords + QUEUED_WORDS + argWords) * 4 > QUEUE_BYTES) this.finish();
    const queue = this.#queue;
    const at = this.#queuedWords;
    queue[at] = op;
    queue[at + 1] = taskCount;
    queue[at + 2] = work < this.#sharedWorkMin ? 0 : 1;
    queue[at + 3] = argWords * 4;
    queue.set(args, at + QUEUED_WORDS);
    for (const [index, value] of floats) this.#queueFloats[at + QUEUED_WORDS + index] = value;
    this.#queuedWords = at + QUEUED_WORDS + argWords;
  }

  /**
   * Runs everything that waits.
   * @throws {DeviceLostError} As {@link run}.
   */
  finish(): void {
    if (this.#queuedWords === 0) return;
    const end = this.#queueAt + this.#queuedWords * 4;
    this.#queuedWords = 0;
    if (this.#failure !== undefined) throw this.#failure;
    let result: number;
    try {
      result = this.#runQueue(this.#queueAt, end, this.#workers.length, this.#stallSlices);
    } catch (cause) {
      throw this.#fail("A kernel trapped.", cause);
    }
    if (result === 1) throw this.#fail("A kernel trapped in a worker thread, or the thread died.");
    if (result === 2) throw this.#fail("A worker thread stopped answering.");
  }

  /** Makes sure that every thread has `bytes` of scratch. Content does not outlive an op. @throws {QuireError} where there is no memory. */
  ensureScratch(bytes: number): void {
    if (bytes <= this.#scratchBytes) return;
    const scratchBytes = Math.ceil(bytes / 4096) * 4096;
    const scratchAt = this.#heap.allocate(scratchBytes * this.threads);
    // Only now: where there is no more, threads go on with what they have.
    if (this.#scratchAt !== 0) this.#heap.release(this.#scratchAt);
    this.#scratchBytes = scratchBytes;
    this.#scratchAt = scratchAt;
    this.#heap.words[SCRATCH / 4] = this.#scratchAt;
    this.#heap.words[SCRATCH_BYTES / 4] = this.#scratchBytes;
  }

  /** Ends the workers; those that do not return in time are terminated. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#failure ??= new QuireError("shutting_down", "The CPU device was closed.");
    const words = this.#heap.words;
    Atomics.store(words, STOPPED / 4, 1);
    Atomics.add(words, GENERATION / 4, 1);
    Atomics.notify(words, GENERATION / 4);
    await Promise.all(this.#workers.map((worker) => ended(worker)));
  }

  #startWorker(module: WebAssembly.Module, thread: number): Promise<void> {
    const workerData: WorkerStart = { module, memory: this.#heap.memory, thread };
    // The process's own flags (--input-type, --eval ...) are not for a worker.
    const options = { workerData, name: `quire-kernels-${thread}`, execArgv: [] };
    const worker = new Worker(new URL("./worker.ts", import.meta.url), options);
    this.#workers.push(worker);
    return new Promise((resolve, reject) => {
      const lost = (cause: unknown): void => {
        if (!this.#closing) this.#fail("A worker thread died.", cause);
        reject(cause instanceof Error ? cause : new Error("a worker thread ended before it was ready"));
      };
      worker.once("message", () => {
        // A process whose work is done may end without closing the device.
        worker.unref();
        resolve();
      });
      worker.once("error", lost);
      worker.once("exit", lost);
    });
  }

  #fail(message: string, cause?: unknown): QuireError {
    this.#failure ??= new DeviceLostError(message, cause);
    Atomics.store(this.#heap.words, FAILED / 4, 1);
    Atomics.notify(this.#heap.words, FINISHED / 4);
    return this.#failure;
  }
}

/** Resolves when a worker has ended, by itself or by force. */
function ended(worker: Worker): Promise<void> {
  if (worker.threadId === -1) return Promise.resolve();
  return new Promise((resolve) => {
    const timer = setTimeout(() => void worker.terminate(), STOP_MS_MAX);
    worker.once("exit", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

/** The exports of an instance of the module. */
function kernelExports(instance: WebAssembly.Instance): KernelExports {
  return instance.exports as unknown as KernelExports;
}
