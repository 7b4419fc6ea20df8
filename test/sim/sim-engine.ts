/** The real engine as a process of a simulated world: its clock, its device's pace and its store are the world's, and it can die at any await. */
import { type SessionCalls, sessionCalls } from "../../engine/http/session-calls.ts";
import { type OpenedEngine, openEngine } from "../../engine/open.ts";
import { ENGINE_DEFAULTS, type EngineSettings } from "../../engine/settings.ts";
import type { Device } from "../../kernels/contract.ts";
import { openDevice } from "../../kernels/open.ts";
import type { ModelConfig, ModelRunner } from "../../models/contract.ts";
import { openRunner } from "../../models/open.ts";
import { poolFormOf } from "../../storage/block-encoding.ts";
import type { StoredEncoding } from "../../storage/geometry.ts";
import { TINY_CONFIG, TinyWeights } from "../engine/tiny-model.ts";
import { pacedRunner } from "./paced-runner.ts";
import type { SimDisk } from "./sim-disk.ts";
import type { SimStore } from "./sim-store.ts";
import { VirtualProcess, type VirtualTime } from "./virtual-time.ts";

/** One layer, two query heads on one KV head. */
export const SIM_CONFIG: ModelConfig = {
  ...TINY_CONFIG,
  layerCount: 1,
  width: 16,
  ffnWidth: 16,
  headCount: 2,
  kvHeadCount: 1,
  headDim: 8,
  vocabularySize: 32,
  contextTokensMax: 1024,
};

const ROWS_MAX = 64;
/** Events of the log that no fault of the world explains. */
const FAILURES: ReadonlySet<string> = new Set(["step.failed", "engine.failed", "sequence.failed", "sink.failed"]);

/** Where an engine lives. */
export interface SimPlace {
  time: VirtualTime;
  store: SimStore;
  /** Of the model. Default 1. */
  layerCount?: number;
  /** Of one layer each. */
  blockCount: number;
  /** Default: as many as blocks. */
  summarySlotCount?: number;
  /** How pages are stored. Default int8. */
  pages?: StoredEncoding;
  /** Of the machine that it lives on. */
  disk?: SimDisk | undefined;
  settings?: Partial<EngineSettings>;
}

/** A model on a device of its own; the caller closes the device. */
export async function openSimRunner(counts: {
  layerCount?: number;
  blockCount: number;
  summarySlotCount?: number | undefined;
  openSlotCount: number;
  pages: StoredEncoding;
}): Promise<{ runner: ModelRunner; device: Device }> {
  const device = await openDevice({ kind: "reference" });
  const config = { ...SIM_CONFIG, layerCount: counts.layerCount ?? SIM_CONFIG.layerCount };
  const runner = await openRunner({
    config,
    source: new TinyWeights(config),
    device,
    encoding: "f32",
    kv: {
      ...poolFormOf(counts.pages),
      summaryKinds: ["min-max", "mean-deviation"],
      blockCount: counts.blockCount,
      openSlotCount: counts.openSlotCount,
      summarySlotCount: counts.summarySlotCount ?? counts.blockCount,
    },
    rowsMax: ROWS_MAX,
  });
  return { runner, device };
}

/** A running engine process. */
export class SimEngine {
  readonly opened: OpenedEngine;
  /** What an edge asks it beside turns. */
  readonly calls: SessionCalls;
  readonly process: VirtualProcess;
  /** Steps that failed, or waited in vain: there must be none. */
  readonly failures: string[];
  readonly #device: Device;
  readonly #onDeath = new Set<() => void>();

  private constructor(parts: {
    opened: OpenedEngine;
    calls: SessionCalls;
    process: VirtualProcess;
    failures: string[];
    device: Device;
  }) {
    this.opened = parts.opened;
    this.calls = parts.calls;
    this.process = parts.process;
    this.failures = parts.failures;
    this.#device = parts.device;
  }

  static async open(place: SimPlace): Promise<SimEngine> {
    const process = new VirtualProcess(place.time);
    const { runner, device } = await openSimRunner({
      ...{ blockCount: place.blockCount, openSlotCount: 10, summarySlotCount: place.summarySlotCount },
      layerCount: place.layerCount ?? 1,
      pages: place.pages ?? "int8",
    });
    const failures: string[] = [];
    const line = place.store.line(process);
    const store = place.disk?.before(line, process) ?? line;
    const opened = openEngine({
      runner: pacedRunner(runner, { process, time: place.time, tell: (what) => failures.push(what) }),
      numericsId: device.numericsId,
      store,
      settings: {
        ...ENGINE_DEFAULTS,
        engineId: "simulated",
        modelId: "tiny",
        contextTokensMax: SIM_CONFIG.contextTokensMax,
        stepRowsMax: ROWS_MAX,
        // Small as they are, summaries come in layer by layer.
        ...{ segmentTokens: 64, summaryRunTokens: 128, summaryFirstBytesMax: 1 },
        manifestCommitMs: 20,
        ...place.settings,
      },
      clock: process.clock,
      log: (event, fields) => {
        if (FAILURES.has(event)) failures.push(`${event}: ${String(fields.error)}`);
      },
    });
    const calls = sessionCalls(opened, store, { settings: ENGINE_DEFAULTS, clock: process.clock });
    return new SimEngine({ opened, calls, process, failures, device });
  }

  get dead(): boolean {
    return this.process.dead;
  }

  /** Calls back when the engine dies, unless the returned function was called before. */
  onDeath(tell: () => void): () => void {
    this.#onDeath.add(tell);
    return () => this.#onDeath.delete(tell);
  }

  /** As `kill -9`. */
  kill(): void {
    if (this.dead) return;
    this.process.kill();
    void this.#device.close();
    for (const tell of [...this.#onDeath]) tell();
    this.#onDeath.clear();
  }
}
