/**
 * A device of simulated pace, which watches over what is done to its memory. Steps take time, before and after their rows are computed at once, so that answers of
 * the store come in before, during and after them.
 */
import type { KvPool, SummaryKind } from "../../kernels/contract.ts";
import { choosingLayer } from "../../kernels/page-range.ts";
import type { Checkpoint, ModelRunner, SequenceResult, SequenceStep } from "../../models/contract.ts";
import type { VirtualProcess, VirtualTime } from "./virtual-time.ts";

const STEP_MS = 1;
const ROW_MS = 0.05;
/** Until bytes of the device have come to the host. */
const READ_MS = 0.5;

/** Where it runs, and who hears of what must not be. */
export interface PacedOptions {
  process: VirtualProcess;
  time: VirtualTime;
  tell(what: string): void;
}

/** The runner with its pool, as an engine has them. Tells when memory is written that a running step reads, and when a step misses what it has waited for. */
export function pacedRunner(runner: ModelRunner, { process, time, tell }: PacedOptions): ModelRunner {
  let running: readonly SequenceStep[] = [];
  const waits = new Waits(tell);
  return {
    config: runner.config,
    fingerprint: runner.fingerprint,
    pool: watched(runner.pool, {
      async later(bytes) {
        await process.await(time.sleep(READ_MS));
        return await bytes;
      },
      block: (id) => {
        if (running.some(({ slice }) => slice.blockIds.includes(id)))
          tell(`block ${id} was written while a step read it`);
      },
      summary: (slot, kind, layer) => {
        const reads = running.some(
          ({ slice: { plan, summarySlots }, layerEnd }) =>
            plan.kind !== "dense" &&
            plan.scorer?.summary === kind &&
            summarySlots.includes(slot) &&
            (layer === undefined || choosingLayer(plan, layer) === layer) &&
            isBelow(layer, layerEnd),
        );
        if (reads) tell(`summaries in slot ${slot} were written while a step read them`);
      },
    }),
    rowsMax: runner.rowsMax,
    sampledMax: runner.sampledMax,
    async step(steps) {
      const rows = steps.reduce((sum, { slice }) => sum + slice.rowCount, 0);
      const ms = STEP_MS + ROW_MS * rows;
      running = steps;
      try {
        await process.await(time.sleep(ms / 2));
        const results = await runner.step(steps);
        waits.check(steps, results);
        await process.await(time.sleep(ms / 2));
        return results;
      } finally {
        running = [];
      }
    },
    discard: (checkpoint) => runner.discard(checkpoint),
  };
}

/** A step is suspended once for the blocks of a layer: when it goes on they are there. */
class Waits {
  readonly #tell: (what: string) => void;
  readonly #layers = new WeakMap<Checkpoint, number>();

  constructor(tell: (what: string) => void) {
    this.#tell = tell;
  }

  check([step]: readonly SequenceStep[], [result]: readonly SequenceResult[]): void {
    const { misses, checkpoint } = result as SequenceResult;
    if (checkpoint === undefined || misses.length === 0) return;
    const layer = Math.min(...misses.map((miss) => miss.layer));
    const waited = step?.resumeFrom && this.#layers.get(step.resumeFrom);
    if (waited !== undefined && layer <= waited)
      this.#tell(`a step waited for blocks of layer ${waited}, and missed some of layer ${layer}`);
    this.#layers.set(checkpoint, layer);
  }
}

/** Whether a write of one layer, or of all, is of one that a step may read. */
function isBelow(layer: number | undefined, layerEnd: number | undefined): boolean {
  return layer === undefined || layerEnd === undefined || layer < layerEnd;
}

/** Told before each write; and what makes reads take their time, the bytes being those of the moment of the call. */
interface Watch {
  later<T>(bytes: Promise<T>): Promise<T>;
  block(id: number): void;
  summary(slot: number, kind: SummaryKind, layer: number | undefined): void;
}

function watched(pool: KvPool, watch: Watch): KvPool {
  return {
    spec: pool.spec,
    blockBytes: pool.blockBytes,
    openSlotBytes: pool.openSlotBytes,
    summaryBytes: pool.summaryBytes,
    readBlock: (id) => watch.later(pool.readBlock(id)),
    writeBlock(id, bytes) {
      watch.block(id);
      pool.writeBlock(id, bytes);
    },
    readSummary: (slot, kind) => watch.later(pool.readSummary(slot, kind)),
    writeSummary(slot, kind, bytes, layer) {
      watch.summary(slot, kind, layer);
      pool.writeSummary(slot, kind, bytes, layer);
    },
    readOpen: (slot, tokenCount) => watch.later(pool.readOpen(slot, tokenCount)),
    writeOpen: (slot, tokenCount, bytes) => pool.writeOpen(slot, tokenCount, bytes),
  };
}
