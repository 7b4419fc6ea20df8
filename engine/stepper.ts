/**
 * One step of the engine: plan who is in it, run it on the device, take what it gave. A sequence whose step missed blocks is suspended with
 * its checkpoint, and goes on from there when they have come; what a step computed becomes the sequence's, and its samples its next tokens.
 * A step that failed has changed nothing of its sequences: each of them is tried again by itself, and who fails alone ends with the error.
 */
import type { Sample } from "../kernels/contract.ts";
import { DeviceLostError } from "../kernels/device-lost.ts";
import type { SequenceResult, SequenceStep } from "../models/contract.ts";
import type { EngineParts } from "./engine-parts.ts";
import type { EngineObserver } from "./observer.ts";
import type { CostModel } from "./schedule/cost-model.ts";
import { Speculation } from "./schedule/speculation.ts";
import { addLoads } from "./schedule/step-load.ts";
import { type PlannedPart, StepPlanner } from "./schedule/step-planner.ts";
import type { Tenants } from "./schedule/tenants.ts";
import { describeError } from "./sequence/endings.ts";
import type { LookAhead } from "./sequence/look-ahead.ts";
import { Patience } from "./sequence/patience.ts";
import type { PlannedSlice } from "./sequence/planned-slice.ts";
import type { Residency } from "./sequence/residency.ts";
import { collectChoice } from "./sequence/runs.ts";
import { sampleParams, samplesOf, takeSample } from "./sequence/sampling.ts";
import type { Sequence } from "./sequence/sequence.ts";
import { commitSlice, discardSlice, fillTables, planSlice, rowNeeds } from "./sequence/slice-planner.ts";
import { lacksSummaries, runInBatches, summaryLayerEnd } from "./sequence/summary-layers.ts";
import { countChoices, countMisses, countTraffic, firstLayer, missedBlocks } from "./sequence/traffic.ts";
import { noteAttended } from "./sequence/working-set.ts";

/** What a stepper works with; all of it stays the engine's. */
export interface StepperOptions {
  parts: Pick<
    EngineParts,
    "settings" | "runner" | "cache" | "opens" | "fetcher" | "persister" | "clock" | "storeSpeed" | "log"
  >;
  /** Sequences that may be in a step. */
  active: ReadonlySet<Sequence>;
  cost: CostModel;
  tenants: Tenants;
  residency: Residency;
  lookAhead: Pick<LookAhead, "step">;
  observer: EngineObserver;
  /** Its last token was sampled: its client is told now. */
  conclude(sequence: Sequence): void;
  /** Everything of a concluded turn has KV that is to have any. */
  settle(sequence: Sequence): void;
  /** Ends one sequence with an error; the others go on. */
  fail(sequence: Sequence, error: unknown): void;
}

/** Steps of one engine, one at a time. A call throws where the device is lost, or the planner fails: no running sequence can be trusted then. */
export class Stepper {
  readonly #options: StepperOptions;
  readonly #planner: StepPlanner;
  readonly #speculation = new Speculation();
  readonly #patience: Patience;
  /** Those of a step that failed: each is alone in its next one. */
  readonly #suspects = new Set<Sequence>();

