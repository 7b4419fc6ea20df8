/** What this machine can do at most with some threads of WebAssembly; kernels are measured against it. */
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { compileLimitLoops } from "./limit-loops.ts";
import type { LimitAnswer, LimitTask } from "./limits-worker.ts";

/** The best of several windows in which all threads were busy. */
export interface MachineLimits {
  /** Bytes a second read from memory. */
  readBytesPerS: number;
  /** int8 operations a second: a product and its addition count as two. */
  int8OpsPerS: number;
  /** f32 operations a second: a multiply-add counts as two. */
  f32OpsPerS: number;
}

/** Measures for about `100 * windowMs` per limit; short windows find the moments at which nothing else runs. */
export async function measureMachineLimits(threads: number, windowMs: number): Promise<MachineLimits> {
  const binary = await compileLimitLoops();
  const workers = Array.from(
    { length: threads },
    () => new Worker(new URL("./limits-worker.ts", import.meta.url), { workerData: binary }),
  );
  try {
    await Promise.all(workers.map((worker) => once(worker, "message")));
    return {
      readBytesPerS: await best(workers, { what: "read", ms: windowMs }),
      int8OpsPerS: await best(workers, { what: "multiplyInt8", ms: windowMs }),
      f32OpsPerS: await best(workers, { what: "multiplyF32", ms: windowMs }),
    };
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
}

const WINDOWS = 100;

async function best(workers: readonly Worker[], task: LimitTask): Promise<number> {
  let perS = 0;
  for (let window = 0; window <= WINDOWS; window++) {
    const answers = workers.map(async (worker) => (await once(worker, "message"))[0] as LimitAnswer);
    for (const worker of workers) worker.postMessage(task);
    const rate = (await Promise.all(answers)).reduce((sum, { work, ms }) => sum + (work / ms) * 1000, 0);
    if (window > 0) perS = Math.max(perS, rate);
  }
  return perS;
}
