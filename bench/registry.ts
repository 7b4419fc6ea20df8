/** The benchmarks by name. They are loaded when they are asked for. */
import type { Bench } from "./bench.ts";

/** What the overview says about a benchmark, and where it is. */
export interface BenchEntry {
  summary: string;
  load(): Promise<Bench>;
}

/** In the order in which the overview lists them. */
export const benches: Readonly<Record<string, BenchEntry>> = {
  load: {
    summary: "multi-turn sessions against the edge or an engine: latencies, errors, reuse",
    load: async () => (await import("./load/load.ts")).loadBench,
  },
};
