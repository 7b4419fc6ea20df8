/**
 * How long the prompt of a resumed turn waits for the blocks that it selects in default mode: up to a moment in any case (`Sequence.missWaitUntilMs`); longer where
 * that gets it all of them by a later one (`Sequence.wholeWaitUntilMs`), or where all of them come while it computes; judged by what its steps and its waits have taken.
 */
import { layerRole, scoringLayers } from "../../kernels/page-range.ts";
import type { Clock } from "../settings.ts";
import type { PlannedSlice } from "./planned-slice.ts";
import type { Sequence } from "./sequence.ts";

/** Times `missWaitMs`, counted from the admission as that is: by then the first token must be expected. */
export const WHOLE_WAIT_FACTOR = 2.5;

/** What it works with. */
export interface PatienceOptions {
  clock: Pick<Clock, "nowMs">;
  /** Layers of blocks that are on their way to the device. */
  comingCount(): number;
  /** What a read of the store takes at least; undefined: not known yet. */
  latencyMs(): number | undefined;
}

/** Where a slice's step ended early. */
export interface Stop {
  layer: number;
  /** Blocks of this layer that were not there. */
  blockCount: number;
  /** What the step took until then. */
  ms: number;
}

/** What the steps of a slice have shown. */
interface Course {
  stop: Stop;
  stoppedAtMs: number;
  /** The latest wait for what a layer chose itself, and for how many blocks. */
  choiceWait: { ms: number; blockCount: number } | undefined;
  computedLayers: number;
  computedMs: number;
  /** It goes on without: what is missed is missed. */
  isOver: boolean;
}

/** Of a layer's time: projections and choice. */
const CHOICE_SHARE = 0.5;
/** Of computing, beside it: taking in what has come. */
const INTAKE_SHARE = 0.1;

/** For all sequences of an engine. */
export class Patience {
  readonly #options: PatienceOptions;
  readonly #courses = new WeakMap<PlannedSlice, Course>();

  constructor(options: PatienceOptions) {
    this.#options = options;
  }

  /** A step of a slice ended early. */
  stopped(planned: PlannedSlice, stop: Stop): void {
    const before = this.#courses.get(planned);
    const layers = before === undefined ? stop.layer + CHOICE_SHARE : stop.layer - before.stop.layer;
    this.#courses.set(planned, {
      ...{ stop, stoppedAtMs: this.#options.clock.nowMs(), choiceWait: before?.choiceWait },
      computedLayers: (before?.computedLayers ?? 0) + layers,
      computedMs: (before?.computedMs ?? 0) + stop.ms,
      isOver: before?.isOver ?? false,
    });
  }

  /** Whether a step of this slice, which begins or goes on, is to wait for what it misses. Once it is not, it stays so. */
  waits(sequence: Sequence, planned: PlannedSlice): boolean {
    if (sequence.started) return false;
    const nowMs = this.#options.clock.nowMs();
    const course = this.#courses.get(planned);
    if (course !== undefined) noteWait(planned, course, nowMs);
    if (nowMs < sequence.missWaitUntilMs) return true;
    if (course === undefined || course.isOver) return false;
    const isLast = planned.to === sequence.tokenCount && !sequence.workingSet;
    const { computingMs, waitingMs } = this.#rest(planned, course);
    const isInTime = nowMs + computingMs + waitingMs <= sequence.wholeWaitUntilMs;
    course.isOver = !isLast || !(isInTime || waitingMs === 0);
    return !course.isOver;
  }

  /**
   * What is left until its last layer is computed, of which only rows that are sampled are: computing, and, if it waits for all blocks, waits in which nothing computes:
   * for each choice that is to be made yet, and for what comes slower than it is computed with. Infinite while nothing was waited for.
   */
  #rest({ slice }: PlannedSlice, course: Course): { computingMs: number; waitingMs: number } {
    const { comingCount, latencyMs } = this.#options;
    const { stop, choiceWait, computedLayers, computedMs } = course;
    const layerCount = slice.blockIds.length / slice.blockCapacity;
    const computingMs = ((layerCount - 1 - stop.layer) * (1 + INTAKE_SHARE) * computedMs) / computedLayers;
    if (choiceWait === undefined) return { computingMs, waitingMs: Number.POSITIVE_INFINITY };
    const choices = scoringLayers(slice.plan, layerCount).filter((layer) => layer > stop.layer);
    const blockMs = Math.max(0, choiceWait.ms - (latencyMs() ?? 0)) / choiceWait.blockCount;
    const unknownCount = (layerCount - (choices[0] ?? layerCount)) * choiceWait.blockCount;
    const comingMs = (comingCount() + unknownCount) * blockMs;
    return { computingMs, waitingMs: choices.length * choiceWait.ms + Math.max(0, comingMs - computingMs) };
  }
}

function noteWait({ slice }: PlannedSlice, course: Course, nowMs: number): void {
  const { layer, blockCount } = course.stop;
  if (blockCount > 0 && layerRole(slice.plan, layer) === "chooses")
    course.choiceWait = { ms: nowMs - course.stoppedAtMs, blockCount };
}
