import { queryObjects } from "node:v8";

/** Bytes of JavaScript's heap that are kept of what `make` gives, behind a collection of garbage, and what it gave. */
export function keptBytes<T>(make: () => T): { bytes: number; made: T } {
  const used = (): number => {
    // It collects all garbage first.
    queryObjects(Promise);
    return process.memoryUsage().heapUsed;
  };
  const before = used();
  const made = make();
  return { bytes: used() - before, made };
}
