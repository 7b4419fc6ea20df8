/** What the process holds in memory once its garbage is gone. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** Collects garbage, then returns the resident bytes of the process. */
export function residentBytes(): number {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  // Buffers are given back by the collection after the one that found them dead.
  for (let i = 0; i < 2; i++) collect();
  return process.memoryUsage.rss();
}
