/** What a user sees of a GPU compiling its kernels. */
import type { KernelsCompiled } from "../engine/server.ts";

/** Between two lines. */
const intervalMs = 2_000;

/** Says how far compiling is, a line every two seconds, and what it came to. `nowMs` is any clock that only goes forward. */
export function warmUpReport(write: (line: string) => void, nowMs: () => number): (compiled: KernelsCompiled) => void {
  const startMs = nowMs();
  let saidMs = startMs;
  return ({ kernelCount, stepsDone, stepCount, ms }) => {
    if (stepsDone === stepCount) {
      write(`quire: compiled ${kernelCount} kernels in ${(ms / 1000).toFixed(1)} s\n`);
      return;
    }
    if (nowMs() - saidMs < intervalMs) return;
    saidMs = nowMs();
    write(
      `quire: compiling kernels: ${kernelCount} after ${(ms / 1000).toFixed(0)} s, step ${stepsDone} of ${stepCount}\n`,
    );
  };
}
