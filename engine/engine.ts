/**
 * The engine: `step()` is admit, plan, run, settle. One loop owns every sequence; whatever waits for the store does so outside of the loop and
 * wakes it. A request's life: `submit` -> queued -> attaching (KV from cache and store) -> running (prefill and decode in one batch,
 * suspended while selected blocks are fetched) -> settling (tail and manifest) -> ended.
 */
import type { Sample } from "../kernels/contract.ts";
import { DeviceLostError } from "../kernels/device-lost.ts";
import type { SequenceResult, SequenceStep } from "../models/contract.ts";
import { assert } from "../protocol/assert.ts";
import { QuireError, toQuireError } from "../protocol/errors.ts";
import type { GenerateRequest } from "../protocol/generate.ts";
import { breatheAfter } from "./breathing.ts";
import { type EngineParts, type EngineStatus, memoryStatus } from "./engine-parts.ts";
import { replayableSpans, resolveSelection } from "./http/request-check.ts";
import { parkTail } from "./kv/tail-parking.ts";
import { EngineMetrics } from "./metrics/engine-metrics.ts";
import { type EngineObserver, Observers } from "./observer.ts";
import { Admission } from "./schedule/admission.ts";
import { CostModel } from "./schedule/cost-model.ts";
import { Preemption } from "./schedule/preemption.ts";
import { Speculation } from "./schedule/speculation.ts";
import { addLoads } from "./schedule/step-load.ts";
import { type PlannedPart, StepPlanner } from "./schedule/step-planner.ts";
import { Tenants } from "./schedule/tenants.ts";
import { WaitingQueue } from "./schedule/waiting-queue.ts";
import { describeError, lateness, leavesKv, outcomeOf, tellEnd, wentInCircles } from "./sequence/endings.ts";
import { LookAhead } from "./sequence/look-ahead.ts";
import type { PlannedSlice } from "./sequence/planned-slice.ts";
import { Residency } from "./sequence/residency.ts";
import { collectChoice } from "./sequence/runs.ts";
import { sampleParams, samplesOf, takeSample } from "./sequence/sampling.ts";
import { Sequence, type SequenceSink, startBlocksOf } from "./sequence/sequence.ts";
import { commitSlice, discardSlice, fillTables, planSlice, rowNeeds } from "./sequence/slice-planner.ts";
import { lacksSummaries, runInBatches, summaryLayerEnd } from "./sequence/summary-layers.ts";
import { countChoices, countMisses, countTraffic, missedBlocks } from "./sequence/traffic.ts";
import { confine, noteAttended } from "./sequence/working-set.ts";
import { RequestLog } from "./trace/request-log.ts";
import { TraceBook } from "./trace/trace-book.ts";

/** While everything waits for the store, deadlines are looked at this often. */
const DEADLINE_CHECK_MS = 250;

/** A submitted request. */
export interface Ticket {
  /** Ends it at once, in any phase. */
  cancel(): void;
}

/** One model, one pool, one loop. `submit` is synchronous and cheap; everything else happens in the loop. */
export class Engine {
  readonly #parts: EngineParts;
  readonly #queue: WaitingQueue;
  readonly #tenants = new Tenants();
  readonly #speculation = new Speculation();
  readonly #planner: StepPlanner;
  readonly #admission: Admission;
  readonly #residency: Residency;
  readonly #lookAhead: LookAhead;
  readonly #preemption: Preemption;
  readonly #observer: EngineObserver;
  /** What `/metrics` shows. */
  readonly metrics: EngineMetrics;
  /** What happened to the latest requests. */
  readonly traces = new TraceBook();
  readonly #active = new Set<Sequence>();
  readonly #busySessions = new Set<string>();
  readonly #cost = new CostModel();
  /** When requests that are on their way in began to come. */
  readonly #arriving = new Set<{ sinceMs: number }>();
  #draining = false;
  #stopped = false;
  #wake: (() => void) | undefined;
  #awake = false;
  /** A sequence has just been attached: it may hold blocks whose loss was noticed before. */
  #attachedOne = false;
  readonly #loop: Promise<void>;

