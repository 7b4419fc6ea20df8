/**
 * How long the prompt of a resumed turn waits for the blocks that it selects in default mode: up to a moment in any case
 * (`Sequence.missWaitUntilMs`); longer where that gets it all of them by a later one (`Sequence.wholeWaitUntilMs`), or where they come
 * nearly as fast as it computes; judged by what its steps and its waits have taken. A wait that proves longer ends, and the prompt goes on
 * without.
 */
import { layerRole, scoringLayers } from "../../kernels/page-range.ts";
import type { Clock } from "../settings.ts";
import type { PlannedSlice } from "./planned-slice.ts";
import type { WaitEnd } from "./residency.ts";
import type { Sequence } from "./sequence.ts";

/** Times `missWaitMs`, counted from the admission as that is: by then the first token must be expected. */
export const WHOLE_WAIT_FACTOR = 2.5;

/** What it works with. */
export interface PatienceOptions {
  clock: Pick<Clock, "nowMs">;
  /** Layers of blocks that are demanded and on their way to the device. */
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
/** Of what is left to compute: waits of so little are made however late it is. */
const SMALL_SHARE = 1 / 8;
/** A wait for a choice may take so many times what the last one took. */
const CHOICE_GRACE = 1.5;

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
    if (course?.isOver) return false;
    if (course !== undefined) noteWait(planned, course, nowMs);
    if (nowMs < sequence.missWaitUntilMs) return true;
    if (course === undefined) return false;
    const { computingMs, choicesMs, linkMs } = this.#rest(planned, course);
    const isInTime = nowMs + computingMs + choicesMs + linkMs <= sequence.wholeWaitUntilMs;
    const isSmall = choicesMs + linkMs <= SMALL_SHARE * computingMs;
    course.isOver = !mayWaitOn(sequence, planned) || !(isInTime || isSmall);
    return !course.isOver;
  }

  /**
   * When a wait that begins where this slice's step has ended is over, whatever has come: once the first token could not be there in time
   * even if the rest came at once; where little was to be waited for, when it takes longer than such waits do. From then on the slice
   * waits for nothing.
   */
  waitEnd(sequence: Sequence, planned: PlannedSlice): WaitEnd | undefined {
    const course = this.#courses.get(planned);
    if (course === undefined) return undefined;
    const giveUp = () => {
      course.isOver = true;
    };
    const { missWaitUntilMs, wholeWaitUntilMs } = sequence;
    if (!mayWaitOn(sequence, planned)) return { atMs: missWaitUntilMs, giveUp };
    const { layerMs, computingMs, choicesMs } = this.#rest(planned, course);
    const isChoice = layerRole(planned.slice.plan, course.stop.layer) === "chooses";
    const choiceMs = isChoice ? (course.choiceWait?.ms ?? Number.POSITIVE_INFINITY) : 0;
    const isSmall = choiceMs + choicesMs <= SMALL_SHARE * computingMs;
    // Else a layer's blocks were asked for with those of the layer that chose.
    const usualMs = isChoice ? CHOICE_GRACE * choiceMs : (this.#options.latencyMs() ?? 0) + layerMs;
    const graceMs = isSmall ? usualMs : 0;
    const atMs = Math.max(wholeWaitUntilMs - computingMs - choicesMs, this.#options.clock.nowMs() + graceMs);
    return { atMs: Math.max(missWaitUntilMs, atMs), giveUp };
  }

  /**
   * What is left until its last layer is computed, of which only rows that are sampled are: computing, and, if it waits for all blocks, waits
   * in which nothing computes: for each choice that is to be made yet, and for what comes slower than it is computed with. Infinite while
   * nothing was waited for.
   */
  #rest({ slice }: PlannedSlice, course: Course): Rest {
    const { comingCount, latencyMs } = this.#options;
    const { stop, choiceWait, computedLayers, computedMs } = course;
    const layerCount = slice.blockIds.length / slice.blockCapacity;
    const layerMs = ((1 + INTAKE_SHARE) * computedMs) / computedLayers;
    const computingMs = (layerCount - 1 - stop.layer) * layerMs;
    if (choiceWait === undefined) return { layerMs, computingMs, choicesMs: Number.POSITIVE_INFINITY, linkMs: 0 };
    const choices = scoringLayers(slice.plan, layerCount).filter((layer) => layer > stop.layer);
    const blockMs = Math.max(0, choiceWait.ms - (latencyMs() ?? 0)) / choiceWait.blockCount;
    const unknownCount = (layerCount - (choices[0] ?? layerCount)) * choiceWait.blockCount;
    const comingMs = (comingCount() + unknownCount) * blockMs;
    return {
      ...{ layerMs, computingMs, choicesMs: choices.length * choiceWait.ms },
      linkMs: Math.max(0, comingMs - computingMs),
    };
  }
}

/** What is left of a step. */
interface Rest {
  /** One layer, its intake with it. */
  layerMs: number;
  computingMs: number;
  /** Waits for choices that are to be made yet. */
  choicesMs: number;
  /** What comes slower than it is computed with. */
  linkMs: number;
}

/** Only the end of a prompt waits for everything: what it waits for is what the first token attends to. */
function mayWaitOn(sequence: Sequence, planned: PlannedSlice): boolean {
  return planned.to === sequence.tokenCount && !sequence.workingSet;
}

function noteWait({ slice }: PlannedSlice, course: Course, nowMs: number): void {
  const { layer, blockCount } = course.stop;
  if (blockCount > 0 && layerRole(slice.plan, layer) === "chooses")
    course.choiceWait = { ms: nowMs - course.stoppedAtMs, blockCount };
}
