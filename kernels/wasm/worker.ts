/** A worker thread: joins the memory, says that it is ready, and takes tasks until it is told to stop. */
import { parentPort, workerData } from "node:worker_threads";

/** What a worker is started with. */
export interface WorkerStart {
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
  /** Counts from 1; 0 is the main thread. */
  thread: number;
}

/** Offsets in the control page, as assembly/control.ts has them. */
const FINISHED = 128;
const FAILED = 448;

const { module, memory, thread } = workerData as WorkerStart;
const instance = new WebAssembly.Instance(module, { env: { memory } });
parentPort?.postMessage("ready");
try {
  (instance.exports as { workerLoop?: (thread: number) => void }).workerLoop?.(thread);
} catch (error) {
  // The main thread may be asleep in an op that can no longer finish.
  const words = new Int32Array(memory.buffer, 0, 1024);
  Atomics.store(words, FAILED / 4, 1);
  Atomics.notify(words, FINISHED / 4);
  throw error;
}
