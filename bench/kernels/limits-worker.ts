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

/** Larger than any cache, read in chunks that take a fraction of a millisecond. */
const CHUNK_BYTES = 4 * 1024 * 1024;
const CHUNK_COUNT = 48;
const READ_AT = 1024;
const ROUNDS = 20_000;

/** One piece of work; `turn` counts up. */
function run(loops: LimitLoops, what: LimitTask["what"], turn: number): number {
  if (what === "read") {
    loops.read(READ_AT + (turn % CHUNK_COUNT) * CHUNK_BYTES, CHUNK_BYTES);
    return CHUNK_BYTES;
  }
  loops[what](ROUNDS);
  return ROUNDS * ROUND_OPS[what];
}

function* countUp(): Generator<number, never> {
  for (let turn = 0; ; turn++) yield turn;
}

const { exports } = new WebAssembly.Instance(await WebAssembly.compile(workerData as Uint8Array<ArrayBuffer>), {
  env: { abort: () => {} },
});
const loops = exports as unknown as LimitLoops;
loops.memory.grow(Math.ceil((READ_AT + CHUNK_COUNT * CHUNK_BYTES) / 65_536));
// Untouched pages are all one page of zeros, which stays in the cache.
new Uint8Array(loops.memory.buffer).fill(1);
const turns = countUp();
parentPort?.on("message", ({ what, ms }: LimitTask) => {
  const startMs = performance.now();
  let work = 0;
  let spentMs = 0;
  while (spentMs < ms) {
    work += run(loops, what, turns.next().value);
    spentMs = performance.now() - startMs;
  }
  parentPort?.postMessage({ work, ms: spentMs } satisfies LimitAnswer);
});
parentPort?.postMessage("ready");
