/** What engines still hold when nobody asks anything of them: what is left then has leaked. */
import { setTimeout as sleep } from "node:timers/promises";
import { LIMITS } from "../../protocol/limits.ts";

/** An engine of the run's own. */
export interface EngineAddress {
  name: string;
  url: string;
}

/** One engine at rest, by its own `/metrics`. */
export interface EngineAtRest {
  name: string;
  /** Sequences, requests and bytes for the store that never ended; 0 unless it did not come to rest in time. */
  busy: number;
  /** Logical blocks still reserved, blocks on the device and open slots still held. */
  leakedBlocks: number;
  leakedSlots: number;
}

const REST_MS_MAX = 30_000;
const ASK_MS = 250;
const busyMetrics = ["quire_running_sequences", "quire_queued_requests", "quire_store_pending_bytes"];

/**
 * Waits until every engine is idle and holds nothing (at most 30 s: a turn that has ended is still written and deleted), and tells what each holds
 * then. @throws where one does not answer until then.
 */
export async function engineRest(engines: readonly EngineAddress[], signal: AbortSignal): Promise<EngineAtRest[]> {
  const endMs = performance.now() + REST_MS_MAX;
  return Promise.all(
    engines.map(async (engine) => {
      for (;;) {
        const isLast = () => performance.now() > endMs || signal.aborted;
        const values = await scrape(engine.url).catch((error: unknown) => {
          // It may have been killed a moment ago, and be about to come back.
          if (isLast()) throw error;
          return undefined;
        });
        const rest = values && restOf(engine.name, values);
        if (rest && (rest.busy + rest.leakedBlocks + rest.leakedSlots === 0 || isLast())) return rest;
        await sleep(ASK_MS);
      }
    }),
  );
}

/** Reads a scrape. @throws where a metric is missing. */
export function restOf(name: string, values: ReadonlyMap<string, number>): EngineAtRest {
  const read = (metric: string): number => {
    const value = values.get(metric);
    if (value === undefined) throw new Error(`${name} does not tell ${metric}`);
    return value;
  };
  const reserved = read("quire_pool_blocks") - read("quire_pool_free_blocks");
  return {
    name,
    busy: busyMetrics.reduce((sum, metric) => sum + read(metric), 0),
    leakedBlocks: reserved + read("quire_pool_held_blocks"),
    leakedSlots: read("quire_pool_held_slots"),
  };
}

/** An engine's metrics without labels, by name. @throws where it does not answer in time. */
export async function scrape(url: string): Promise<Map<string, number>> {
  const answer = await fetch(`${url}/metrics`, { signal: AbortSignal.timeout(LIMITS.statusMsMax) });
  return plainValues(await answer.text());
}

/** Metrics without labels, by name. */
export function plainValues(text: string): Map<string, number> {
  const samples = text.split("\n").flatMap((line) => {
    const [, name, value] = /^([a-z_]+) (\S+)$/.exec(line) ?? [];
    return name === undefined ? [] : [[name, Number(value)] as const];
  });
  return new Map(samples);
}
