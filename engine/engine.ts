/**
 * The engine: `step()` is admit, plan, run, settle. One loop owns every sequence; whatever waits for the store does so outside of the loop and
 * wakes it. A request's life: `submit` -> queued -> attaching (KV from cache and store) -> running (prefill and decode in one batch,
 * suspended while selected blocks are fetched) -> settling (tail and manifest) -> ended.
 */
import { DeviceLostError } from "../kernels/device-lost.ts";
import { QuireError, toQuireError } from "../protocol/errors.ts";
import type { GenerateRequest } from "../protocol/generate.ts";
import { breatheAfter } from "./breathing.ts";
import { type EngineParts, type EngineStatus, memoryStatus } from "./engine-parts.ts";
import { replayableSpans, resolveSelection } from "./http/request-check.ts";
import { EngineMetrics } from "./metrics/engine-metrics.ts";
import { type EngineObserver, Observers } from "./observer.ts";
import { Admission } from "./schedule/admission.ts";
import { CostModel } from "./schedule/cost-model.ts";
import { Preemption } from "./schedule/preemption.ts";
import { Tenants } from "./schedule/tenants.ts";
import { WaitingQueue } from "./schedule/waiting-queue.ts";
import { describeError } from "./sequence/endings.ts";
import { LookAhead } from "./sequence/look-ahead.ts";
import { Residency } from "./sequence/residency.ts";
import { type ResolvedSelection, Sequence, type SequenceSink } from "./sequence/sequence.ts";
import { confine } from "./sequence/working-set.ts";
import { Stepper } from "./stepper.ts";
import { RequestLog } from "./trace/request-log.ts";
import { TraceBook } from "./trace/trace-book.ts";
import { TurnEnds } from "./turn-ends.ts";

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
  readonly #stepper: Stepper;
  readonly #ends: TurnEnds;
  readonly #admission: Admission;
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
      blocksMax: cache.reservations.capacity,
      isResident: (key) => cache.has(key),
    });
    this.#admission = new Admission({
      ...{ settings, queue: this.#queue, tenants: this.#tenants, cost: this.#cost, active: this.#active },
      hasRoomFor: (sequence) => this.#preemption.hasRoomFor(sequence),
    });
    this.metrics = this.#openMetrics();
    this.#observer = new Observers([this.metrics, this.traces, new RequestLog(parts.log)]);
    this.#ends = new TurnEnds({
      ...{ parts, queue: this.#queue, active: this.#active, busySessions: this.#busySessions },
      ...{ tenants: this.#tenants, observer: this.#observer },
      dropStep: (sequence) => this.#stepper.drop(sequence),
      wake: () => this.wake(),
    });
    const fail = (sequence: Sequence, error: unknown) => this.#ends.fail(sequence, error);
    const residency = new Residency({
      ...{ fetcher, supply, cache, clock, observer: this.#observer, fail },
      wake: () => this.wake(),
    });
    this.#lookAhead = new LookAhead({
      ...{ cache, clock, residency, fail, latencyMs: () => parts.storeSpeed()?.latencyMs, runner: parts.runner },
      onGuess: (sequence, layer, blocks) => this.traces.guessed(sequence, clock.nowMs(), { layer, blocks }),
    });
    this.#stepper = new Stepper({
      ...{ parts, active: this.#active, cost: this.#cost, tenants: this.#tenants, observer: this.#observer },
      ...{ residency, lookAhead: this.#lookAhead, fail },
      conclude: (sequence) => this.#ends.conclude(sequence),
      settle: (sequence) => void this.#ends.settle(sequence),
    });
    this.#preemption = new Preemption({
      ...{ pool: parts.runner.pool, cache, opens, clock, tenants: this.#tenants, active: this.#active },
      ...{ residency, observer: this.#observer },
      dropStep: (sequence) => this.#stepper.drop(sequence),
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
    const asked = resolveSelection(request, { ...spec, ...settings });
    const checked = { ...request, spans: replayableSpans(request.spans, spec) };
    const { layerCount } = runner.config;
    const sequenceOf = (selection: ResolvedSelection): Sequence => {
      const from = { request: checked, selection, sink, layerCount, nowMs, wallMs: clock.wallMs() };
      const made = new Sequence({ ...from, reserve: settings.reserve });
      confine(made, { ...spec, ...settings }, cache);
      return made;
    };
    const wanted = sequenceOf(asked);
    const waitMs = this.#admission.waitMs(wanted);
    const selection = this.#admission.underPressure(asked, waitMs);
    const sequence = selection === asked ? wanted : sequenceOf(selection);
    this.#admission.check(sequence, waitMs, nowMs);
    this.#tenants.enter(sequence.namespace, nowMs);
    this.#queue.add(sequence);
    this.#observer.queued(sequence, nowMs);
    this.wake();
    return { cancel: () => this.#ends.cancel(sequence) };
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

  /** Since when a session has turns here that are not over, milliseconds since 1970. */
  oldestTurnMs(sessionKey: string): number | undefined {
    const running = [...this.#queue, ...this.#active].filter(
      (one) => one.sessionKey === sessionKey && !one.concluded && !one.abortRequested,
    );
    return running.length === 0 ? undefined : Math.min(...running.map(({ sinceMs }) => sinceMs));
  }

  /**
   * Ends the turns of a session that began before `bornMs`: nobody hears them any more. Resolves when those have queued what they leave, and nothing is on
   * the device, in host memory or parked that is this session's alone.
   */
  async forget(sessionKey: string, bornMs: number): Promise<void> {
    const { cache, clock, opens } = this.#parts;
    const isOver = (one: Sequence) => one.sessionKey === sessionKey && one.sinceMs < bornMs;
    const over = () => [...this.#queue, ...this.#active].filter(isOver);
    for (const sequence of over()) this.#ends.cancel(sequence);
    while (!this.#stopped && over().length > 0) await clock.sleep(10);
    cache.forgetOwner(sessionKey);
    opens.forgetOwner(sessionKey);
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
    for (const sequence of [...this.#queue, ...this.#active]) this.#ends.cancel(sequence);
    while (this.#active.size > 0 && clock.nowMs() < deadline + 2000) await clock.sleep(10);
    this.#stopped = true;
    this.wake();
    await this.#loop;
    for (const sequence of this.#active) this.#ends.conclude(sequence);
    await this.#parts.persister.flush();
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      this.#awake = false;
      try {
        this.#dropLost();
        this.#ends.endAborted();
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
    const resumed = await this.#stepper.resume();
    this.#preemption.secure();
    return (await this.#stepper.run()) || resumed;
  }

  #openMetrics(): EngineMetrics {
    const { settings, numericsId, persister, diskCache, storeCalls } = this.#parts;
    return new EngineMetrics({
      ...{ engineId: settings.engineId, modelId: settings.modelId, numericsId, diskCache, storeCalls },
      status: () => this.status,
      promisedCount: () => this.#admission.promisedCount,
      pendingStoreBytes: () => persister.pendingBytes,
    });
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
      if (sequence.drop(cache, (block) => block.lost) > 0) this.#stepper.drop(sequence);
    }
  }

  /**
   * What a single sequence cannot be blamed for (stepper.ts): none that runs can be trusted, and all end with the error. With its device gone the engine ends
   * without a word, as if it had died.
   */
  #failAll(error: unknown): void {
    const { log, onDeviceLost } = this.#parts;
    log("engine.failed", { error: describeError(error) });
    if (error instanceof DeviceLostError && onDeviceLost) {
      this.#stopped = true;
      onDeviceLost(error);
    } else for (const sequence of this.#active) if (sequence.phase !== "settling") sequence.error ??= error;
  }
}
