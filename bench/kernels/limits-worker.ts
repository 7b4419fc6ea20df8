/** A thread of the limits' measurement: runs a loop when it is told to, for about as long as it is told. */
import { parentPort, workerData } from "node:worker_threads";
import { type LimitLoops, ROUND_OPS } from "./limit-loops.ts";

/** What the main thread asks for. */
export interface LimitTask {
  what: "read" | "multiplyInt8" | "multiplyF32";
  ms: number;
}

/** Bytes read or operations done, and the time it took. */
export interface LimitAnswer {
  work: number;
  ms: number;
}

/** Larger than any cache. */
const READ_BYTES = 192 * 1024 * 1024;
const READ_AT = 1024;
const ROUNDS = 20_000;

function run(loops: LimitLoops, what: LimitTask["what"]): number {
  if (what === "read") {
    loops.read(READ_BYTES, 1);
    return READ_BYTES;
  }
  loops[what](ROUNDS);
  return ROUNDS * ROUND_OPS[what];
}

const { exports } = new WebAssembly.Instance(await WebAssembly.compile(workerData as Uint8Array<ArrayBuffer>), {
  env: { abort: () => {} },
});
const loops = exports as unknown as LimitLoops;
loops.memory.grow(Math.ceil((READ_AT + READ_BYTES) / 65_536));
// Untouched pages are all one page of zeros, which stays in the cache.
new Uint8Array(loops.memory.buffer).fill(1);
parentPort?.on("message", ({ what, ms }: LimitTask) => {
  const startMs = performance.now();
  let work = 0;
  let spentMs = 0;
  while (spentMs < ms) {
    work += run(loops, what);
    spentMs = performance.now() - startMs;
  }
  parentPort?.postMessage({ work, ms: spentMs } satisfies LimitAnswer);
});
parentPort?.postMessage("ready");
