/** Where the memory of a run's engines is, by their own `/metrics`: what grows when resident memory does. */
import { type EngineAddress, scrape } from "./rest.ts";

/** One engine at one moment; a part that it does not tell is left out. */
export interface MemoryParts {
  name: string;
  /** Seconds after the start of the run. */
  atS: number;
  residentBytes?: number;
  heapBytes?: number;
  externalBytes?: number;
  hostPoolBytes?: number;
  /** Waits to be written to the page store. */
  pendingBytes?: number;
}

const metricOf = {
  residentBytes: "process_resident_memory_bytes",
  heapBytes: "nodejs_heap_size_used_bytes",
  externalBytes: "nodejs_external_memory_bytes",
  hostPoolBytes: "quire_host_pool_bytes",
  pendingBytes: "quire_store_pending_bytes",
} as const;

/** Asks every engine; one that does not answer, because it was just killed, is left out. */
export async function memoryParts(engines: readonly EngineAddress[], atS: number): Promise<MemoryParts[]> {
  const asked = engines.map(async ({ name, url }) => partsOf(name, atS, await scrape(url)));
  return (await Promise.allSettled(asked)).flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
}

/** Reads a scrape. */
export function partsOf(name: string, atS: number, values: ReadonlyMap<string, number>): MemoryParts {
  const told = Object.entries(metricOf).flatMap(([part, metric]) => {
    const value = values.get(metric);
    return value === undefined ? [] : [[part, value] as const];
  });
  return { name, atS, ...Object.fromEntries(told) };
}
