/**
 * The real engine over a device that only takes time: steps cost what a formula says, on a clock that jumps from one event to the next. Hours of
 * load take seconds, and the same load always takes the same course.
 */

import type { Ticket } from "../../../engine/engine.ts";
import type { EngineStatus } from "../../../engine/engine-parts.ts";
import { type OpenedEngine, openEngine } from "../../../engine/open.ts";
import { type Clock, ENGINE_DEFAULTS, type EngineSettings } from "../../../engine/settings.ts";
import { type KvPool, PAGE_TOKENS } from "../../../kernels/contract.ts";
import { emptyTraffic } from "../../../kernels/traffic.ts";
import type { ModelRunner, SequenceResult, SequenceStep } from "../../../models/contract.ts";
import type { EngineUsage, FinishReason, GenerateRequest } from "../../../protocol/generate.ts";
import type { PageStore } from "../../../storage/contract.ts";
import { kvGeometry } from "../../../storage/geometry.ts";
import { MemoryStore } from "../../../storage/memory-store.ts";
import { VirtualProcess, VirtualTime } from "../../sim/virtual-time.ts";
import { request } from "../harness.ts";
import { TINY_CONFIG } from "../tiny-model.ts";

/** Timers that one scenario may need: hours of steps. */
const EVENTS_MAX = 10_000_000;

/** What a step takes on the simulated device. */
export interface StepCost {
  fixedMs: number;
  rowMs: number;
  attendedMsPer1024: number;
}

/** A device as fast as the house model on a small machine. */
export const HOUSE_COST: StepCost = { fixedMs: 1.5, rowMs: 0.5, attendedMsPer1024: 0.35 };

/** For tests that simulate minutes: seconds on a quiet machine, many of them on a busy one. */
export const SIMULATION_TIMEOUT = { timeout: 120_000 };

/** An engine in a simulation. */
export interface SimulatedEngine extends OpenedEngine {
  clock: Clock;
  /** Lets time pass until `work` has settled. */
  run<T>(work: Promise<T>): Promise<T>;
  /** Length of every step so far. */
  stepsMs: number[];
  status(): EngineStatus;
}

/** Opens one; `rowMs` and the rest may be changed while it runs. */
export function simulateEngine(options: {
  cost?: StepCost;
  settings?: Partial<EngineSettings>;
  blockCount?: number;
  /** Default: as many as blocks. */
  summarySlotCount?: number;
  /** Made with the engine's time. Segments are whole, tails are not: what the device holds are zeros. */
  store?: (time: VirtualTime) => PageStore;
}): SimulatedEngine {
  const time = new VirtualTime();
  const { clock } = new VirtualProcess(time);
  const stepsMs: number[] = [];
  const rowsMax = 512;
  const runner = timedRunner({
    clock,
    stepsMs,
    rowsMax,
    cost: options.cost ?? HOUSE_COST,
    pool: emptyPool(options.blockCount ?? 4096, options.summarySlotCount),
  });
  const opened = openEngine({
    runner,
    numericsId: "simulated-1",
    store: options.store?.(time) ?? new MemoryStore(),
    settings: {
      ...ENGINE_DEFAULTS,
      engineId: "simulated",
      modelId: "tiny",
      contextTokensMax: 65_536,
      stepRowsMax: rowsMax,
      turnMsMax: 3_600_000,
      ...options.settings,
    },
    clock,
    log: () => {},
  });
  return { ...opened, clock, run: (work) => time.run(work, EVENTS_MAX), stepsMs, status: () => opened.engine.status };
}

function timedRunner(options: {
  clock: Clock;
  stepsMs: number[];
  rowsMax: number;
  cost: StepCost;
  pool: KvPool;
}): ModelRunner {
  const { clock, stepsMs, cost } = options;
  const config = { ...TINY_CONFIG, contextTokensMax: 65_536 };
  return {
    config,
    fingerprint: "51a0000000000001",
    rowsMax: options.rowsMax,
    sampledMax: ENGINE_DEFAULTS.runningMax,
    pool: options.pool,
    async step(sequences) {
      const ms = costOf(sequences, cost);
      stepsMs.push(ms);
      await clock.sleep(ms);
      return sequences.map(resultOf);
    },
    discard() {},
  };
}

function costOf(sequences: readonly SequenceStep[], cost: StepCost): number {
  let ms = cost.fixedMs;
  for (const { slice } of sequences) {
    const { plan } = slice;
    const perRow = plan.kind === "dense" ? slice.position + slice.rowCount / 2 : plan.budgetPages * PAGE_TOKENS;
    const attended = slice.rowCount * perRow;
    ms += slice.rowCount * cost.rowMs + (attended / 1024) * cost.attendedMsPer1024;
  }
  return ms;
}

function resultOf({ slice, sample }: SequenceStep): SequenceResult {
  const tokenId = ((slice.position + slice.rowCount) * 7919) % TINY_CONFIG.vocabularySize;
  return { misses: [], traffic: emptyTraffic(), ...(sample === undefined ? {} : { sample: { tokenId } }) };
}

function emptyPool(blockCount: number, summarySlotCount = blockCount): KvPool {
  const { layerCount, kvHeadCount, headDim } = TINY_CONFIG;
  const shape = { layerCount, kvHeadCount, headDim, encoding: "int8", summaryKinds: [] } as const;
  const geometry = kvGeometry({ ...shape, segmentTokens: 256 });
  const nothing = async () => new Uint8Array(0);
  const zeros = new Uint8Array(geometry.blockBytes);
  return {
    spec: { ...shape, blockCount: blockCount * layerCount, openSlotCount: 512, summarySlotCount },
    blockBytes: geometry.blockBytes,
    openSlotBytes: 0,
    summaryBytes: geometry.summaryBytes,
    readBlock: async () => zeros,
    readSummary: nothing,
    readOpen: nothing,
    writeBlock() {},
    writeSummary() {},
    writeOpen() {},
  };
}

/** What one simulated request saw, on the engine's clock. */
export interface SimulatedTurn {
  submittedMs: number;
  tokensMs: number[];
  endMs: number;
  reason?: FinishReason;
  usage?: EngineUsage;
  error?: unknown;
}

/** Submits a dense request of so many seeded tokens and waits for its end, whatever that is. */
export function simulateTurn(
  { engine, clock }: Pick<SimulatedEngine, "engine" | "clock">,
  fields: Parameters<typeof request>[0] | GenerateRequest,
  onTicket: (ticket: Ticket) => void = () => {},
): Promise<SimulatedTurn> {
  const turn: SimulatedTurn = { submittedMs: clock.nowMs(), tokensMs: [], endMs: 0 };
  return new Promise((resolve) => {
    const end = (how: Partial<SimulatedTurn>) => resolve(Object.assign(turn, how, { endMs: clock.nowMs() }));
    try {
      const ticket = engine.submit(request(fields), {
        token: () => void turn.tokensMs.push(clock.nowMs()),
        done: (reason, usage) => end({ reason, usage: structuredClone(usage) }),
        failed: (error) => end({ error }),
      });
      onTicket(ticket);
    } catch (error) {
      end({ error });
    }
  });
}

/** Nearest rank. */
export function percentile(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)] ?? Number.NaN;
}

/** Times between neighbours. */
export function gaps(timesMs: readonly number[]): number[] {
  return timesMs.slice(1).map((ms, i) => ms - timesMs[i]!);
}
