/** What the process holds in memory once its garbage is gone. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** Of the process: what is in memory, and what of that its JavaScript heap has taken. */
export interface ResidentMemory {
  residentBytes: number;
  heapBytes: number;
}

/** Collects garbage, then looks. */
export function residentMemory(): ResidentMemory {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  // Buffers are given back by the collection after the one that found them dead.
  for (let i = 0; i < 2; i++) collect();
  const { rss, heapTotal } = process.memoryUsage();
  return { residentBytes: rss, heapBytes: heapTotal };
}
