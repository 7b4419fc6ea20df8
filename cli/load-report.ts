import type { LoadProgress } from "../models/llama-weights.ts";

/** Between two lines; what loads faster is not reported at all. */
const intervalMs = 2_000;

/** Says how far loading is, a line every two seconds. `nowMs` is any clock that only goes forward. */
export function loadReport(write: (line: string) => void, nowMs: () => number): (progress: LoadProgress) => void {
  const startMs = nowMs();
  let saidMs = startMs;
  return ({ loadedCount, totalCount }) => {
    if (nowMs() - saidMs < intervalMs) return;
    saidMs = nowMs();
    const percent = Math.floor((100 * loadedCount) / totalCount);
    const seconds = Math.round((saidMs - startMs) / 1000);
    write(`quire: loading weights: ${percent} % of ${(totalCount / 1e6).toFixed(0)} million after ${seconds} s\n`);
  };
}
