/** Looks at a run while it goes on: a sample each second for the page, memory of its processes, and what a user at a terminal sees. */
import type { BenchContext } from "../bench.ts";
import type { Clock } from "../clock.ts";
import { type LiveView, openLiveView } from "./live.ts";
import type { Measures } from "./measures.ts";
import { MemoryBook, type ProcessAtWork } from "./memory.ts";
import { type MemoryParts, memoryParts } from "./memory-parts.ts";
import type { EngineAddress } from "./rest.ts";

/** A moment of the run, as page and JSON show it. */
export interface LoadSample {
  atS: number;
  sessionsActive: number;
  turnsCompleted: number;
  turnsFailed: number;
  /** Of the turns that ended since the sample before; undefined where none did. */
  firstTokenMsMax: number | undefined;
  /** Resident bytes by process; empty where nothing is known. */
  memoryBytes: Record<string, number>;
}

/** What is looked at. */
export interface WatchOptions {
  measures: Measures;
  clock: Clock;
  durationMs: number;
  /** Processes as they run now. */
  processes(): readonly ProcessAtWork[];
  /** Garbage of processes with an inspector is collected so often; 0: never. */
  collectMs: number;
  /** Engines as they run now. */
  engines(): readonly EngineAddress[];
  context: Pick<BenchContext, "progress" | "terminal">;
}

/** A run that is looked at. */
export interface Watch {
  readonly samples: readonly LoadSample[];
  readonly memory: MemoryBook;
  /** Of every engine, each ten seconds. */
  readonly parts: readonly MemoryParts[];
  /** Says something about the run, above what a terminal shows of it. */
  note(line: string): void;
  /** Ends it; what was seen stays. */
  stop(): void;
}

const sampleMs = 1_000;
const progressMs = 10_000;
const partsMs = 10_000;

/** Begins to look. */
export function watchRun(options: WatchOptions): Watch {
  const { measures, clock, context } = options;
  const startMs = clock.nowMs();
  const samples: LoadSample[] = [];
  const memory = new MemoryBook();
  const live: LiveView | undefined = context.terminal && openLiveView(context.terminal, options.durationMs / 1000);
  const sample = async (): Promise<void> => {
    const atS = Math.round(clock.nowMs() - startMs) / 1000;
    const memoryBytes = await memory.sample(options.processes(), atS);
    const taken = { ...sampleOf(measures, atS), memoryBytes };
    samples.push(taken);
    live?.show(samples, measures);
  };
  const parts: MemoryParts[] = [];
  const samplePart = async (): Promise<void> => {
    const atS = Math.round(clock.nowMs() - startMs) / 1000;
    parts.push(...(await memoryParts(options.engines(), atS)));
  };
  const timers = [setInterval(() => void sample(), sampleMs), setInterval(() => void samplePart(), partsMs)];
  let isCollecting = false;
  const collect = async (): Promise<void> => {
    // One at a time: a busy machine may take longer than there is between two.
    if (isCollecting) return;
    isCollecting = true;
    await memory.sampleCollected(options.processes(), () => Math.round(clock.nowMs() - startMs) / 1000);
    isCollecting = false;
  };
  if (options.collectMs > 0) timers.push(setInterval(() => void collect(), options.collectMs));
  if (live === undefined) timers.push(setInterval(() => context.progress(progressLine(samples)), progressMs));
  return {
    samples,
    ...{ memory, parts },
    note: (line) => (live === undefined ? context.progress(line) : live.note(line)),
    stop() {
      for (const timer of timers) clearInterval(timer);
      live?.close();
    },
  };
}

function sampleOf(measures: Measures, atS: number): Omit<LoadSample, "memoryBytes"> {
  const { started, completed, cutShort } = measures.sessions;
  const { turns } = measures.all.summary();
  return {
    atS,
    sessionsActive: started - completed - cutShort,
    turnsCompleted: turns.completed,
    turnsFailed: turns.failed,
    firstTokenMsMax: measures.takeSlowest(),
  };
}

function progressLine(samples: readonly LoadSample[]): string {
  const last = samples.at(-1);
  if (last === undefined) return "nothing seen yet";
  return `${last.atS.toFixed(0)} s: ${last.sessionsActive} sessions in progress; ${last.turnsCompleted} turns completed, ${last.turnsFailed} failed`;
}