  constructor(parts: EngineParts) {
    this.#parts = parts;
    const { settings, cache, fetcher, supply, clock, opens } = parts;
    this.#queue = new WaitingQueue({
      ...{ tenants: this.#tenants, queueMax: settings.queueMax, runningMax: settings.runningMax },
      blocksMax: cache.capacity,
      isResident: (key) => cache.has(key),
    });
    this.#admission = new Admission({
      ...{ settings, queue: this.#queue, tenants: this.#tenants, cost: this.#cost, active: this.#active },
      freeBlocks: () => (this.#preemption.suspendedCount > 0 ? 0 : cache.unreservedCount),
    });
    this.metrics = this.#openMetrics();
    this.#observer = new Observers([this.metrics, this.traces, new RequestLog(parts.log)]);
    this.#residency = new Residency({
      ...{ fetcher, supply, cache, clock, observer: this.#observer },
      wake: () => this.wake(),
      fail: (sequence, error) => this.#fail(sequence, error),
    });
    this.#lookAhead = new LookAhead({
      ...{ cache, clock, residency: this.#residency, latencyMs: parts.storeLatencyMs, runner: parts.runner },
      onGuess: (sequence, layer, blocks) => this.traces.guessed(sequence, clock.nowMs(), { layer, blocks }),
    });
    this.#planner = this.#openPlanner();
    this.#preemption = new Preemption({
      ...{ pool: parts.runner.pool, cache, opens, clock, tenants: this.#tenants, active: this.#active },
      ...{ residency: this.#residency, observer: this.#observer },
      dropStep: (sequence) => this.#dropSuspended(sequence),
    });
    this.#loop = this.#run();
  }

  get status(): EngineStatus {
    return {
      runningCount: this.#active.size,
      preemptedCount: this.#preemption.suspendedCount,
      queuedCount: this.#queue.length,
      ...memoryStatus(this.#parts),
      draining: this.#draining,
      cost: this.#cost,
    };
  }

  /** Prompt tokens that are still to be computed or found, of all requests, queued and running. */
  get waitingTokens(): number {
    const left = ({ promptEnd, computedCount }: Sequence) => Math.max(0, promptEnd - computedCount);
    return [...this.#queue, ...this.#active].reduce((sum, sequence) => sum + left(sequence), 0);
  }

  /**
   * Queues a checked request.
   * @throws {QuireError} `queue_full`, `shutting_down`, `context_length_exceeded` or `invalid_request`; nothing was started then.
   */
  submit(request: GenerateRequest, sink: SequenceSink): Ticket {
    try {
      return this.#submit(request, sink);
    } catch (error) {
      this.#observer.refused(request.requestId, toQuireError(error).code, this.#parts.clock.nowMs());
      throw error;
    }
  }

  #submit(request: GenerateRequest, sink: SequenceSink): Ticket {
    const { cache, clock, runner, settings } = this.#parts;
    if (this.#draining) throw new QuireError("shutting_down", "The engine is shutting down.", { retryAfterMs: 1000 });
    const { spec } = runner.pool;
    const nowMs = clock.nowMs();
    const waitMs = this.#admission.waitMs(request.namespace, startBlocksOf(request, settings.reserve));
    const asked = resolveSelection(request, { ...spec, ...settings });
    const selection = this.#admission.underPressure(asked, waitMs);
    const checked = { ...request, spans: replayableSpans(request.spans, spec) };
    const { layerCount } = runner.config;
    const sequence = new Sequence({ request: checked, selection, sink, layerCount, nowMs, reserve: settings.reserve });
    confine(sequence, { ...spec, ...settings }, cache);
    this.#admission.check(sequence, waitMs, nowMs);
    this.#tenants.enter(sequence.namespace, nowMs);
    this.#queue.add(sequence);
    this.#observer.queued(sequence, nowMs);
    this.wake();
    return { cancel: () => this.#cancel(sequence) };
  }

  /** A request is being read and checked: the loop lets it come in before the next step. The caller says when that is over. */
  expect(): () => void {
    const arrival = { sinceMs: this.#parts.clock.nowMs() };
    this.#arriving.add(arrival);
    return () => void this.#arriving.delete(arrival);
  }

  /** Whether a turn of this session is running or on its way to be persisted. */
  serves(sessionKey: string): boolean {
    return this.#busySessions.has(sessionKey);
  }

  /** Lets the loop look again. */
  wake(): void {
    this.#awake = true;
    this.#wake?.();
  }

  /**
   * Refuses new requests and those that wait (`shutting_down`: another engine takes them), ends running ones when they are done or when `graceMs`
   * is over (`cancelled`: another engine goes on from their log), persists, and stops.
   */
  async stop(graceMs: number): Promise<void> {
    this.#draining = true;
    const { clock } = this.#parts;
    for (const sequence of this.#queue)
      sequence.error ??= new QuireError("shutting_down", "The engine is shutting down.");
    this.wake();
    const deadline = clock.nowMs() + graceMs;
    while (this.#active.size + this.#queue.length > 0 && clock.nowMs() < deadline) await clock.sleep(10);
    for (const sequence of [...this.#queue, ...this.#active]) this.#cancel(sequence);
    while (this.#active.size > 0 && clock.nowMs() < deadline + 2000) await clock.sleep(10);
    this.#stopped = true;
    this.wake();
    await this.#loop;
    for (const sequence of this.#active) this.#conclude(sequence);
    await this.#parts.persister.flush();
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      this.#awake = false;
      try {
        this.#dropLost();
        this.#endAborted();
        // Who finds all that it needs on the device is in the very next step.
        if (this.#admit() > 0) await this.#parts.clock.breathe(0);
        const startMs = this.#parts.clock.nowMs();
        const worked = await this.#step();
        if (worked) await breatheAfter(startMs, this.#arriving, this.#parts);
        else if (!this.#awake && !(await this.#lookAhead.guess(this.#active)) && !this.#awake) await this.#sleep();
      } catch (error) {
        this.#failAll(error);
        await new Promise<void>((resolve) => setImmediate(resolve));
      }
    }
  }

  async #sleep(): Promise<void> {
    const woken = new Promise<void>((resolve) => (this.#wake = resolve));
    if (this.#active.size + this.#queue.length === 0) await woken;
    else await Promise.race([woken, this.#parts.clock.sleep(DEADLINE_CHECK_MS)]);
  }

  /** As many as may run and find blocks, in the queue's order; a session's next turn waits until the one before has settled. Returns how many. */
  #admit(): number {
    const { settings, clock } = this.#parts;
    let count = 0;
    const ahead = this.#preemption.restore();
    const isFree = ({ sessionKey, priority }: Sequence) =>
      priority > (ahead?.priority ?? Number.NEGATIVE_INFINITY) && !this.#busySessions.has(sessionKey ?? "");
    while (this.#active.size < settings.runningMax) {
      const sequence = this.#queue.next(clock.nowMs(), isFree, (one) => this.#preemption.admit(one));
      if (!sequence) return count;
      count += 1;
      this.#tenants.start(sequence.namespace, sequence.reservedCount, clock.nowMs());
      this.#active.add(sequence);
      if (sequence.sessionKey !== undefined) this.#busySessions.add(sequence.sessionKey);
      sequence.usage.queueMs = clock.nowMs() - sequence.queuedAtMs;
      this.#observer.admitted(sequence, clock.nowMs());
      void this.#attach(sequence);
    }
    return count;
  }

  async #attach(sequence: Sequence): Promise<void> {
    sequence.phase = "attaching";
    try {
      await this.#parts.attacher.attach(sequence);
    } catch (error) {
      if (!sequence.abortRequested) sequence.error ??= error;
    }
    this.#observer.attached(sequence, this.#parts.clock.nowMs());
    this.#attachedOne = true;
    sequence.phase = "running";
    this.wake();
  }

  async #step(): Promise<boolean> {
    const suspended = [...this.#active].find((sequence) => sequence.phase === "running" && sequence.suspended);
    const resumed = suspended !== undefined && (await this.#resume(suspended));
    this.#preemption.secure();
    const parts = this.#planner.plan(this.#active, this.#parts.clock.nowMs());
    await runInBatches(parts, this.#parts, (batch) => this.#runBatch(batch));
    return resumed || parts.length > 0;
  }

  async #runBatch(parts: readonly PlannedPart[]): Promise<void> {
    const startMs = this.#parts.clock.nowMs();
    const results = await this.#runStep(
      parts.map(({ sequence, slice }) => ({ sequence, slice, step: this.#sequenceStep(sequence, slice) })),
    );
    this.#account(parts, results, startMs);
    for (const [index, { sequence, slice }] of parts.entries()) {
      try {
        this.#finishSlice(sequence, slice, results[index] as SequenceResult);
      } catch (error) {
        this.#fail(sequence, error);
      }
    }
  }

  /** A step's time teaches what steps cost, and is shared out among those who were in it. */
  #account(parts: readonly PlannedPart[], results: readonly SequenceResult[], startMs: number): void {
    const endMs = this.#parts.clock.nowMs();
    const [ms, load] = [endMs - startMs, parts.map((part) => part.load).reduce(addLoads)];
    this.#observer.stepped(parts, { startMs, endMs, predictedMs: this.#cost.predictMs(load) });
    this.#tenants.chargeStep(parts, ms, this.#cost);
    // A step that was void ended early: its time says nothing of its rows.
    if (results.every((result) => result.checkpoint === undefined)) this.#cost.observe(load, ms);
  }

  #openMetrics(): EngineMetrics {
    const { settings, numericsId, persister, diskCache } = this.#parts;
    return new EngineMetrics({
      ...{ engineId: settings.engineId, modelId: settings.modelId, numericsId, diskCache },
      status: () => this.status,
      promisedCount: () => this.#admission.promisedCount,
      pendingStoreBytes: () => persister.pendingBytes,
    });
  }

  #openPlanner(): StepPlanner {
    const { settings, runner, cache, opens } = this.#parts;
    const { layerCount, summaryKinds } = runner.pool.spec;
    return new StepPlanner({
      ...{ settings, rowsMax: runner.rowsMax, sampledMax: runner.sampledMax },
      ...{ cost: this.#cost, tenants: this.#tenants, speculation: this.#speculation },
      slotsLeft: () => opens.availableCount,
      needs: rowNeeds,
      fetch: (sequence, rows, blocks) => this.#residency.bring(sequence, rows, blocks),
      take: (sequence, rows) => planSlice(sequence, rows, { cache, opens, layerCount, summaryKinds }),
      fail: (sequence, error) => this.#fail(sequence, error),
    });
  }

  #sequenceStep(sequence: Sequence, planned: PlannedSlice): SequenceStep {
    const { draft } = planned;
    const last = planned.to - draft.length === sequence.tokenCount && sequence.finishReason === undefined;
    const patient = !sequence.started && this.#parts.clock.nowMs() < sequence.missWaitUntilMs;
    const layerEnd = summaryLayerEnd(sequence, planned);
    return {
      ...{ slice: planned.slice, tokens: planned.tokens, layerEnd },
      exact: planned.exact || patient || sequence.finishReason !== undefined,
      ...(last ? { sample: sampleParams(sequence, draft.length) } : {}),
      ...(draft.length > 0 ? { draftSamples: Array.from(draft, (_, ahead) => sampleParams(sequence, ahead)) } : {}),
    };
  }

  async #resume(sequence: Sequence): Promise<boolean> {
    const suspended = sequence.suspended;
    assert(suspended, "a suspended sequence has a suspended step");
    const { planned, checkpoint } = suspended;
    if (lacksSummaries(sequence, suspended)) {
      this.#dropSuspended(sequence);
      return false;
    }
    sequence.suspended = undefined;
    fillTables(sequence, planned);
    const step = { ...this.#sequenceStep(sequence, planned), resumeFrom: checkpoint };
    // Where blocks are on their way, each layer sees those that have come before it.
    const pauses = step.exact && this.#parts.fetcher.inFlightCount > 0;
    const [result] = await this.#runStep([{ sequence, slice: planned, step: { ...step, pauses } }]);
    this.#finishSlice(sequence, planned, result as SequenceResult);
    return true;
  }

  async #runStep(parts: { sequence: Sequence; slice: PlannedSlice; step: SequenceStep }[]): Promise<SequenceResult[]> {
    try {
      return await this.#parts.cache.during(async () => {
        const results = await this.#lookAhead.step(parts.map((part) => part.step));
        noteAttended(parts, results, this.#parts.cache);
        return results;
      });
    } catch (error) {
      for (const { slice } of parts) discardSlice(slice, this.#parts);
      throw error;
    }
  }

  #finishSlice(sequence: Sequence, planned: PlannedSlice, result: SequenceResult): void {
    const { cache, opens, persister } = this.#parts;
    countTraffic(sequence.usage, result.traffic);
    const { wanted, passedBy } = missedBlocks(sequence, result);
    planned.passedBy.push(...passedBy);
    countChoices(sequence, result);
    collectChoice(planned, result);
    if (result.checkpoint) {
      this.#residency.suspend(sequence, planned, result.checkpoint, wanted);
      return;
    }
    sequence.heat.tick();
    if (planned.passedBy.length > 0) {
      sequence.markApproximate(planned.from, planned.to);
      countMisses(sequence.usage, planned.passedBy.length);
      void this.#residency.fetch(sequence, planned.passedBy, "fill");
    }
    const samples = this.#speculation.accept(sequence, planned, samplesOf(result));
    sequence.usage.recomputedTokens += Math.max(0, Math.min(planned.to, sequence.request.turnStart) - planned.from);
    const sealed = commitSlice(sequence, planned, { cache, opens });
    persister.sealed(sequence, sealed);
    for (const sample of samples) this.#accept(sequence, sample);
    if (
      sequence.finishReason !== undefined &&
      (sequence.request.session === undefined || sequence.nextPosition === undefined)
    ) {
      void this.#settle(sequence);
    }
  }

  #accept(sequence: Sequence, sample: Sample): void {
    const [nowMs, previousMs] = [this.#parts.clock.nowMs(), sequence.lastTokenMs];
    sequence.lastTokenMs = nowMs;
    takeSample(sequence, sample, nowMs);
    this.#observer.token(sequence, nowMs, previousMs);
    if (sequence.finishReason !== undefined) this.#conclude(sequence);
    else if (sequence.generatedCount === 1) void this.#residency.fillRest(sequence);
  }

  /**
   * Lost blocks become gaps, which the next steps fill from the log; a suspended step that relied on them is dropped. Only between steps: a
   * running one may be reading their memory.
   */
  #dropLost(): void {
    const { cache, fetcher } = this.#parts;
    const noticed = fetcher.takeLossNotice();
    if (!noticed && !this.#attachedOne) return;
    this.#attachedOne = false;
    for (const sequence of this.#active) {
      if (sequence.phase !== "running" && sequence.phase !== "waiting") continue;
      if (sequence.drop(cache, (block) => block.lost) > 0) this.#dropSuspended(sequence);
    }
  }

  #dropSuspended(sequence: Sequence): void {
    if (!sequence.suspended) return;
    this.#parts.runner.discard(sequence.suspended.checkpoint);
    discardSlice(sequence.suspended.planned, this.#parts);
    sequence.suspended = undefined;
    sequence.unpin(this.#parts.cache);
  }

  #cancel(sequence: Sequence): void {
    sequence.abortRequested = true;
    sequence.abort.abort();
    this.wake();
  }

  #endAborted(): void {
    const { clock, settings } = this.#parts;
    for (const sequence of [...this.#queue, ...this.#active]) {
      if (sequence.phase === "settling" || sequence.phase === "ended") continue;
      sequence.error ??= lateness(sequence, clock.nowMs(), settings.turnMsMax) ?? wentInCircles(sequence);
      if (!sequence.abortRequested && sequence.error === undefined) continue;
      if (sequence.phase === "queued") this.#queue.remove(sequence);
      else if (sequence.phase === "attaching") {
        // Its memory is written to until the store has answered, but nobody need wait for that.
        this.#conclude(sequence);
        continue;
      }
      void this.#settle(sequence);
    }
  }

  /** Persists what the turn left (also an aborted one's), then gives everything back. */
  async #settle(sequence: Sequence): Promise<void> {
    const { cache, opens, persister, clock, log } = this.#parts;
    sequence.phase = "settling";
    this.#conclude(sequence);
    try {
      this.#dropSuspended(sequence);
      await persister.copied(sequence);
      if (leavesKv(sequence)) await persister.endTurn(sequence);
      if (sequence.error === undefined) parkTail(sequence, opens);
    } catch (error) {
      log("persist.failed", { requestId: sequence.request.requestId, error: String(error) });
    }
    const blocks = sequence.reservedCount;
    sequence.releaseAll(cache, opens);
    sequence.phase = "ended";
    if (this.#active.delete(sequence)) {
      this.#tenants.finish(sequence.namespace, blocks);
      if (sequence.sessionKey !== undefined) this.#busySessions.delete(sequence.sessionKey);
    }
    this.#tenants.leave(sequence.namespace, clock.nowMs());
    this.#observer.settled(sequence, clock.nowMs());
    this.wake();
  }

  /** The one terminal event of a request; later calls do nothing. */
  #conclude(sequence: Sequence): void {
    if (sequence.concluded) return;
    sequence.concluded = true;
    const { usage } = sequence;
    const nowMs = this.#parts.clock.nowMs();
    usage.totalMs = nowMs - sequence.queuedAtMs;
    this.#observer.concluded(sequence, outcomeOf(sequence), nowMs);
    try {
      tellEnd(sequence);
    } catch (error) {
      this.#parts.log("sink.failed", { requestId: sequence.request.requestId, error: String(error) });
    }
  }

  /** Ends one sequence with an error; the others go on. */
  #fail(sequence: Sequence, error: unknown): void {
    this.#parts.log("sequence.failed", { requestId: sequence.request.requestId, error: describeError(error) });
    sequence.error ??= error;
    this.wake();
  }

  /** After a failed step no running sequence can be trusted: all end with an error. With its device gone the engine ends without a word, as if it had died. */
  #failAll(error: unknown): void {
    const { log, onDeviceLost } = this.#parts;
    log("step.failed", { error: describeError(error) });
    if (error instanceof DeviceLostError && onDeviceLost) {
      this.#stopped = true;
      onDeviceLost(error);
    } else for (const sequence of this.#active) if (sequence.phase !== "settling") sequence.error ??= error;
  }
}