  constructor(options: StepperOptions) {
    this.#options = options;
    const { settings, runner, cache, opens, clock, fetcher, storeSpeed } = options.parts;
    const { layerCount, summaryKinds } = runner.pool.spec;
    const latencyMs = () => storeSpeed()?.latencyMs;
    this.#patience = new Patience({ clock, latencyMs, comingCount: () => fetcher.demandedLayerCount });
    this.#planner = new StepPlanner({
      ...{ settings, rowsMax: runner.rowsMax, sampledMax: runner.sampledMax },
      ...{ cost: options.cost, tenants: options.tenants, speculation: this.#speculation },
      slotsLeft: () => opens.availableCount,
      needs: rowNeeds,
      fetch: (sequence, rows, blocks) => options.residency.bring(sequence, rows, blocks),
      take: (sequence, rows) => planSlice(sequence, rows, { cache, opens, layerCount, summaryKinds }),
      fail: options.fail,
    });
  }

  /** Goes on with a suspended step whose blocks have come. False when there is none. */
  async resume(): Promise<boolean> {
    const { active, parts } = this.#options;
    const sequence = [...active].find((one) => one.phase === "running" && one.suspended);
    const suspended = sequence?.suspended;
    if (!sequence || !suspended) return false;
    const { planned, checkpoint } = suspended;
    if (lacksSummaries(sequence, suspended)) {
      this.drop(sequence);
      return false;
    }
    sequence.suspended = undefined;
    fillTables(sequence, planned);
    const step = { ...this.#sequenceStep(sequence, planned), resumeFrom: checkpoint };
    // Where blocks are on their way, each layer sees those that have come before it.
    const pauses = step.exact && parts.fetcher.inFlightCount > 0;
    const startMs = parts.clock.nowMs();
    try {
      const [result] = await this.#runStep([{ sequence, slice: planned, step: { ...step, pauses } }]);
      this.#finishSlice({ sequence, planned, ms: parts.clock.nowMs() - startMs }, result as SequenceResult);
    } catch (error) {
      this.#suspect([sequence], error);
    }
    return true;
  }

  /** Plans a step and runs it. False when nobody can go on. */
  async run(): Promise<boolean> {
    const { parts } = this.#options;
    const planned = this.#plan();
    await runInBatches(planned, parts, (batch) => this.#runBatch(batch));
    return planned.length > 0;
  }

  /** Drops a suspended step, if there is one: its rows are planned anew. Between steps. */
  drop(sequence: Sequence): void {
    if (!sequence.suspended) return;
    const { parts } = this.#options;
    parts.runner.discard(sequence.suspended.checkpoint);
    discardSlice(sequence.suspended.planned, parts);
    sequence.suspended = undefined;
    sequence.unpin(parts.cache);
  }

  async #runBatch(batch: readonly PlannedPart[]): Promise<void> {
    const startMs = this.#options.parts.clock.nowMs();
    let results: SequenceResult[];
    try {
      results = await this.#runStep(
        batch.map(({ sequence, slice }) => ({ sequence, slice, step: this.#sequenceStep(sequence, slice) })),
      );
    } catch (error) {
      const sequences = batch.map(({ sequence }) => sequence);
      this.#suspect(sequences, error);
      return;
    }
    for (const { sequence } of batch) this.#suspects.delete(sequence);
    const ms = this.#account(batch, results, startMs);
    for (const [index, { sequence, slice }] of batch.entries()) {
      try {
        this.#finishSlice({ sequence, planned: slice, ms }, results[index] as SequenceResult);
      } catch (error) {
        this.#options.fail(sequence, error);
      }
    }
  }

  /** Their step failed: who was alone in it ends, others are tried one by one. @throws {DeviceLostError} the error, if that is what it is */
  #suspect(sequences: readonly Sequence[], error: unknown): void {
    const { fail, parts } = this.#options;
    if (error instanceof DeviceLostError) throw error;
    parts.log("step.failed", { sequenceCount: sequences.length, error: describeError(error) });
    const [first, ...others] = sequences;
    if (first !== undefined && others.length === 0) fail(first, error);
    else for (const sequence of sequences) this.#suspects.add(sequence);
  }

  /** A suspect by itself, if one can go on, else all that are none. */
  #plan(): PlannedPart[] {
    const { active, parts } = this.#options;
    const nowMs = parts.clock.nowMs();
    const suspects = this.#suspects;
    for (const one of suspects) {
      // One that has ended is nobody's to try, and not to be kept for ever.
      if (!active.has(one)) suspects.delete(one);
      const alone = suspects.has(one) ? this.#planner.plan([one], nowMs) : [];
      if (alone.length > 0) return alone;
    }
    if (suspects.size === 0) return this.#planner.plan(active, nowMs);
    return this.#planner.plan(
      [...active].filter((one) => !suspects.has(one)),
      nowMs,
    );
  }

  /** A step's time teaches what steps cost, and is shared out among those who were in it. Returns it. */
  #account(batch: readonly PlannedPart[], results: readonly SequenceResult[], startMs: number): number {
    const { cost, observer, parts, tenants } = this.#options;
    const endMs = parts.clock.nowMs();
    const [ms, load] = [endMs - startMs, batch.map((part) => part.load).reduce(addLoads)];
    observer.stepped(batch, { startMs, endMs, predictedMs: cost.predictMs(load) });
    tenants.chargeStep(batch, ms, cost);
    // A step that was void ended early: its time says nothing of its rows.
    if (results.every((result) => result.checkpoint === undefined)) cost.observe(load, ms);
    return ms;
  }

  #sequenceStep(sequence: Sequence, planned: PlannedSlice): SequenceStep {
    const { draft } = planned;
    const last = planned.to - draft.length === sequence.tokenCount && sequence.finishReason === undefined;
    const layerEnd = summaryLayerEnd(sequence, planned);
    return {
      ...{ slice: planned.slice, tokens: planned.tokens, layerEnd },
      exact: isExact(sequence, planned) || this.#patience.waits(sequence, planned),
      ...(last ? { sample: sampleParams(sequence, draft.length) } : {}),
      ...(draft.length > 0 ? { draftSamples: Array.from(draft, (_, ahead) => sampleParams(sequence, ahead)) } : {}),
    };
  }

  async #runStep(steps: { sequence: Sequence; slice: PlannedSlice; step: SequenceStep }[]): Promise<SequenceResult[]> {
    const { lookAhead, parts } = this.#options;
    try {
      return await parts.cache.during(async () => {
        const results = await lookAhead.step(steps.map(({ step }) => step));
        noteAttended(steps, results, parts.cache);
        return results;
      });
    } catch (error) {
      for (const { slice } of steps) discardSlice(slice, parts);
      throw error;
    }
  }

  /** `ms`: what the step took. */
  #finishSlice(
    { sequence, planned, ms }: { sequence: Sequence; planned: PlannedSlice; ms: number },
    result: SequenceResult,
  ): void {
    const { parts, residency, settle } = this.#options;
    countTraffic(sequence.usage, result.traffic);
    const { wanted, passedBy } = missedBlocks(sequence, result);
    for (const one of passedBy) planned.passedBy.push(one);
    countChoices(sequence, result);
    collectChoice(planned, result);
    if (result.checkpoint) {
      const { checkpoint, chosenBlocks } = result;
      const layer = firstLayer(wanted, checkpoint.layer);
      const blockCount = wanted.filter((item) => item.layer === layer).length;
      this.#patience.stopped(planned, { layer, blockCount, ms });
      const end = isExact(sequence, planned) ? undefined : this.#patience.waitEnd(sequence, planned);
      residency.suspend(sequence, planned, { checkpoint, missed: wanted, chosenBlocks, end });
      return;
    }
    sequence.heat.tick();
    if (planned.passedBy.length > 0) {
      sequence.markApproximate(planned.from, planned.to);
      countMisses(sequence.usage, planned.passedBy.length);
      void residency.fetch(sequence, planned.passedBy, "fill");
    }
    const samples = this.#speculation.accept(sequence, planned, samplesOf(result));
    sequence.usage.recomputedTokens += Math.max(0, Math.min(planned.to, sequence.request.turnStart) - planned.from);
    const sealed = commitSlice(sequence, planned, parts);
    parts.persister.sealed(sequence, sealed);
    for (const sample of samples) this.#accept(sequence, sample);
    if (
      sequence.finishReason !== undefined &&
      (sequence.request.session === undefined || sequence.nextPosition === undefined)
    ) {
      settle(sequence);
    }
  }

  #accept(sequence: Sequence, sample: Sample): void {
    const { conclude, observer, parts, residency } = this.#options;
    const [nowMs, previousMs] = [parts.clock.nowMs(), sequence.lastTokenMs];
    sequence.lastTokenMs = nowMs;
    takeSample(sequence, sample, nowMs);
    observer.token(sequence, nowMs, previousMs);
    if (sequence.finishReason !== undefined) conclude(sequence);
    else if (sequence.generatedCount === 1) void residency.fillRest(sequence);
  }
}

/** Whether rows attend to all that they select, whatever that takes: in default mode others need not. */
function isExact(sequence: Sequence, planned: PlannedSlice): boolean {
  return planned.exact || sequence.finishReason !== undefined;
}
